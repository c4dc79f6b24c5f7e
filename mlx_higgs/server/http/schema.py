"""Checks of JSON against the very schemas that the OpenAPI document shows.

The part of JSON Schema that the routes need: ``type``, ``enum``, ``minLength``, ``maxLength``,
``minimum``, ``exclusiveMinimum``, ``maximum``, ``properties``, ``required``,
``additionalProperties``, ``maxProperties``, ``items``, ``minItems``, ``maxItems``, ``anyOf``.
"""

from __future__ import annotations

import math
from typing import Any

from .errors import ApiError

Schema = dict[str, Any]
SHOWN = 60  # characters of a wrong value in a message
NAMES = {"string": "a text", "number": "a number", "integer": "a whole number", "null": "null"}
NAMES |= {"boolean": "true or false", "object": "an object", "array": "a list"}
ANNOTATIONS = {"description", "default", "examples", "title", "format", "contentEncoding"}
CHECKED = {"type", "enum", "minLength", "maxLength", "minimum", "exclusiveMinimum", "maximum"}
CHECKED |= {"properties", "required", "additionalProperties", "maxProperties", "items", "minItems"}
CHECKED |= {"maxItems", "anyOf"}


def check(value: Any, schema: Schema, name: str = "") -> None:
    """Raises ApiError (400) that names the field and what it must be."""
    if fault := _fault(value, schema, name):
        where, must = fault
        subject = f"{where} is {_shown(value, where, name)}" if where else "The body is wrong"
        raise ApiError(400, f"{subject}: it must be {must}.", param=where or None)


def _shown(value: Any, where: str, name: str) -> str:
    """The value that a fault is about, where it is the whole or a field of it."""
    if where == name:
        return repr(value)[:SHOWN]
    known = isinstance(value, dict) and where in value
    return repr(value[where])[:SHOWN] if known else "wrong"


def nullable(schema: Schema) -> Schema:
    """The same, or null: clients write null for what they leave open."""
    if "anyOf" in schema:
        return schema | {"anyOf": [*schema["anyOf"], {"type": "null"}]}
    out = schema | {"type": [schema["type"], "null"]}
    return out | {"enum": [*schema["enum"], None]} if "enum" in schema else out


Fault = tuple[str, str] | None  # the field, and what it must be


def _fault(value: Any, schema: Schema, name: str) -> Fault:
    if "anyOf" in schema:
        faults = [_fault(value, one, name) for one in schema["anyOf"]]
        if None in faults:
            return None
        return name, " or ".join(dict.fromkeys(fault[1] for fault in faults if fault))
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        return name, " or ".join(NAMES[kind] for kind in kinds)
    if "enum" in schema and value not in schema["enum"]:
        return name, "one of " + ", ".join(str(one) for one in schema["enum"] if one is not None)
    if isinstance(value, str):
        return _length(len(value), schema, "Length", "characters", name)
    if isinstance(value, dict):
        return _members(value, schema, name)
    if isinstance(value, list):
        return _length(len(value), schema, "Items", "items", name) or _items(value, schema, name)
    return None if value is None or isinstance(value, bool) else _range(value, schema, name)


def _is(value: Any, kind: str) -> bool:
    if kind in ("number", "integer"):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and (kind == "number" or isinstance(value, int) or value.is_integer())
    types = {"string": str, "boolean": bool, "object": dict, "array": list, "null": type(None)}
    return isinstance(value, types[kind])


def _length(count: int, schema: Schema, what: str, unit: str, name: str) -> Fault:
    if count > schema.get(f"max{what}", math.inf):
        return name, f"at most {schema[f'max{what}']} {unit} long, not {count}"
    if count < schema.get(f"min{what}", 0):
        return name, f"at least {schema[f'min{what}']} {unit} long"
    return None


def _range(value: float, schema: Schema, name: str) -> Fault:
    if "minimum" in schema and not value >= schema["minimum"]:
        return name, f"at least {schema['minimum']}"
    if "exclusiveMinimum" in schema and not value > schema["exclusiveMinimum"]:
        return name, f"above {schema['exclusiveMinimum']}"
    if "maximum" in schema and not value <= schema["maximum"]:
        return name, f"at most {schema['maximum']}"
    return None


def _members(value: dict, schema: Schema, name: str) -> Fault:
    for wanted in schema.get("required", ()):
        if wanted not in value:
            return _inside(name, wanted), "there"
    known, other = schema.get("properties", {}), schema.get("additionalProperties", True)
    if len(value) > schema.get("maxProperties", math.inf):
        return name, f"an object of at most {schema['maxProperties']} members"
    for key, member in value.items():
        one = known.get(key, other)
        if one is False:
            return name, f"without {key[:SHOWN]!r}"
        if isinstance(one, dict) and (fault := _fault(member, one, _inside(name, key[:SHOWN]))):
            return fault
    return None


def _items(value: list, schema: Schema, name: str) -> Fault:
    for index, item in enumerate(value):
        if fault := _fault(item, schema.get("items", {}), f"{name}[{index}]"):
            return fault
    return None


def _inside(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
