"""The checks of bodies, and the document that shows them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlx_higgs.server.http import fields, schema
from mlx_higgs.server.http.app import API, VERSION, describe
from mlx_higgs.server.http.errors import ApiError
from mlx_higgs.server.http.settings import Settings

jsonschema_rs = pytest.importorskip("jsonschema_rs")  # schemathesis brings it

SPEECH = fields.speech_schema(Settings(max_input_chars=50))
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**64, 0.5, 1.0, -2.5, 1e300, 250, 4.0),
    *("", "a", "mp3", "aac", "audio", "sse", "x" * 51, "x" * 2000),
    *([], [1], ["a"], [{}], [{"audio_path": "a"}], [{"audio_path": "a", "text": None}]),
    *([{"audio_path": "a", "more": 1}], [{"audio_path": "a"}] * 5),
    *({}, {"id": "a"}, {"id": ""}, {"id": 1}, {"normalize": True}, {"normalize": "a"}),
    {str(key): "a" for key in range(101)},
]


def documents(**settings: Any) -> dict[str, Any]:
    return describe(Settings(**settings))


def test_check_agrees_with_json_schema(seed):
    """The oracle is jsonschema-rs: one field at a time, and some at once."""
    rng = np.random.default_rng(seed)
    oracle = jsonschema_rs.Draft202012Validator(SPEECH)
    names = list(SPEECH["properties"])
    bodies = [{"input": "Hi.", name: value} for name in names for value in VALUES]
    for _ in range(300):
        chosen = rng.choice(len(names), 3, replace=False)
        drawn = rng.integers(len(VALUES), size=3)
        bodies.append({names[i]: VALUES[j] for i, j in zip(chosen, drawn, strict=True)})
    verdicts = [ours(body) for body in bodies]
    assert verdicts == [oracle.is_valid(body) for body in bodies]
    assert len(set(verdicts)) == 2


def ours(body: dict[str, Any]) -> bool:
    try:
        schema.check(body, SPEECH)
    except ApiError as error:
        return (error.status, len(error.message) < 2000) != (400, True)
    return True


def test_every_word_of_the_schemas_is_checked_or_said():
    """A keyword that the check does not know would be shown and not held."""
    known = schema.CHECKED | schema.ANNOTATIONS

    def walk(one: dict[str, Any]) -> None:
        assert one.keys() <= known
        inner = [*one.get("properties", {}).values(), *one.get("anyOf", [])]
        inner += [one[key] for key in ("items", "additionalProperties") if key in one]
        for part in inner:
            if isinstance(part, dict):
                walk(part)

    for path in documents()["paths"].values():
        for operation in operations(path):
            content = operation.get("requestBody", {}).get("content", {})
            if "application/json" in content:
                walk(content["application/json"]["schema"])


def test_the_limits_shown_are_the_limits_held():
    shown = fields.speech_schema(Settings(max_input_chars=7))["properties"]["input"]["maxLength"]
    assert shown == 7
    body = {"input": "x" * 8}
    with pytest.raises(ApiError, match="at most 7"):
        schema.check(body, fields.speech_schema(Settings(max_input_chars=7)))


def test_every_route_is_described_and_nothing_else():
    described = {
        (path, method.upper())
        for path, item in documents()["paths"].items()
        for method in item
        if method != "parameters"
    }
    served = {
        (route.path.replace(":path}", "}"), method)
        for part in API
        for route in part.ROUTES
        for method in getattr(route, "methods", None) or ()
        if method != "HEAD"
    }
    assert described == served


def test_the_document_is_one():
    document = documents()
    assert document["openapi"].startswith("3.1")
    for path, item in document["paths"].items():
        assert path.startswith((VERSION, "/health", "/ready", "/metrics", "/openapi.json"))
        for method, operation in item.items():
            if method != "parameters":
                assert operation["responses"], path
    names = [op["operationId"] for item in document["paths"].values() for op in operations(item)]
    assert len(names) == len(set(names))


def operations(item: dict[str, Any]) -> list[dict[str, Any]]:
    return [value for key, value in item.items() if key != "parameters"]


def test_a_key_is_described_where_there_is_one():
    assert "security" not in documents()
    assert documents(api_key="key")["security"] == [{"key": []}]
