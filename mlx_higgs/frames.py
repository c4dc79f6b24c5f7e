"""Prompt -> delayed rows: the autoregressive loop, one frame ahead of the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx
import numpy as np

from .delay import DelayState
from .sampling import (
    SamplingParams,
    frame_keys,
    sample_codes,
    seed_key,
    slide_window,
    start_window,
)
from .types import Audio, GenerationError, Prompt, StopReason

if TYPE_CHECKING:
    from .models.base import SpeechModel
    from .models.layers import KVCache

MAX_IDENTICAL_ROWS = 32  # 1.3 s of one and the same row is no speech
GOING, DONE, BROKEN = 0, 1, 2  # the last entry of a step's report


class StepState(NamedTuple):
    """One frame on the device; nothing of it is read to build the next."""

    row: mx.array  # int32 [K]
    delay: DelayState
    window: mx.array | None  # int32 [ras_window, K]
    report: mx.array  # int32 [K + 1]: the row and GOING, DONE or BROKEN


class Rows:
    """The delayed rows of one request, made while they are iterated.

    ``stop_reason`` is set once the iteration ends. The frame after the one being handed out is
    already under way on the device; the host reads each row once, one frame late.

    Args:
        prompt: ends where speech begins.
        params: ``params.seed`` must be set.
        cache: filled by an earlier part of the prompt, or None.
        max_identical_rows: stop a stream that repeats one row so often; 0 never does.
    """

    def __init__(
        self,
        model: SpeechModel,
        prompt: Prompt,
        params: SamplingParams,
        *,
        cache: list[KVCache] | None = None,
        max_identical_rows: int = MAX_IDENTICAL_ROWS,
    ):
        if params.seed is None:
            raise ValueError("Rows needs params.seed: draw one first.")
        self.stop_reason: StopReason | None = None
        self._model, self._prompt, self._params = model, prompt, params
        self._pattern = replace(model.delay, machine=params.machine)
        self._cache = model.make_cache() if cache is None else cache
        self._key = seed_key(params.seed)
        self._recent: deque[bytes] = deque(maxlen=max_identical_rows or None)
        self._max_identical = max_identical_rows

    def __iter__(self) -> Iterator[np.ndarray]:
        state = self._first()
        mx.async_eval(state.report)
        for frame in range(1, self._params.max_frames + 1):
            upcoming = self._next(state, frame)
            mx.async_eval(upcoming.report)
            *row, status = np.array(state.report)
            if status == BROKEN:
                raise GenerationError(
                    "The model's output is not a number: its weights or their width do not work."
                )
            yield np.array(row, dtype=np.int32)
            self.stop_reason = self._reason(row, status)
            if self.stop_reason is not None:
                return
            state = upcoming
        self.stop_reason = "length"

    def _first(self) -> StepState:
        """Prefill; the first row is all BOS (the reference's AUDIO_INIT)."""
        model, pattern = self._model, self._pattern
        x, is_audio = model.embed_prompt(self._prompt)
        model.hidden(x, self._cache, is_audio)
        row = mx.full((pattern.num_codebooks,), pattern.bos_id, dtype=mx.int32)
        every = self._params.machine == "transformers"  # it does not tell heard from spoken
        clips = [p.codes for p in self._prompt if isinstance(p, Audio) and (p.spoken or every)]
        heard = mx.concatenate([*(pattern.apply(codes) for codes in clips), row[None]])
        window = start_window(heard, self._params, pattern.codebook_size)
        return StepState(row, pattern.start(), window, _report(row, mx.array(GOING)))

    def _next(self, state: StepState, frame: int) -> StepState:
        model, pattern, params = self._model, self._pattern, self._params
        h = model.hidden(model.embed_rows(state.row[None, None]), self._cache)
        logits = model.audio_logits(h[0, -1])
        row = sample_codes(logits, params, frame_keys(self._key, frame), state.window)
        row, delay = pattern.advance(row, state.delay)
        window = slide_window(state.window, row, params, pattern.codebook_size)
        status = mx.where(delay.done, DONE, GOING)
        status = mx.where(mx.isfinite(mx.sum(logits)), status, BROKEN)
        return StepState(row, delay, window, _report(row, status))

    def _reason(self, row: list[int], status: int) -> StopReason | None:
        if status == DONE:
            return "eos"
        self._recent.append(np.array(row).tobytes())
        full = self._max_identical and len(self._recent) == self._max_identical
        return "repetition" if full and len(set(self._recent)) == 1 else None


def _report(row: mx.array, status: mx.array) -> mx.array:
    return mx.concatenate([row, status.astype(mx.int32)[None]])
