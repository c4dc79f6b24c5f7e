"""``POST /v1/chat/completions``: a conversation in, its answer out in words and speech."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ...types import AnswerChunk, HiggsError, Spoken
from .. import encoders
from ..chat import Gathered
from ..messages import Message
from ..ticket import Ticket
from .body import read_json
from .chat_fields import ParsedChat, chat_schema, has_clips, parse_chat
from .errors import ApiError
from .media import off_loop
from .openapi import answers as answers_of
from .settings import Settings
from .speech import HEADERS, OWN_VOICE, check_ready, left_out, to_its_end, told, unless_left

PATH = "/v1/chat/completions"
SHOWN = ("X-Seed", "X-Model", "X-Voice", "X-Sample-Rate", "X-Ignored-Fields", "X-Finish-Reason")


async def complete(request: Request) -> Completing:
    """Everything that can be refused is refused before the first byte."""
    state = request.app.state
    check_ready(state)
    body = await read_json(request)
    run = off_loop if has_clips(body) else run_in_threadpool
    return Completing(await run(parse_chat, body, request.app), state)


class Completing:
    """The answer, as ASGI calls it. The work on it stops when the client leaves."""

    def __init__(self, parsed: ParsedChat, state: Any):
        self._parsed, self._state = parsed, state
        self._begun = False
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self._audio_id, self._expires = state.answers.new_id()
        self._gathered = Gathered()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parsed, state = self._parsed, self._state
        with state.worker.submit(parsed.request, delivery=parsed.delivery) as ticket:
            try:
                async with asyncio.timeout(state.settings.request_timeout):
                    answer = self._stream if parsed.stream else self._send_whole
                    await unless_left(receive, answer(ticket, send))
            except (ApiError, HiggsError, TimeoutError) as error:
                if not self._begun:
                    raise told(error, parsed.request) from error
                with suppress(OSError):  # no [DONE]: nobody takes half for all
                    body = _event(told(error, parsed.request).body())
                    await send({"type": "http.response.body", "body": body})

    # -- whole ------------------------------------------------------------------------------------

    async def _send_whole(self, ticket: Ticket, send: Send) -> None:
        async for chunk in ticket:
            self._gathered.add(_answer_chunk(chunk))
        if ticket.outcome == "cancelled":
            raise ClientDisconnect
        body = await run_in_threadpool(self._completion, ticket)
        self._keep()
        more = {"Content-Length": str(len(body)), "X-Finish-Reason": ticket.stop_reason or ""}
        await self._start(ticket, send, more)
        await send({"type": "http.response.body", "body": body})

    def _completion(self, ticket: Ticket) -> bytes:
        """Its audio is encoded off the event loop."""
        text = self._gathered.text
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._speaks and self._gathered.spoken:
            message |= {"content": None, "audio": self._audio(text)}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": finish_reason(ticket),
        }
        return json.dumps(self._told("chat.completion", [choice], self._usage())).encode()

    def _audio(self, text: str) -> dict[str, Any]:
        data = encoders.whole(self._parsed.format, self._gathered.pcm, self._rate)
        return {
            "id": self._audio_id,
            "data": base64.b64encode(data).decode(),
            "expires_at": self._expires,
            "transcript": text,
        }

    # -- while it is made -------------------------------------------------------------------------

    async def _stream(self, ticket: Ticket, send: Send) -> None:
        encoder = encoders.encoder(self._parsed.format, self._rate) if self._speaks else None
        try:
            chunks = aiter(ticket)
            chunk = await anext(chunks, None)  # what fails before the first id has a status
            await self._start(ticket, send)
            await self._send_delta(send, {"role": "assistant", "content": ""})
            while chunk is not None:
                await self._send_chunk(_answer_chunk(chunk), encoder, send)
                chunk = await anext(chunks, None)
            if encoder is not None and self._gathered.spoken:
                await self._send_samples(await to_its_end(encoder.finish), send)
        finally:
            if encoder is not None:
                encoder.close()
        if ticket.outcome != "cancelled":
            await self._send_end(ticket, send)

    async def _send_chunk(
        self, chunk: AnswerChunk, encoder: encoders.Encoder | None, send: Send
    ) -> None:
        self._gathered.add(chunk)
        if chunk.text and encoder is not None:
            await self._send_audio(send, {"transcript": chunk.text})
        elif chunk.text:
            await self._send_delta(send, {"content": chunk.text})
        if len(chunk.pcm) and encoder is not None:
            await self._send_samples(await to_its_end(encoder.push, chunk.pcm), send)

    async def _send_samples(self, data: bytes, send: Send) -> None:
        if data:
            await self._send_audio(send, {"data": base64.b64encode(data).decode()})

    async def _send_audio(self, send: Send, part: dict[str, Any]) -> None:
        await self._send_delta(send, {"audio": {"id": self._audio_id, **part}})

    async def _send_delta(self, send: Send, delta: dict[str, Any], finish: Any = None) -> None:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        await self._send_event(send, self._told("chat.completion.chunk", [choice]))

    async def _send_end(self, ticket: Ticket, send: Send) -> None:
        if self._speaks and self._gathered.spoken:
            self._keep()
            await self._send_delta(send, {"audio": {"expires_at": self._expires}})
        elif self._speaks and self._gathered.text:  # no sound came: the words are the answer
            await self._send_delta(send, {"content": self._gathered.text})
        await self._send_delta(send, {}, finish_reason(ticket))
        if self._parsed.with_usage:
            await self._send_event(send, self._told("chat.completion.chunk", [], self._usage()))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _send_event(self, send: Send, body: dict[str, Any]) -> None:
        await send({"type": "http.response.body", "body": _event(body), "more_body": True})

    # -- both -------------------------------------------------------------------------------------

    @property
    def _speaks(self) -> bool:
        return self._parsed.request.speech is not False

    @property
    def _rate(self) -> int:
        return self._state.worker.defaults.sample_rate

    def _told(self, kind: str, choices: list, usage: Any = None) -> dict[str, Any]:
        about = {"id": self._id, "object": kind, "created": self._created}
        body = {**about, "model": self._state.settings.model_id, "choices": choices}
        return body | {"usage": usage} if usage else body

    def _usage(self) -> dict[str, Any]:
        """Ids and rows; a row is a frame of 40 ms."""
        last = self._gathered.last
        written, rows = (last.tokens, last.frames) if last else (0, 0)
        asked = last.prompt_tokens if last else 0
        return {
            "prompt_tokens": asked,
            "completion_tokens": written + rows,
            "total_tokens": asked + written + rows,
            "completion_tokens_details": {"text_tokens": written, "audio_tokens": rows},
        }

    def _keep(self) -> None:
        parts = [
            part.codes if isinstance(part, Spoken) else part
            for part in self._gathered.parts
            if isinstance(part, str) or len(part.codes)
        ]
        if parts and self._gathered.spoken:
            self._state.answers.keep(self._audio_id, Message("assistant", tuple(parts)))

    async def _start(self, ticket: Ticket, send: Send, more: dict[str, str] | None = None) -> None:
        parsed = self._parsed
        headers = {
            "Content-Type": "text/event-stream" if parsed.stream else "application/json",
            "X-Sample-Rate": str(self._rate),
            "X-Seed": str(ticket.seed),
            "X-Model": quote(self._state.settings.model_id, safe="/"),
            "X-Voice": parsed.voice or OWN_VOICE,
            **left_out(parsed.ignored),
            **(more or {}),
        }
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self._begun = True
        await send({"type": "http.response.start", "status": 200, "headers": pairs})


def finish_reason(ticket: Ticket) -> str:
    """In OpenAI's words: whatever cut it short is ``length``; X-Finish-Reason says what it was."""
    return "stop" if ticket.stop_reason == "eos" else "length"


def _answer_chunk(chunk: Any) -> AnswerChunk:
    assert isinstance(chunk, AnswerChunk)
    return chunk


def _event(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


ROUTES = [Route(PATH, complete, methods=["POST"])]

COMPLETION = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "chat.completion"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "choices": {"type": "array", "items": {"type": "object"}},
        "usage": {"type": "object"},
    },
}


def docs(settings: Settings) -> dict[str, Any]:
    """This part of the OpenAPI document."""
    good = {
        "description": "The answer, or events with it",
        "headers": {name: HEADERS[name] for name in SHOWN},
        "content": {
            "application/json": {"schema": COMPLETION},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
    operation = {
        "operationId": "chat",
        "summary": "Answer a conversation in words and speech",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": chat_schema(settings)}},
        },
        "responses": answers_of(good, 400, 408, 413, 415, 429, 503),
    }
    return {PATH: {"post": operation}}
