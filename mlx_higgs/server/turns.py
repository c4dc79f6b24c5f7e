"""What is under way on the MLX thread: a frame of all, then a chunk of whoever has the rows."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import mlx.core as mx

from ..batch import Batch, BatchRows
from ..longform import LongJob
from ..types import GenerationError, HiggsError, SpeechChunk
from .chat import ChatJob, ChatRequest
from .failures import described
from .ticket import Ticket

if TYPE_CHECKING:
    from ..models.base import SpeechModel
    from .engine import HiggsAudioServer

LOG = logging.getLogger("mlx_higgs.server")


class SharedBatch(Batch):
    """A batch that tells when a frame was made, whoever asked for it, and who joins.

    Args:
        between: called after each frame. joined: called with the rows of a new member.
    """

    def __init__(
        self,
        model: SpeechModel,
        max_rows: int,
        *,
        between: Callable[[], None],
        joined: Callable[[BatchRows], None],
    ):
        super().__init__(model, max_rows)
        self._between, self._joined = between, joined

    def join(self, *arguments, **options) -> BatchRows:
        rows = super().join(*arguments, **options)
        self._joined(rows)
        return rows

    def step(self) -> None:
        super().step()
        self._between()


class Running:
    """A request whose turn has come.

    Args:
        ahead: rows beyond a piece's first chunk that it waits for.
    """

    def __init__(self, ticket: Ticket, ahead: int):
        self.ticket, self._ahead = ticket, ahead
        self.rows: BatchRows | None = None  # of the piece it is at
        self.speaking = False  # its chunk is being made right now
        self._job = None
        self._chunks: Iterator[SpeechChunk | None] = iter(())
        self._sizes: Iterator[int] = iter(())
        self._wanted = 0  # rows for its next chunk
        self._began = time.monotonic()
        self._idle, self._paused = 0.0, None  # seconds, since when: its reader had enough

    def begin(self, job) -> None:
        """``job`` is a ``LongJob``, ``ChatJob``, ``SpeechJob``, or acts as they do."""
        self._job = job
        self._chunks = job.turns() if isinstance(job, (LongJob, ChatJob)) else iter(job)
        self.ticket.begin(job.close)

    def joined(self, rows: BatchRows) -> None:
        """A piece of it is in the batch."""
        self.rows, self._sizes = rows, self.ticket.delivery.sizes()
        self._wanted = next(self._sizes) + self._ahead

    @property
    def over(self) -> bool:
        return self.ticket.outcome is not None

    @property
    def hungry(self) -> bool:
        """Whether there is something to do for it."""
        return self.over or not self.ticket.full

    @property
    def needs_frames(self) -> bool:
        return self.hungry and self.rows is not None and not self.rows.ended

    @property
    def due(self) -> bool:
        """Whether its next chunk can be made without waiting for frames, as far as is known."""
        rows = self.rows
        if self.speaking or self.over or self._rests():
            return False
        return rows is None or rows.ended or rows.num_ready >= self._wanted

    def chunk(self) -> None:
        """Make a chunk and hand it on, or begin a piece. Raises StopIteration at the end."""
        self.speaking = True
        try:
            rows = self.rows
            chunk = next(self._chunks)
            if self.rows is rows:
                self._wanted = next(self._sizes, 0)
            if chunk is not None:
                self.ticket.put(chunk)
        finally:
            self.speaking = False

    def finish(self) -> None:
        """It has said all."""
        assert self._job is not None
        self.ticket.spent = time.monotonic() - self._began - self._idle
        self.ticket.end("finished", stop_reason=self._job.stop_reason)

    def drop(self) -> None:
        """Let go of all it holds."""
        if self._job is not None:
            self._job.close()
        self._job, self._chunks, self.rows = None, iter(()), None

    def _rests(self) -> bool:
        now = time.monotonic()
        if self.ticket.full:
            self._paused = self._paused or now
            return True
        if self._paused is not None:
            self._idle, self._paused = self._idle + now - self._paused, None
        return False


class Turns:
    """All requests under way in one batch.

    Whoever steps the batch, be it a job in the middle of its chunk, the others are served after
    that very frame: those who are gone leave, those who wait are let in, and whoever has the rows
    for a chunk speaks. One job's failure is told to its client alone.

    Args:
        take: the next request in the queue, None if nobody waits. expire: ends those, waiting
            or under way, that take too long.
        log_text: log the messages of unforeseen errors, which may hold what was to be said.
    """

    def __init__(
        self,
        server: HiggsAudioServer,
        max_batch: int,
        *,
        take: Callable[[], Ticket | None],
        expire: Callable[[], None],
        log_text: bool = False,
    ):
        self._server, self._max, self._take, self._expire = server, max_batch, take, expire
        self._log_text = log_text
        model, codec = server.higgs.model, server.higgs.codec
        self._edge = model.delay.num_rows(0)
        self._context = -(-codec.decoder().lookahead_samples // codec.hop)
        self._running: list[Running] = []
        self._at: Running | None = None  # whose turn it is
        self._rested = True
        self._batch = SharedBatch(model, max_batch, between=self._between, joined=self._joined)

    def work(self, *, news: bool) -> bool:
        """A frame of all who need one. False: there is nothing to do until somebody reads or asks.

        Args:
            news: somebody waits in the queue.
        """
        if not any(one.hungry for one in self._running) and not (news and self._room):
            self._expire()
            self._rest()
            return False
        self._rested = False
        if any(one.needs_frames for one in self._running):
            try:
                self._batch.step()
                return True
            except Exception as error:  # told to all who were under way: they are at their ends
                LOG.error("The batch broke off: %s", described(error, self._log_text))
                mx.clear_cache()
        self._between()
        return True

    def close(self) -> None:
        """Let go of all; who is under way is told so."""
        for one in self._running:
            one.ticket.end("failed", GenerationError("The generation broke off: try again."))
            one.drop()
        self._running.clear()
        self._batch.close()
        give_back()

    # -- between two frames -----------------------------------------------------------------------

    def _between(self) -> None:
        self._expire()
        self._sweep()
        while self._room and (ticket := self._take()) is not None:
            self._admit(ticket)
        for one in list(self._running):
            if one.due:
                self._speak(one)
        self._sweep()

    @property
    def _room(self) -> bool:
        """A client that does not read keeps no place."""
        return sum(not one.ticket.full for one in self._running) < self._max

    def _sweep(self) -> None:
        gone = [one for one in self._running if one.over and not one.speaking]
        if not gone:
            return
        self._running = [one for one in self._running if one not in gone]
        for one in gone:
            with self._failures(one):
                one.drop()

    def _rest(self) -> None:
        """Once, when the last is gone."""
        if not (self._running or self._rested):
            give_back()
            self._rested = True

    def _admit(self, ticket: Ticket) -> None:
        right = ticket.delivery.right
        one = Running(ticket, self._edge + (self._context if right is None else right))
        self._running.append(one)
        with self._failures(one):
            if ticket.on_admit is not None:
                ticket.on_admit()
            one.begin(self._start(ticket))

    def _start(self, ticket: Ticket):
        """Its job. Conversations are no part of the batch: they have an id or a row in turn."""
        request, server = ticket.request, self._server
        if isinstance(request, ChatRequest):
            return server.start_chat(request, ticket.delivery)
        start = server.start_long if ticket.long else server.start
        return start(request, ticket.delivery, self._batch)

    def _speak(self, one: Running) -> None:
        with self._failures(one):
            try:
                one.chunk()
            except StopIteration:
                one.finish()

    def _joined(self, rows: BatchRows) -> None:
        if self._at is not None:
            self._at.joined(rows)

    @contextmanager
    def _failures(self, one: Running) -> Iterator[None]:
        """Whatever goes wrong is this request's alone."""
        outer, self._at = self._at, one
        try:
            yield
        except HiggsError as error:
            one.ticket.end("failed", error)
        except Exception as error:
            LOG.error("A request broke off: %s", described(error, self._log_text))
            told = GenerationError(f"The generation broke off ({type(error).__name__}): try again.")
            one.ticket.end("failed", told)
        finally:
            self._at = outer


def give_back() -> None:
    """Return freed memory to the system.

    glibc's allocator keeps the top of its heap, where MLX's arrays were on a CPU: 46 of 220 MB
    with the demo.
    """
    mx.clear_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
