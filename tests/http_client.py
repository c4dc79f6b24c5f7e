"""A server to talk to: the real application on a worker whose speech a test decides."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import numpy as np

from mlx_higgs.delivery import STEADY
from mlx_higgs.server.chat import ChatRequest
from mlx_higgs.server.http.app import create_app
from mlx_higgs.server.http.serving import Server, open_socket
from mlx_higgs.server.http.settings import Settings
from mlx_higgs.server.metrics import Metrics
from mlx_higgs.server.ticket import Ticket
from mlx_higgs.server.worker import Facts
from mlx_higgs.types import AnswerChunk, HiggsError, SpeechChunk
from mlx_higgs.voices.library import VoiceLibrary

RATE = 24_000
CHUNK = 12_000  # samples


def tone(seed: int, chunks: int = 3) -> np.ndarray:
    """What the stub says: sound that differs with the seed."""
    count = np.arange(chunks * CHUNK)
    return (0.3 * np.sin(2 * np.pi * (200 + seed % 700) * count / RATE)).astype(np.float32)


@dataclass
class StubWorker:
    """Speaks ``chunks`` chunks of a tone for every request.

    Attributes:
        fails_after: chunks before ``error`` is raised; None never.
        held: an event, or a semaphore: the worker waits for it before every chunk.
        requests, tickets: what came.
    """

    chunks: int = 3
    fails_after: int | None = None
    failure: HiggsError = field(default_factory=lambda: HiggsError("It went wrong."))
    refusal: HiggsError | None = None
    held: threading.Event | threading.Semaphore | None = None
    ready: bool = True
    error: str | None = None
    defaults: Facts = field(default_factory=Facts)
    tickets: list[Ticket] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)
    closed: bool = False
    max_batch: int = 8
    max_waiting: int = 8
    running: int = 0
    waiting: int = 0

    def start(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def submit(self, request, *, delivery=STEADY, long=True, on_admit=None, timeout=None) -> Ticket:
        if self.refusal is not None:
            raise self.refusal
        ticket = Ticket(replace(request, seed=request.seed or 0), delivery)
        self.tickets.append(ticket)
        self.options.append({"delivery": delivery, "long": long, "timeout": timeout})
        threading.Thread(target=self._speak, args=(ticket,), daemon=True).start()
        return ticket

    @property
    def requests(self) -> list:
        return [ticket.request for ticket in self.tickets]

    def _speak(self, ticket: Ticket) -> None:
        if isinstance(ticket.request, ChatRequest):
            return self._answer(ticket)
        for index, pcm in enumerate(np.split(tone(ticket.seed, self.chunks), self.chunks)):
            while not self._may_go():
                if ticket.outcome is not None:
                    return
            if index == self.fails_after:
                ticket.end("failed", self.failure)
                return
            ticket.put(SpeechChunk(pcm, RATE, 13 * (index + 1)))
        ticket.end("finished", stop_reason="eos")

    def _answer(self, ticket: Ticket) -> None:
        """Words, a tone in ``chunks`` chunks unless only words are wanted, words."""
        nothing, codes = np.zeros(0, np.float32), np.full((5, 8), 7, np.int32)
        steps = [AnswerChunk(nothing, RATE, 0, "Good ", None, 1, 11)]
        if ticket.request.speech is not False:
            waves = np.split(tone(ticket.seed, self.chunks), self.chunks) if self.chunks else []
            steps += [AnswerChunk(wave, RATE, 13 * (i + 1)) for i, wave in enumerate(waves)]
            steps += [AnswerChunk(nothing, RATE, 39, "", codes)] if self.chunks else []
        steps += [AnswerChunk(nothing, RATE, 39, "day.", None, 4, 11)]
        for index, chunk in enumerate(steps):
            while not self._may_go():
                if ticket.outcome is not None:
                    return
            if index == self.fails_after:
                ticket.end("failed", self.failure)
                return
            ticket.put(chunk)
        ticket.end("finished", stop_reason="eos")

    def _may_go(self) -> bool:
        if isinstance(self.held, threading.Semaphore):
            return self.held.acquire(timeout=0.01)
        return self.held is None or self.held.wait(0.01)


@contextmanager
def serving(worker: Any, library: VoiceLibrary, **settings: Any) -> Iterator[httpx.Client]:
    """A client of a server on loopback, which stands until the block is left."""
    with running(worker, library, **settings) as url, httpx.Client(base_url=url) as client:
        yield client


@contextmanager
def running(worker: Any, library: VoiceLibrary, **settings: Any) -> Iterator[str]:
    """The address of such a server."""
    chosen = Settings(**{"port": 0, "model_id": "tiny", **settings})
    server = Server(create_app(worker, library, chosen, Metrics()), chosen)
    socket = open_socket(chosen.host, chosen.port)
    thread = threading.Thread(target=server.run, args=([socket],), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def error_of(answer: httpx.Response) -> dict:
    """The error, in the one form there is."""
    assert answer.headers["content-type"] == "application/json"
    (error,) = answer.json().values()
    assert answer.json().keys() == {"error"}
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"].endswith((".", "..."))
    return error


def wait_until(true: Callable[[], Any], seconds: float = 20.0) -> None:
    """For what other threads do soon; fails if they do not."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
