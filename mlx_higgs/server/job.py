"""One request under way."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from .. import audio
from ..delivery import Delivery
from ..loading import Higgs
from ..memory import bounded
from ..sampling import SamplingParams
from ..streaming import MAX_SILENCE, RowSource, SpeechStream
from ..types import GenerationError, Prompt, Speech, SpeechChunk
from .request import SpeechRequest

ADVICE = {"length": "Allow it more frames."}


class SpeechJob:
    """One request under way: iterate it for its chunks, or run it to the end.

    Args:
        rows: what the model says to the prompt.
        started: ``time.perf_counter()`` when the work on it began.
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
        self._rows = rows
        self.stream = SpeechStream(
            rows,
            higgs.codec,
            higgs.model.delay,
            chunk_frames=delivery.chunk,
            max_silence=MAX_SILENCE if request.guards else 0,
        )

    @property
    def num_edge_rows(self) -> int:
        """Rows beyond one per frame: the delay pattern's ramps."""
        return self._higgs.model.delay.num_rows(0)

    def __iter__(self) -> Iterator[SpeechChunk]:
        """Chunks as they become final.

        Raises:
            GenerationError: samples that are not numbers; at the end, if all was silence.
        """
        with bounded():
            for wave in self.stream:
                peak = float(np.max(np.abs(wave)))
                if not np.isfinite(peak):
                    raise GenerationError("The decoded waveform is not a number.")
                self._sound = max(self._sound, peak)
                yield SpeechChunk(wave, self._higgs.codec.sample_rate, self.stream.num_rows)
        if self._sound < audio.SILENCE:
            raise GenerationError(
                f"The model made no sound (seed {self.params.seed}, stopped by "
                f"{self.stream.stop_reason} after {self.stream.num_rows} frames). "
                f"{ADVICE.get(self.stream.stop_reason or '', 'Try another seed.')}"
            )

    def close(self) -> None:
        """Give it up, begun or not."""
        self._rows.close()

    def run(self) -> Speech:
        """All chunks as one speech, faded as the request wants it.

        Raises:
            GenerationError: as the iteration.
        """
        return next(speech for speech in self.steps() if speech is not None)

    def steps(self) -> Iterator[Speech | None]:
        """None for every chunk made, then the whole speech."""
        chunks = [np.zeros(0, np.float32)]
        for chunk in self:
            chunks.append(chunk.pcm)
            yield None
        yield self._speech(np.concatenate(chunks))

    def _speech(self, pcm: np.ndarray) -> Speech:
        rate, request, codes = self._higgs.codec.sample_rate, self.request, self.stream.codes
        assert self.stream.stop_reason is not None
        assert self.params.seed is not None
        return Speech(
            pcm=audio.fade(pcm, rate, request.fade_in_ms, request.fade_out_ms),
            sampling_rate=rate,
            num_frames_raw=self.stream.num_rows,
            num_frames_aligned=len(codes),
            stop_reason=self.stream.stop_reason,
            seed=self.params.seed,
            seconds=time.perf_counter() - self._started,
            codes=codes,
        )
