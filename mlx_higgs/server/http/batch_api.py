"""``/v1/audio/speech/batch``: many texts in one request, said side by side."""

from __future__ import annotations

import asyncio
import base64
import secrets
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...types import HiggsError
from ..encoders import MEDIA_TYPES, whole
from ..ticket import Busy
from .body import read_json
from .errors import ApiError, as_api_error
from .fields import Parsed, parse_speech, speech_schema
from .media import off_loop
from .openapi import answers, json_answer
from .schema import Schema, check
from .settings import Settings
from .speech import CLIPS, check_ready, told, unless_left

PATH = "/v1/audio/speech/batch"
MAX_ITEMS = 32
MAX_TEXTS = 4  # times what one request may hold: all audio of the answer is kept until its end
AT_ONCE = 4  # fewer than the worker takes, so that others get their turn
DEFAULT_FORMAT = "wav"
WHOLE = {"stream": False, "stream_format": None}


async def speak_batch(request: Request) -> Response:
    """The audio of each item, or why there is none; the order is that of the items.

    Raises:
        ApiError: 400, nothing is begun; 429, there was no room for even one.
        ClientDisconnect: all of it has been given up.
    """
    app = request.app
    items = await run_in_threadpool(_items, await read_json(request), app.state.settings)
    check_ready(app.state)
    results = await unless_left(request.receive, _all(items, app))
    return await run_in_threadpool(_answer, results)


async def parse_in_thread(body: dict[str, Any], app: Starlette) -> Parsed:
    """What ``parse_speech`` returns; clips may make it wait, so they have threads of their own."""
    with_clips = any(body.get(name) is not None for name in CLIPS)
    return await (off_loop if with_clips else run_in_threadpool)(parse_speech, body, app)


def _items(body: dict[str, Any], settings: Settings) -> list[dict[str, Any]]:
    """The body of a speech request for each item: what all share, and what it says itself."""
    check(body, batch_schema(settings))
    shared = {key: value for key, value in body.items() if key != "items"}
    listed = [{k: v for k, v in item.items() if v is not None} for item in body["items"]]
    total = sum(len(item["input"]) for item in listed)
    if total > (most := MAX_TEXTS * settings.max_input_chars):
        message = f"The items hold {total} characters: at most {most} are said in one batch."
        raise ApiError(400, message, param="items")
    return [{"response_format": DEFAULT_FORMAT, **shared, **item, **WHOLE} for item in listed]


async def _all(items: list[dict[str, Any]], app: Starlette) -> list[dict[str, Any]]:
    places = asyncio.Semaphore(AT_ONCE)
    begun = asyncio.Event()
    deadline = asyncio.get_running_loop().time() + app.state.settings.request_timeout

    async def one(index: int, body: dict[str, Any]) -> dict[str, Any]:
        parsed = None
        try:
            async with places, asyncio.timeout_at(deadline):
                parsed = await parse_in_thread(body, app)
                audio = await _spoken(parsed, app, begun)
        except (ApiError, HiggsError, TimeoutError) as error:
            if isinstance(error, Busy):  # before anything was begun
                raise as_api_error(error) from error
            known = told(error, parsed.request) if parsed else as_api_error(error)
            return {"index": index, "status": "error", "error": known.message}
        media_type = MEDIA_TYPES[parsed.format]
        return {"index": index, "status": "success", "audio_data": audio, "media_type": media_type}

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(*pair)) for pair in enumerate(items)]
    except* ApiError as refused:
        raise refused.exceptions[0] from None
    return [task.result() for task in tasks]


async def _spoken(parsed: Parsed, app: Starlette, begun: asyncio.Event) -> str:
    """Base64 of the whole file. Waits while the queue is full, once the batch has begun."""
    worker = app.state.worker
    while True:
        try:
            ticket = worker.submit(parsed.request, delivery=parsed.delivery)
            break
        except Busy as error:
            if not begun.is_set():
                raise
            await asyncio.sleep(min(error.retry_after, 2))
    begun.set()
    with ticket:
        chunks = [chunk.pcm async for chunk in ticket]
    return await run_in_threadpool(_encoded, parsed.format, chunks, worker.defaults.sample_rate)


def _encoded(format: str, chunks: list[np.ndarray], rate: int) -> str:
    return base64.b64encode(whole(format, np.concatenate(chunks), rate)).decode()


def _answer(results: list[dict[str, Any]]) -> Response:
    """The JSON of it is made off the event loop: it may hold minutes of audio."""
    empty = {"audio_data": None, "media_type": None, "error": None}
    succeeded = sum(result["status"] == "success" for result in results)
    return JSONResponse(
        {
            "id": f"speech-batch-{secrets.token_hex(12)}",
            "results": [{**empty, **result} for result in results],
            "total": len(results),
            "succeeded": succeeded,
            "failed": len(results) - succeeded,
        }
    )


def batch_schema(settings: Settings) -> Schema:
    """The JSON Schema of a body: a list of speech requests beside what they share."""
    speech = speech_schema(settings)
    shared = {key: value for key, value in speech["properties"].items() if key != "input"}
    items = {"type": "array", "items": speech, "minItems": 1, "maxItems": MAX_ITEMS}
    return {
        "type": "object",
        "properties": {"items": items, **shared},
        "required": ["items"],
    }


ROUTES = [Route(PATH, speak_batch, methods=["POST"])]

RESULTS = {
    "type": "object",
    "required": ["id", "results", "total", "succeeded", "failed"],
    "properties": {
        "id": {"type": "string"},
        "results": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["index", "status", "audio_data", "media_type", "error"],
                "properties": {
                    "index": {"type": "integer"},
                    "status": {"enum": ["success", "error"]},
                    "audio_data": {
                        "type": ["string", "null"],
                        "description": "The whole file, in base64.",
                    },
                    "media_type": {"type": ["string", "null"]},
                    "error": {"type": ["string", "null"]},
                },
            },
        },
        "total": {"type": "integer"},
        "succeeded": {"type": "integer"},
        "failed": {"type": "integer"},
    },
}


def docs(settings: Settings) -> dict[str, Any]:
    """This part of the OpenAPI document."""
    operation = {
        "operationId": "speak_batch",
        "summary": "Say many texts",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": batch_schema(settings)}},
        },
        "responses": answers(
            json_answer("Each item's audio, or why there is none", RESULTS),
            *(400, 408, 413, 415, 429, 503),
        ),
    }
    return {PATH: {"post": operation}}
