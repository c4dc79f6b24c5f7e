"""``/v1/audio/speech/stream``, a WebSocket: text comes in as it is written, audio goes out.

The client sends ``session.config``, then ``input.text`` as often as it likes and ``input.done``
after each utterance, ``session.close`` in the end. The server answers each unit of text with
``audio.start``, the audio in binary messages, and ``audio.done``; each utterance with
``session.done``; what goes wrong with ``error``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from ...pieces import piece_seed
from ...types import HiggsError, InputError
from .. import encoders
from ..ticket import Busy, Ticket
from .batch_api import parse_in_thread
from .body import parse_object
from .errors import ApiError, as_api_error
from .fields import Parsed
from .guards import protocol
from .incoming import Incoming
from .speech import check_ready, finish_reason, to_its_end, told

PATH = "/v1/audio/speech/stream"
CONFIG_SECONDS = 10.0  # for the first message
IDLE_SECONDS = 30.0  # between messages, while nothing is said
MAX_CONFIG = 4 << 20  # bytes: it may hold a clip
MAX_MESSAGE = 128 << 10  # bytes of any other message
MAX_WAITING = 64 << 10  # characters that wait to be said
DEFAULT_FORMAT = "wav"
POLICY, TOO_BIG, INTERNAL = 1008, 1009, 1011  # how a WebSocket says why it closes


class Over(Exception):  # noqa: N818
    """The session has ended."""


@dataclass(frozen=True)
class Config:
    """What holds for the utterances that follow.

    Args:
        speech: a request whose text is still to come.
        streaming: audio is sent while it is made rather than by the unit.
    """

    speech: Parsed
    granularity: str
    streaming: bool


@dataclass(frozen=True)
class Unit:
    """A text to say: the ``index``-th of its utterance."""

    config: Config
    text: str
    utterance: int
    index: int

    @property
    def place(self) -> dict[str, int]:
        return {"utterance_index": self.utterance, "sentence_index": self.index}


@dataclass(frozen=True)
class Done:
    """An utterance that has been sent to its end."""

    utterance: int
    units: int


async def speak_stream(socket: WebSocket) -> None:
    """One connection; whoever may not use the server has been turned away before."""
    check_ready(socket.app.state)
    await socket.accept(subprotocol=protocol(socket))
    await Session(socket).run()


class Session:
    """Reads and speaks at the same time, so that a client that leaves is noticed at once."""

    def __init__(self, socket: WebSocket):
        self._socket, self._app = socket, socket.app
        self._state = socket.app.state
        self._config: Config | None = None
        self._incoming = Incoming()
        self._queue: asyncio.Queue[Unit | Done | None] = asyncio.Queue()
        self._waiting = 0  # characters in the queue
        self._speaking = False
        self._utterance = self._index = 0
        self._open = False  # whether an utterance has begun

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                listening = group.create_task(self._listen())
                await self._speak()
                listening.cancel()
        except ExceptionGroup as errors:  # leaving the group has given up what was being said
            _, unforeseen = errors.split((Over, WebSocketDisconnect))
            if unforeseen is not None:
                await self._fail(unforeseen.exceptions[0])

    # -- what comes in ----------------------------------------------------------------------------

    async def _listen(self) -> None:
        handlers = {
            "session.config": self._configure,
            "input.text": self._take,
            "input.done": self._finish,
            "session.close": self._close,
        }
        while True:
            raw = await self._receive()
            try:
                message = self._parsed(raw)
                kind = message.get("type")
                if not isinstance(kind, str) or kind not in handlers:
                    raise ApiError(400, f"The message type {kind!r:.60} is unknown.", param="type")
                if self._config is None and kind != "session.config":
                    raise ApiError(400, "The first message must be session.config.", param="type")
                await handlers[kind](message)
            except ApiError as error:
                await self._tell(error)
                if self._config is None:
                    await self._end(POLICY)

    async def _receive(self) -> str:
        """The next message; the time for it is up only while nothing is being said."""
        receiving = asyncio.ensure_future(self._socket.receive())
        seconds = CONFIG_SECONDS if self._config is None else IDLE_SECONDS
        try:
            while not (await asyncio.wait({receiving}, timeout=seconds))[0]:
                if not self._speaking:
                    message = f"No message came for {seconds:g} s."
                    await self._tell(ApiError(408, message, code="timeout"))
                    await self._end(POLICY)
            message = receiving.result()
        finally:
            receiving.cancel()
        if message["type"] == "websocket.disconnect":
            raise Over
        text = message.get("text")
        return text if text is not None else ""

    def _parsed(self, raw: str) -> dict[str, Any]:
        size = len(raw.encode("utf-8", "surrogatepass"))
        message = parse_object(raw) if 0 < size <= MAX_CONFIG else {}
        limit = MAX_CONFIG if message.get("type") == "session.config" else MAX_MESSAGE
        if size > limit:
            raise ApiError(413, f"The message has {size} bytes: at most {limit}.", code="too_large")
        if not raw:
            raise ApiError(400, "Messages are JSON texts; binary ones mean nothing here.")
        return message

    async def _configure(self, message: dict[str, Any]) -> None:
        if self._open:
            raise ApiError(400, "An utterance is under way: send input.done before session.config.")
        self._config = await config_of(message, self._app)
        self._incoming = Incoming(self._config.granularity)

    async def _take(self, message: dict[str, Any]) -> None:
        text = message.get("text")
        if not isinstance(text, str) or "\0" in text:
            raise ApiError(400, "text must be a text without NUL.", param="text")
        if self._waiting + len(self._incoming) + len(text) > MAX_WAITING:
            error = f"More than {MAX_WAITING} characters wait to be said: send them more slowly."
            await self._tell(ApiError(413, error, param="text", code="too_large"))
            await self._end(TOO_BIG)
        self._open = self._open or bool(text)
        self._say(self._incoming.feed(text))

    async def _finish(self, message: dict[str, Any]) -> None:
        self._say(self._incoming.flush())
        self._queue.put_nowait(Done(self._utterance, self._index))
        self._utterance, self._index, self._open = self._utterance + 1, 0, False

    async def _close(self, message: dict[str, Any]) -> None:
        self._queue.put_nowait(None)

    def _say(self, texts: list[str]) -> None:
        assert self._config is not None
        for text in texts:
            self._queue.put_nowait(Unit(self._config, text, self._utterance, self._index))
            self._waiting += len(text)
            self._index += 1

    # -- what goes out ----------------------------------------------------------------------------

    async def _speak(self) -> None:
        while (next_one := await self._queue.get()) is not None:
            self._speaking = True
            if isinstance(next_one, Done):
                place = {"utterance_index": next_one.utterance, "total_sentences": next_one.units}
                await self._socket.send_json({"type": "session.done", **place})
            else:
                self._waiting -= len(next_one.text)
                await self._answer(next_one)
            self._speaking = not self._queue.empty()
        await self._socket.close()

    async def _answer(self, unit: Unit) -> None:
        """Audio between its start and its end, whatever happens."""
        shown = {"sentence_text": unit.text, "format": unit.config.speech.format}
        rate = {"sample_rate": self._state.worker.defaults.sample_rate, "channels": 1}
        await self._socket.send_json({"type": "audio.start", **unit.place, **shown, **rate})
        sent, failed = 0, False
        end: dict[str, Any] = {}
        try:
            async with asyncio.timeout(self._state.settings.request_timeout):
                with await self._ticket(unit) as ticket:
                    async for data in self._audio(unit, ticket):
                        await self._socket.send_bytes(data)
                        sent += len(data)
                    end = {"seed": ticket.seed, "finish_reason": finish_reason(ticket)}
        except (ApiError, HiggsError, TimeoutError) as error:
            failed = True
            await self._tell(told(error, unit.config.speech.request), partial=sent > 0)
        end |= {"total_bytes": sent, "error": failed}
        await self._socket.send_json({"type": "audio.done", **unit.place, **end})

    async def _ticket(self, unit: Unit) -> Ticket:
        """Waits for its turn where the queue is full."""
        speech, most = unit.config.speech, self._state.settings.max_input_chars
        if len(unit.text) > most:
            message = f"The text has {len(unit.text)} characters: at most {most} are said at once."
            raise ApiError(400, message, param="text", code="too_large")
        seed = piece_seed(speech.request.seed or 0, 0, unit.index, 0)
        request = replace(speech.request, target_text=unit.text, seed=seed)
        while True:
            try:
                return self._state.worker.submit(request, delivery=speech.delivery)
            except Busy as error:
                await asyncio.sleep(min(error.retry_after, 2))

    async def _audio(self, unit: Unit, ticket: Ticket) -> AsyncIterator[bytes]:
        format, rate = unit.config.speech.format, self._state.worker.defaults.sample_rate
        if not unit.config.streaming:
            chunks = [chunk.pcm async for chunk in ticket]
            pcm = np.concatenate([np.zeros(0, np.float32), *chunks])
            yield await run_in_threadpool(encoders.whole, format, pcm, rate)
            return
        encoder = encoders.encoder(format, rate)
        try:
            async for chunk in ticket:
                if data := await to_its_end(encoder.push, chunk.pcm):
                    yield data
            if data := await to_its_end(encoder.finish):
                yield data
        finally:
            encoder.close()

    async def _tell(self, error: ApiError, *, partial: bool = False) -> None:
        told = error.body()["error"]
        more = {"partial_audio": True, "action": "discard"} if partial else {}
        await self._socket.send_json({**told, "type": "error", **more})

    async def _end(self, code: int) -> None:
        await self._socket.close(code)
        raise Over

    async def _fail(self, error: Exception) -> None:
        """Tell the client, and leave the error to the log."""
        with suppress(Exception):
            await self._tell(as_api_error(error))
            await self._socket.close(INTERNAL)
        raise error


async def config_of(message: dict[str, Any], app: Starlette) -> Config:
    """A session's choices.

    Raises:
        ApiError: 400, as for a request.
    """
    own = {"type", "split_granularity", "stream_audio"}
    streaming = message.get("stream_audio") or False
    granularity = message.get("split_granularity") or "none"
    if not isinstance(streaming, bool):
        raise ApiError(400, "stream_audio must be true or false.", param="stream_audio")
    try:
        Incoming(granularity)
    except InputError as error:
        raise ApiError(400, str(error), param="split_granularity") from error
    body = {key: value for key, value in message.items() if key not in own}
    body = {"response_format": DEFAULT_FORMAT} | {k: v for k, v in body.items() if v is not None}
    form = {"stream_format": "audio" if streaming else None, "stream": streaming}
    speech = await parse_in_thread({**body, **form, "input": "a"}, app)
    return Config(speech, granularity, streaming)


ROUTES = [WebSocketRoute(PATH, speak_stream)]
