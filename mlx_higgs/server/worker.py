"""The one thread that owns MLX, and the queue in front of it.

Everybody else hands in requests and reads NumPy samples. The thread loads the model, warms it up,
runs all requests in one batch, and is joined before the interpreter ends: a process that exits
while MLX computes aborts.
"""

from __future__ import annotations

import atexit
import logging
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ..delivery import STEADY, Delivery
from ..types import SAMPLE_RATE, HiggsError, InputError
from .ending import join
from .failures import described
from .ticket import Busy, Ticket, TimedOut, Unavailable

if TYPE_CHECKING:
    from .chat import ChatRequest
    from .engine import HiggsAudioServer
    from .metrics import Metrics
    from .request import SpeechRequest

__all__ = ["Busy", "Facts", "Ticket", "TimedOut", "Unavailable", "Worker"]

LOADING = 5  # seconds until it is worth asking again whether the model is there
NEWEST = 0.2  # what the last request weighs in the mean of their durations
LOG = logging.getLogger("mlx_higgs.server")


@dataclass(frozen=True)
class Facts:
    """What may be known of the loaded checkpoint on other threads; no arrays."""

    sample_rate: int = SAMPLE_RATE
    clones: bool = True
    notice: str | None = None
    words: tuple[str, ...] | None = None
    needs_words: bool = True  # a clip's
    no_chat: str | None = None  # why it does not converse

    @classmethod
    def of(cls, server: HiggsAudioServer) -> Facts:
        defaults = server.higgs.defaults
        words = None if defaults.words is None else tuple(defaults.words)
        needs = server.higgs.prompts.NEEDS_WORDS
        no_chat = server.higgs.no_chat
        return cls(server.sampling_rate, defaults.clones, defaults.notice, words, needs, no_chat)


