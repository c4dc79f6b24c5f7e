"""One request under way."""

from __future__ import annotations

import inspect
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator

import numpy as np

from .. import audio
from ..delivery import Delivery
from ..loading import Higgs
from ..memory import bounded
from ..sampling import SamplingParams
from ..streaming import MAX_SILENCE, RowSource, SpeechStream
from ..types import GenerationError, Prompt, Speech, SpeechChunk, StopReason
from .request import SpeechRequest

ADVICE = {"length": "Allow it more frames."}


class SpeechJob:
    """One request under way: iterate it, once, for its chunks, or run it to the end.

    Args:
        rows: what the model says to the prompt.
        started: ``time.perf_counter()`` when the work on it began.

    Attributes:
        first_audio: seconds from ``started`` to the first chunk; None before there is one.
    """

    def __init__(
        self,
        higgs: Higgs,
        request: SpeechRequest,
        prompt: Prompt,
        params: SamplingParams,
        rows: RowSource,
        delivery: Delivery,
        started: float,
    ):
        self.request, self.prompt, self.params = request, prompt, params
        self._higgs, self._sound, self._started = higgs, 0.0, started
        self._under_way: tuple[int, weakref.ref[Generator]] | None = None
        self.first_audio: float | None = None
        self.stream = SpeechStream(
            rows,
            higgs.codec,
            higgs.model.delay,
            delivery,
            max_silence=MAX_SILENCE if request.guards else 0,
        )

    @property
    def num_edge_rows(self) -> int:
        """Rows beyond one per frame: the delay pattern's ramps."""
        return self._higgs.model.delay.num_rows(0)

    @property
    def seed(self) -> int:
        """What draws this speech again."""
        assert self.params.seed is not None
        return self.params.seed

    @property
    def stop_reason(self) -> StopReason | None:
        """Why it ended; None while it is under way, and if it was given up."""
        return self.stream.stop_reason

    def on_row(self, callback: Callable[[int], None]) -> None:
        """Have ``callback`` told the number of rows so far after every one."""
        self.stream.on_row = callback

    def __iter__(self) -> Iterator[SpeechChunk]:
        """Chunks as they become final; closing the iterator closes the job.

        Raises:
            GenerationError: samples that are not numbers; at the end, if all was silence.
        """
        if self._under_way is not None:
            raise RuntimeError("A job is iterated once: start another for the same request.")
        chunks = self._chunks()
        self._under_way = threading.get_ident(), weakref.ref(chunks)
        return chunks

    def _chunks(self) -> Generator[SpeechChunk]:
        try:
            with bounded():
                for wave in self.stream:
                    self._hear(wave)
                    yield SpeechChunk(wave, self._higgs.codec.sample_rate, self.stream.num_rows)
        finally:
            self.stream.close()
        if self._sound < audio.SILENCE and self.stop_reason is not None:
            raise GenerationError(
                f"The model made no sound (seed {self.seed}, stopped by "
                f"{self.stop_reason} after {self.stream.num_rows} frames). "
                f"{ADVICE.get(self.stop_reason, 'Try another seed.')}"
            )

    def _hear(self, wave: np.ndarray) -> None:
        if self.first_audio is None:
            self.first_audio = time.perf_counter() - self._started
        peak = float(np.max(np.abs(wave)))
        if not np.isfinite(peak):
            raise GenerationError("The decoded waveform is not a number.")
        self._sound = max(self._sound, peak)

    def close(self) -> None:
        """Give it up, begun or not, from any thread: it ends within a frame, without a chunk more.

        What it held is free at once in the thread that iterates it; told from another, as soon as
        that one takes its next step.
        """
        self.stream.close()
        if self._under_way is None:
            return
        thread, chunks = self._under_way[0], self._under_way[1]()
        if chunks is None or thread != threading.get_ident():
            return
        if inspect.getgeneratorstate(chunks) != inspect.GEN_RUNNING:
            chunks.close()

    def run(self) -> Speech:
        """All chunks as one speech, faded as the request wants it.

        Raises:
            GenerationError: as the iteration; it was closed meanwhile.
        """
        return next(speech for speech in self.steps() if speech is not None)

    def steps(self) -> Iterator[Speech | None]:
        """None for every chunk made, then the whole speech."""
        chunks = [np.zeros(0, np.float32)]
        for chunk in self:
            chunks.append(chunk.pcm)
            yield None
        yield self.speech(np.concatenate(chunks))

    def speech(self, pcm: np.ndarray) -> Speech:
        """The result, once the iteration ended, of whose chunks ``pcm`` is the sum.

        Raises:
            GenerationError: the job was closed before.
        """
        if self.stop_reason is None:
            raise GenerationError(f"The speech was given up (seed {self.seed}).")
        rate, request, codes = self._higgs.codec.sample_rate, self.request, self.stream.codes
        return Speech(
            pcm=audio.fade(pcm, rate, request.fade_in_ms, request.fade_out_ms),
            sampling_rate=rate,
            num_frames_raw=self.stream.num_rows,
            num_frames_aligned=len(codes),
            stop_reason=self.stop_reason,
            seed=self.seed,
            seconds=time.perf_counter() - self._started,
            codes=codes,
        )
