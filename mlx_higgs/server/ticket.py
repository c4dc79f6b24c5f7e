"""One request between the thread that makes its audio and the client that reads it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

from ..types import GenerationError, HiggsError, SpeechChunk, StopReason

if TYPE_CHECKING:
    from ..delivery import Delivery
    from .chat import ChatRequest
    from .metrics import Outcome
    from .request import SpeechRequest


class Unavailable(HiggsError):  # noqa: N818
    """The worker takes nothing: it still loads, could not, or is being closed.

    Attributes:
        retry_after: seconds until it is worth another try; None: never.
    """

    def __init__(self, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.retry_after = retry_after


class Busy(HiggsError):  # noqa: N818
    """The queue is full.

    Attributes:
        retry_after: whole seconds, from the speed measured so far.
    """

    def __init__(self, message: str, retry_after: int):
        super().__init__(message)
        self.retry_after = retry_after


class TimedOut(GenerationError):  # noqa: N818
    """The request took longer than a request may."""


class Ticket:
    """A request that was taken: iterate it, with ``async for`` or ``for``, for its chunks.

    One reader, in one of the two ways. Leaving it as a context manager cancels it if it is not
    over. What waits to be read is bounded: work stops while ``buffer`` seconds of audio do.

    Raises, while it is iterated:
        InputError: a request that cannot be met. GenerationError: no usable speech came (also
        ``TimedOut``). Unavailable: the worker was closed. After ``cancel`` it just ends.

    Attributes:
        seed: drawn where the request left it open.
        stop_reason: set when the speech is over.
        rows: delayed rows of the speech so far, 25 a second.
        outcome: ``finished``, ``cancelled``, ``failed`` or ``timeout`` at the end.
    """

    def __init__(
        self,
        request: SpeechRequest | ChatRequest,
        delivery: Delivery,
        *,
        long: bool = True,
        on_admit: Callable[[], None] | None = None,
        on_end: Callable[[Ticket], None] | None = None,
        wake: Callable[[], None] = lambda: None,
        buffer: float = 30.0,
        timeout: float | None = None,
    ):
        assert request.seed is not None
        self.request, self.delivery, self.long, self.on_admit = request, delivery, long, on_admit
        self.seed: int = request.seed
        self.stop_reason: StopReason | None = None
        self.outcome: Outcome | None = None
        self.rows = 0
        self.asked = time.monotonic()
        self.deadline = None if timeout is None else self.asked + timeout
        self.first_audio: float | None = None  # seconds from `asked`
        self.audio = 0.0  # seconds made
        self.spent: float | None = None  # seconds of work, if it finished
        self._on_end, self._wake, self._buffer = on_end, wake, buffer
        self._changed = threading.Condition()
        self._chunks: deque[SpeechChunk] = deque()
        self._held = 0.0  # seconds of audio not read yet
        self._error: HiggsError | None = None
        self._reader: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._stop: Callable[[], None] | None = None

    # -- the reader's side ------------------------------------------------------------------------

    def cancel(self) -> None:
        """Give it up, from any thread: its work stops at the next frame. What is over stays so."""
        self.end("cancelled")

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[SpeechChunk]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._chunks or self.outcome)
            chunk = self._take()
            if chunk is None:
                return
            yield chunk

    async def __aiter__(self) -> AsyncIterator[SpeechChunk]:
        news = asyncio.Event()
        self._reader = asyncio.get_running_loop(), news
        try:
            while True:
                news.clear()
                chunk = self._take()
                if chunk is not None:
                    yield chunk
                elif self._over:
                    return
                else:
                    await news.wait()
        finally:
            self._reader = None

    def _take(self) -> SpeechChunk | None:
        """The next chunk; None if there is none now. Raises what ended the request."""
        with self._changed:
            if self._chunks:
                chunk = self._chunks.popleft()
                was_full = self.full
                self._held -= _seconds(chunk)
                wake = was_full and not self.full
            elif self._error is not None:
                raise self._error
            else:
                return None
        if wake:
            self._wake()
        return chunk

    @property
    def _over(self) -> bool:
        with self._changed:
            return self.outcome is not None and not self._chunks and self._error is None

    # -- the worker's side ------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether the reader has enough for now."""
        return self._held >= self._buffer

    def begin(self, stop: Callable[[], None]) -> None:
        """The work has begun; ``stop`` ends it from any thread."""
        with self._changed:
            self._stop = stop
            over = self.outcome is not None
        if over:
            stop()

    def put(self, chunk: SpeechChunk) -> None:
        """Hand on a chunk; nothing after the end."""
        with self._changed:
            if self.outcome is not None:
                return
            if self.first_audio is None and len(chunk.pcm):
                self.first_audio = time.monotonic() - self.asked
            self.rows = chunk.frames
            self.audio += _seconds(chunk)
            self._held += _seconds(chunk)
            self._chunks.append(chunk)
            self._changed.notify_all()
        self._tell_reader()

    def end(
        self,
        outcome: Outcome,
        error: HiggsError | None = None,
        stop_reason: StopReason | None = None,
    ) -> bool:
        """It is over, for the first reason that comes; whether this was it."""
        with self._changed:
            if self.outcome is not None:
                return False
            self.outcome, self._error, self.stop_reason = outcome, error, stop_reason
            if outcome == "cancelled":
                self._chunks.clear()
                self._held = 0.0
            stop, self._stop = self._stop, None
            self._changed.notify_all()
        if stop is not None:
            stop()
        if self._on_end is not None:
            self._on_end(self)
        self._tell_reader()
        return True

    def _tell_reader(self) -> None:
        reader = self._reader
        if reader is None:
            return
        loop, news = reader
        try:
            loop.call_soon_threadsafe(news.set)
        except RuntimeError:  # the loop is closed, and with it whoever read
            self._reader = None
            self.cancel()


def _seconds(chunk: SpeechChunk) -> float:
    return len(chunk.pcm) / chunk.sampling_rate