class Worker:
    """Requests from any thread, speech from one.

    Args:
        load: makes the server; runs on the worker's thread.
        max_batch: requests that speak at once. max_waiting: requests that wait for their turn.
        timeout: seconds a request may take, from when it came; None: any time.
        buffer: seconds of audio made ahead of a client that reads slowly.
        metrics: told of every request that ends and of every refusal.
        log_text: log the messages of unforeseen errors, which may hold what was to be said.

    Attributes:
        error: why the model could not be loaded.
        defaults: what is known of it (before it is loaded: of most).
    """

    def __init__(
        self,
        load: Callable[[], HiggsAudioServer],
        *,
        max_batch: int = 8,
        max_waiting: int = 8,
        timeout: float | None = 600.0,
        buffer: float = 30.0,
        metrics: Metrics | None = None,
        log_text: bool = False,
    ):
        _check(max_batch, max_waiting, timeout, buffer)
        self.max_batch, self.max_waiting = max_batch, max_waiting
        self.error: str | None = None
        self.defaults = Facts()
        self._load, self._timeout, self._buffer, self._metrics = load, timeout, buffer, metrics
        self._log_text = log_text
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._settled = threading.Event()  # loaded, or not to be
        self._queue: deque[Ticket] = deque()
        self._open: set[Ticket] = set()  # in the queue or under way
        self._seconds: float | None = None  # a request takes
        self._ready = self._closing = False
        self._thread = threading.Thread(target=self._run, name="mlx", daemon=True)
        if metrics is not None:
            metrics.watch(waiting=lambda: self.waiting, running=lambda: self.running)

    # -- from any thread --------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self._ready

    @property
    def sample_rate(self) -> int:
        return self.defaults.sample_rate

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests under way."""
        with self._lock:
            return len(self._open) - len(self._queue)

    def start(self) -> None:
        """Load the model, on the thread; ``wait`` for it, or ask ``ready``."""
        atexit.register(self.close)  # daemon threads live until then, and no longer
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Until the model is loaded or cannot be; whether it is."""
        self._settled.wait(seconds)
        return self.ready

    def submit(
        self,
        request: SpeechRequest | ChatRequest,
        *,
        delivery: Delivery = STEADY,
        long: bool = True,
        on_admit: Callable[[], None] | None = None,
        timeout: float | None = None,
    ) -> Ticket:
        """A request more; what it cannot have is told by its ticket.

        Args:
            long: split a long text into pieces.
            on_admit: called on the worker's thread when its turn comes; must not wait.
            timeout: seconds; None: the worker's.

        Raises:
            Busy: the queue is full. Unavailable: the model is not loaded.
        """
        seed = secrets.randbelow(2**32) if request.seed is None else request.seed
        ticket = Ticket(
            replace(request, seed=seed),
            delivery,
            long=long,
            on_admit=on_admit,
            on_end=self._ended,
            wake=self._wake.set,
            buffer=self._buffer,
            timeout=self._timeout if timeout is None else timeout,
        )
        with self._lock:
            self._check_open()
            if len(self._open) >= self.max_batch + self.max_waiting:
                self._refuse()
            self._open.add(ticket)
            self._queue.append(ticket)
        self._wake.set()
        return ticket

    def close(self) -> None:
        """End all requests and the thread, and wait for it; any number of times."""
        with self._lock:
            self._closing, self._ready = True, False
            open_now = list(self._open)
        for ticket in open_now:
            ticket.end("failed", Unavailable("The server is shutting down."))
        self._wake.set()
        atexit.unregister(self.close)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            join(self._thread)

    def _check_open(self) -> None:
        if self.error is not None:
            raise Unavailable(f"The model could not be loaded: {self.error}")
        if self._closing:
            raise Unavailable("The server is shutting down.")
        if not self._ready:
            raise Unavailable("The model is still being loaded.", LOADING)

    def _refuse(self) -> None:
        if self._metrics is not None:
            self._metrics.refused()
        seconds = self._retry_after()
        raise Busy(
            f"{self.max_batch} requests are under way and {self.max_waiting} wait: that is all "
            f"there is room for. Try again in {seconds} s.",
            seconds,
        )

    def _retry_after(self) -> int:
        """Until those who wait now have had their turn, as far as the last requests tell."""
        turns = max(1, len(self._queue)) / self.max_batch
        return max(1, math.ceil((self._seconds or 1.0) * turns))

    def _ended(self, ticket: Ticket) -> None:
        """Told by every ticket, once, on the thread that ended it."""
        with self._lock:
            self._open.discard(ticket)
            with suppress(ValueError):
                self._queue.remove(ticket)
            if ticket.spent is not None:
                before = ticket.spent if self._seconds is None else self._seconds
                self._seconds = (1 - NEWEST) * before + NEWEST * ticket.spent
        self._wake.set()
        if self._metrics is not None:
            self._metrics.request(ticket)

    # -- on the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            server = self._loaded()
            if server is not None:
                self._speak(server)
        except Exception as error:
            LOG.error("The worker broke off: %s", described(error, self._log_text))
            self.error = "The worker broke off: see the log."
        finally:
            self._ready = False
            self._settled.set()
            for ticket in list(self._open):
                ticket.end("failed", Unavailable(self.error or "The server is shutting down."))

    def _loaded(self) -> HiggsAudioServer | None:
        try:
            server = self._load()
            server.warm_up()
        except HiggsError as error:
            self.error = str(error)
            return None
        except Exception as error:  # whatever it is, the process goes on; no request came yet
            LOG.exception("The model could not be loaded.")
            self.error = f"{type(error).__name__}: {error}"
            return None
        self.defaults = Facts.of(server)
        return server

    def _speak(self, server: HiggsAudioServer) -> None:
        from .turns import Turns

        begin = partial(
            Turns,
            server,
            self.max_batch,
            take=self._next,
            expire=self._expire,
            log_text=self._log_text,
        )
        turns = begin()
        try:
            self._tell_ready()
            while True:
                self._wake.clear()  # first: what happens from here on is seen
                if self._closing:
                    break
                try:
                    if not turns.work(news=bool(self._queue)):
                        self._wake.wait(self._patience())
                except Exception as error:
                    told = described(error, self._log_text)
                    LOG.error("The requests under way broke off: %s", told)
                    turns.close()
                    turns = begin()
        finally:
            turns.close()

    def _tell_ready(self) -> None:
        with self._lock:
            self._ready = not self._closing
        if self._metrics is not None:
            self._metrics.loaded()
        self._settled.set()

    def _next(self) -> Ticket | None:
        with self._lock:
            return self._queue.popleft() if self._queue and not self._closing else None

    def _expire(self) -> None:
        """End those that take too long, in the queue or under way."""
        now = time.monotonic()
        with self._lock:
            late = [one for one in self._open if one.deadline is not None and now >= one.deadline]
        for ticket in late:
            spent = f"{now - ticket.asked:.0f} s"
            error = TimedOut(f"The request took longer than a request may: it was given {spent}.")
            ticket.end("timeout", error)

    def _patience(self) -> float | None:
        """Seconds until the first of them takes too long; None: nobody will."""
        with self._lock:
            ends = [one.deadline for one in self._open if one.deadline is not None]
        return max(0.0, min(ends) - time.monotonic()) if ends else None


def _check(max_batch: int, max_waiting: int, timeout: float | None, buffer: float) -> None:
    if max_batch < 1:
        raise InputError(f"max_batch is {max_batch}: it must be 1 or more.")
    if max_waiting < 0:
        raise InputError(f"max_waiting is {max_waiting}: it must be 0 or more.")
    if timeout is not None and not timeout > 0:
        raise InputError(f"The timeout is {timeout} s: it must be above 0.")
    if not buffer > 0:
        raise InputError(f"The buffer is {buffer} s: it must be above 0.")
