"""``/openapi.json``: the parts of all routes in one document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ... import __version__
from .settings import Settings

ERRORS = {
    400: "Something in the request cannot be met",
    401: "The key is missing or wrong",
    403: "Not for this Host or Origin, or not allowed",
    404: "There is no such thing",
    408: "The body came too slowly",
    409: "It is there already, or there is no room",
    413: "The body is too long",
    415: "Not the content type this takes",
    429: "All places are taken: Retry-After says when to come again",
    503: "Not ready, out of time, or the model made nothing usable",
}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def document(settings: Settings, parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a server with these settings."""
    paths: dict[str, Any] = {}
    for part in parts:
        paths |= part
    out = {
        "openapi": "3.1.0",
        "info": {
            "title": "mlx_higgs",
            "version": __version__,
            "description": "Speech from a Higgs Audio model, in the shape of OpenAI's API.",
        },
        "paths": paths,
        "components": {"schemas": {"Error": ERROR}},
    }
    if settings.api_key is not None:
        out["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        out["security"] = [{"key": []}]
    return out


def answers(good: dict[str, Any], *errors: int) -> dict[str, Any]:
    """The ``responses`` of an operation: the good one and its errors; any may be 401 or 403."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"200": good} | {
        str(status): {"description": ERRORS[status], "content": content}
        for status in sorted({401, 403, *errors})
    }


def json_answer(description: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    """A good answer that is JSON."""
    content = {"application/json": {"schema": schema or {"type": "object"}}}
    return {"description": description, "content": content}
