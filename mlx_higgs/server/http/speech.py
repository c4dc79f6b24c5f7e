"""``POST /v1/audio/speech``: a text in, speech out, whole or while it is made."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ...types import HiggsError, StopReason
from ...voices import Reference
from .. import encoders
from ..chat import ChatRequest
from ..request import SpeechRequest
from ..ticket import Ticket
from .body import read_json
from .errors import ApiError, as_api_error
from .fields import Parsed, parse_speech, speech_schema
from .media import off_loop
from .openapi import answers
from .settings import Settings

T = TypeVar("T")
PATH = "/v1/audio/speech"
FINISH: dict[StopReason | None, str] = {"eos": "stop"}  # in OpenAI's words; others have ours
CLIPS = ("ref_audio", "references")
OWN_VOICE = "model"  # in X-Voice: no voice of the library
HEADERS = {
    name: {"schema": {"type": kind}}
    for name, kind in {
        "X-Sample-Rate": "integer",
        "X-Channels": "integer",
        "X-Bit-Depth": "integer",
        "X-Seed": "integer",
        "X-Model": "string",
        "X-Voice": "string",
        "X-Ignored-Fields": "string",
        "X-Finish-Reason": "string",
        "X-Audio-Seconds": "number",
    }.items()
}


async def speak(request: Request) -> Speaking:
    """Everything that can be refused is refused before the first byte."""
    state = request.app.state
    check_ready(state)
    body = await read_json(request)
    run = off_loop if any(body.get(name) is not None for name in CLIPS) else run_in_threadpool
    parsed = await run(parse_speech, body, request.app)
    return Speaking(parsed, state)


def check_ready(state: Any) -> None:
    """Raises ApiError (503) while the model loads, or if it could not."""
    if state.worker.ready:
        return
    if state.worker.error:
        raise ApiError(503, "The model could not be loaded: see the log.", code="model_failed")
    raise ApiError(503, "The model is being loaded.", code="loading", headers={"Retry-After": "5"})


class Speaking:
    """The answer, as ASGI calls it. The work on it stops when the client leaves."""

    def __init__(self, parsed: Parsed, state: Any):
        self._parsed, self._state, self._settings = parsed, state, state.settings
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parsed = self._parsed
        with self._state.worker.submit(parsed.request, delivery=parsed.delivery) as ticket:
            try:
                async with asyncio.timeout(self._settings.request_timeout):
                    await unless_left(receive, self._answer(ticket, send))
            except (ApiError, HiggsError, TimeoutError) as error:
                if not self._begun:
                    raise told(error, parsed.request) from error
                if parsed.form == "sse":
                    await self._end_with(told(error, parsed.request), send)
                # else it stays unfinished and the connection is cut: no player takes it for all

    async def _answer(self, ticket: Ticket, send: Send) -> None:
        if self._parsed.form == "whole":
            await self._send_whole(ticket, send)
        else:
            await self._send_chunks(ticket, send)

    async def _send_whole(self, ticket: Ticket, send: Send) -> None:
        chunks = [chunk.pcm async for chunk in ticket]
        pcm, rate = np.concatenate([np.zeros(0, np.float32), *chunks]), self._rate
        data = await run_in_threadpool(encoders.whole, self._parsed.format, pcm, rate)
        if ticket.outcome == "cancelled":
            raise ClientDisconnect
        more = {
            "Content-Length": str(len(data)),
            "X-Finish-Reason": finish_reason(ticket),
            "X-Audio-Seconds": f"{len(pcm) / rate:.3f}",
        }
        await self._start(ticket, send, more)
        await send({"type": "http.response.body", "body": data})

    async def _send_chunks(self, ticket: Ticket, send: Send) -> None:
        encoder = encoders.encoder(self._parsed.format, self._rate)
        try:
            chunks = aiter(ticket)
            chunk = await anext(chunks, None)  # what fails before the first sample has a status
            await self._start(ticket, send)
            while chunk is not None:
                await self._send_part(await to_its_end(encoder.push, chunk.pcm), send)
                chunk = await anext(chunks, None)
            await self._send_part(await to_its_end(encoder.finish), send)
        finally:
            encoder.close()
        last = self._event(done(self._parsed, ticket)) if self._parsed.form == "sse" else b""
        await send({"type": "http.response.body", "body": last})

    async def _send_part(self, data: bytes, send: Send) -> None:
        if not data:
            return
        if self._parsed.form == "sse":
            audio = base64.b64encode(data).decode()
            data = self._event({"type": "speech.audio.delta", "audio": audio})
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _end_with(self, error: ApiError, send: Send) -> None:
        event = self._event({"type": "speech.audio.error", **error.body()})
        with suppress(OSError):
            await send({"type": "http.response.body", "body": event})

    async def _start(self, ticket: Ticket, send: Send, more: dict[str, str] | None = None) -> None:
        headers = self._headers(ticket) | (more or {})
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self._begun = True
        await send({"type": "http.response.start", "status": 200, "headers": pairs})

    def _headers(self, ticket: Ticket) -> dict[str, str]:
        parsed, settings = self._parsed, self._settings
        kind = encoders.MEDIA_TYPES[parsed.format]
        if parsed.format == "pcm":
            kind += f";rate={self._rate};channels=1"
        return {
            "Content-Type": "text/event-stream" if parsed.form == "sse" else kind,
            "X-Sample-Rate": str(self._rate),
            "X-Channels": "1",
            "X-Bit-Depth": "16",
            "X-Seed": str(ticket.seed),
            "X-Model": quote(settings.model_id, safe="/"),
            "X-Voice": parsed.voice or OWN_VOICE,
            **left_out(parsed.ignored),
        }

    @property
    def _rate(self) -> int:
        return self._state.worker.defaults.sample_rate

    @staticmethod
    def _event(body: dict[str, Any]) -> bytes:
        return f"event: {body['type']}\ndata: {json.dumps(body)}\n\n".encode()


def left_out(ignored: tuple[str, ...]) -> dict[str, str]:
    """The header that says which fields changed nothing."""
    return {"X-Ignored-Fields": ", ".join(ignored)} if ignored else {}


def told(error: Exception, request: SpeechRequest | ChatRequest) -> ApiError:
    """What a client may know of a failure: no path of this machine."""
    out = as_api_error(error)
    for path in paths(request):
        out.message = out.message.replace(str(path), path.name)
    return out


def paths(request: SpeechRequest | ChatRequest) -> list[Path]:
    """The files its voices come from."""
    voices = request.voice if isinstance(request.voice, (list, tuple)) else ()
    return [voice.path for voice in voices if isinstance(voice, Reference)]


def finish_reason(ticket: Ticket) -> str:
    """``stop`` is the good one; ``length``, ``silence`` and ``repetition`` are not."""
    return FINISH.get(ticket.stop_reason, ticket.stop_reason or "unknown")


def done(parsed: Parsed, ticket: Ticket) -> dict[str, Any]:
    """The last event of a stream.

    What goes in is counted in characters, what comes out in frames of 40 ms: our tokens are those.
    """
    spent = {"input_tokens": len(parsed.request.target_text), "output_tokens": ticket.rows}
    usage = spent | {"total_tokens": sum(spent.values())}
    return {"type": "speech.audio.done", "usage": usage, "finish_reason": finish_reason(ticket)}


async def unless_left(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client leaves.

    Raises:
        ClientDisconnect: it left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def to_its_end(function: Callable[..., T], *arguments: Any) -> T:
    """On a thread; who is cancelled meanwhile waits for it, so that nobody else uses its things."""
    running = asyncio.ensure_future(run_in_threadpool(function, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


async def left(receive: Receive) -> None:
    """Returns when the client is gone; its body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


ROUTES = [Route(PATH, speak, methods=["POST"])]


def docs(settings: Settings) -> dict[str, Any]:
    """This part of the OpenAPI document."""
    audio = {"schema": {"type": "string", "format": "binary"}}
    kinds = dict.fromkeys(encoders.MEDIA_TYPES.values(), audio)
    kinds["text/event-stream"] = {"schema": {"type": "string"}}
    operation = {
        "operationId": "speak",
        "summary": "Say a text",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": speech_schema(settings)}},
        },
        "responses": answers(
            {"description": "The audio, or events with it", "headers": HEADERS, "content": kinds},
            400,
            408,
            413,
            415,
            429,
            503,
        ),
    }
    return {PATH: {"post": operation}}
