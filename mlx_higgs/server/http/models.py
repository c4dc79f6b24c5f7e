"""What is loaded and how it is: models, health, readiness, metrics, and the API's description."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .errors import ApiError
from .openapi import answers, json_answer
from .settings import Settings

OWNER = "mlx_higgs"


def model_object(settings: Settings) -> dict[str, Any]:
    return {
        "id": settings.model_id,
        "object": "model",
        "created": settings.created,
        "owned_by": OWNER,
    }


async def list_models(request: Request) -> Response:
    """One: what was loaded. Names that clients are used to reach it all the same."""
    listed = [model_object(request.app.state.settings)]
    return JSONResponse({"object": "list", "data": listed, "models": listed})


async def one_model(request: Request) -> Response:
    settings: Settings = request.app.state.settings
    name = request.path_params["model"]
    if name != settings.model_id:
        raise ApiError(
            404,
            f"There is no model {name[:80]!r} here, only {settings.model_id!r}. Nothing is ever "
            "downloaded for a request.",
            param="model",
            code="model_not_found",
        )
    return JSONResponse(model_object(settings))


async def health(request: Request) -> Response:
    """The process answers; whether it can speak is asked at ``/ready``."""
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    worker = request.app.state.worker
    if worker.ready:
        return JSONResponse({"status": "ready", "model": request.app.state.settings.model_id})
    if worker.error:
        return JSONResponse({"status": "failed"}, 503)
    return JSONResponse({"status": "loading"}, 503, {"Retry-After": "5"})


async def metrics(request: Request) -> Response:
    data, kind = request.app.state.metrics.render()
    return Response(data, headers={"Content-Type": kind})


async def openapi(request: Request) -> Response:
    return JSONResponse(request.app.state.openapi)


ROUTES = [
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/{model:path}", one_model, methods=["GET"]),
    Route("/v1/audio/models", list_models, methods=["GET"]),
    Route("/health", health, methods=["GET"]),
    Route("/ready", ready, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
    Route("/openapi.json", openapi, methods=["GET"]),
]

MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    },
}
MODELS = {
    "type": "object",
    "required": ["object", "data", "models"],
    "properties": {
        "object": {"const": "list"},
        "data": {"type": "array", "items": MODEL},
        "models": {"type": "array", "items": MODEL},
    },
}
STATUS = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"enum": ["ok", "ready", "loading", "failed"]}},
}
NAME = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
TEXT = {"description": "In Prometheus' format", "content": {"text/plain": {}}}


def _get(name: str, summary: str, good: dict, *errors: int) -> dict[str, Any]:
    responses = answers(good, *errors)
    return {"get": {"operationId": name, "summary": summary, "responses": responses}}


def docs(settings: Settings) -> dict[str, Any]:
    """This part of the OpenAPI document."""
    ready = _get("ready", "Whether it can speak", json_answer("It can", STATUS))
    ready["get"]["responses"]["503"] = json_answer("It loads, or could not", STATUS)
    one = _get("one_model", "That model", json_answer("It", MODEL), 404)
    return {
        "/v1/models": _get("list_models", "The model that is loaded", json_answer("It", MODELS)),
        "/v1/models/{model}": {**one, "parameters": [NAME]},
        "/v1/audio/models": _get("list_audio_models", "The same list", json_answer("It", MODELS)),
        "/health": _get("health", "Whether the process answers", json_answer("It does", STATUS)),
        "/ready": ready,
        "/metrics": _get("metrics", "Counters, without a word of what was said", TEXT),
        "/openapi.json": _get("openapi", "This document", json_answer("It")),
    }
