"""A stand-in for ``HiggsAudioServer``: a tiny talker in a real batch, whose rows are its samples.

As a program, a worker with jobs under way when the process ends: ``tiny_speaker.py HOW``.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
from tiny_model import tiny_model

from mlx_higgs.batch import Batch, BatchRows
from mlx_higgs.defaults import Defaults
from mlx_higgs.delivery import Delivery
from mlx_higgs.sampling import SamplingParams
from mlx_higgs.server.request import SpeechRequest
from mlx_higgs.types import HOP, SAMPLE_RATE, SpeechChunk, Text


class TinySpeaker:
    """Says ``max_new_frames`` rows for every request, in as many pieces as that takes.

    Attributes:
        before: called with the request before each of its chunks; what it raises, the job raises.
        threads: every thread that computed.
        made: rows of each request so far, by its text.
        jobs: weak references to all jobs.
    """

    sampling_rate = SAMPLE_RATE

    def __init__(self, seed: int):
        codec = SimpleNamespace(hop=HOP, decoder=lambda: SimpleNamespace(lookahead_samples=0))
        prompts = SimpleNamespace(NEEDS_WORDS=True)
        self.higgs = SimpleNamespace(
            model=tiny_model(seed), codec=codec, defaults=Defaults(), prompts=prompts, no_chat=None
        )
        self.before: Callable[[SpeechRequest], None] = lambda request: None
        self.threads: set[int] = set()
        self.made: dict[str, int] = {}
        self.jobs: list[weakref.ref] = []

    def warm_up(self) -> None:
        self.threads.add(threading.get_ident())

    def start(self, request: SpeechRequest, delivery: Delivery, batch: Batch) -> TinyJob:
        self.threads.add(threading.get_ident())
        job = TinyJob(self, request, delivery, batch)
        self.jobs.append(weakref.ref(job))
        return job

    start_long = start


class TinyJob:
    """With the surface of ``SpeechJob``."""

    def __init__(self, speaker: TinySpeaker, request: SpeechRequest, delivery: Delivery, batch):
        self.stop_reason = None
        self._speaker, self._request, self._batch = speaker, request, batch
        self._sizes, self._total = delivery.sizes(), request.max_new_frames or 40
        self._closed, self._piece = False, 0
        self._rows = self._join()

    def close(self) -> None:
        self._closed = True
        self._rows.close()

    def __iter__(self) -> Iterator[SpeechChunk]:
        rows = self._all_rows()
        done = 0
        while done < self._total and not self._closed:
            self._speaker.before(self._request)
            wanted = min(next(self._sizes), self._total - done)
            wave = [sound(row) for _, row in zip(range(wanted), rows, strict=False)]
            done += len(wave)
            if self._closed:
                return
            yield SpeechChunk(np.concatenate(wave), SAMPLE_RATE, done)
        self.stop_reason = "length"

    def _all_rows(self) -> Iterator[np.ndarray]:
        while not self._closed:
            for row in self._rows:
                self._speaker.threads.add(threading.get_ident())
                made = self._speaker.made
                made[self._request.target_text] = made.get(self._request.target_text, 0) + 1
                yield row
            if not self._closed:
                self._rows = self._join()

    def _join(self) -> BatchRows:
        prompt = [Text([1 + len(self._request.target_text) % 40, 2, self._piece % 40])]
        params = SamplingParams(max_frames=30, seed=(self._request.seed or 0) + self._piece)
        self._piece += 1
        return self._batch.join(prompt, params, max_identical_rows=0)


def sound(row: np.ndarray) -> np.ndarray:
    """A frame of samples that tells the row."""
    return np.resize(row.astype(np.float32) / 100, HOP)


def main(how: str) -> None:
    from mlx_higgs.server.worker import Worker

    worker = Worker(lambda: TinySpeaker(0))
    worker.start()
    worker.wait()
    for number in range(12):
        worker.submit(SpeechRequest(f"text {number}", max_new_frames=100_000))
    while not worker.running:
        time.sleep(0.01)
    print("running", flush=True)
    if how == "wait":
        threading.Event().wait()
    elif how == "raise":
        raise ValueError("told on purpose")


if __name__ == "__main__":
    main(sys.argv[1])
