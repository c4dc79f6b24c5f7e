"""Prompt -> delayed rows: the autoregressive loop, one frame ahead of the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from .models.cache import KVCache, Slots
from .sampling import SamplingParams, start_window
from .step import (
    BROKEN,
    DONE,
    AudioStep,
    CompiledStep,
    Loop,
    StepState,
    check_loop,
    fastest_loop,
    first_state,
)
from .types import Audio, GenerationError, Prompt, StopReason

if TYPE_CHECKING:
    from .delay import DelayPattern
    from .models.base import SpeechModel
    from .prefix import Prefix

PREFILL_POSITIONS = 256  # at once: ten times as many would need ten times the memory
MAX_IDENTICAL_ROWS = 32  # 1.3 s of one and the same row is no speech


def prefill(model: SpeechModel, prompt: Prompt, prefix: Prefix | None = None) -> list[KVCache]:
    """The caches after a prompt, of which ``prefix`` is known already."""
    return read_prompt(model, prompt, prefix)[0]


def read_prompt(
    model: SpeechModel, prompt: Prompt, prefix: Prefix | None = None
) -> tuple[list[KVCache], mx.array | None]:
    """The caches after a prompt, of which ``prefix`` is known already.

    Returns:
        And the last hidden state ``[1, 1, D]``; None where nothing was left to compute.
    """
    h = None
    caches = model.make_cache() if prefix is None else prefix.start()
    rest = prompt if prefix is None else prompt[prefix.parts :]
    if not rest:
        return caches, h
    x, is_audio = model.embed_prompt(rest)
    for start in range(0, x.shape[1], PREFILL_POSITIONS):
        some = slice(start, start + PREFILL_POSITIONS)
        mx.eval([(cache.keys, cache.values) for cache in caches if cache.keys is not None])
        h = model.hidden(x[:, some], caches, is_audio[:, some])[:, -1:]
    return caches, h


def begin(
    model: SpeechModel, prompt: Prompt, params: SamplingParams, prefix: Prefix | None
) -> tuple[list[KVCache], StepState]:
    """A request at its first row: its prompt computed, and what it has heard.

    That row is all BOS where the pattern has such an edge, and else what the prompt's last position
    leads to.
    """
    pattern = model.delay.under(params.machine)
    state = first_state(pattern, heard_window(prompt, params, pattern))
    caches, h = read_prompt(model, prompt, prefix)
    if pattern.edge_frames:
        return caches, state
    assert h is not None  # a prompt ends with words
    return caches, AudioStep.of(model, [params]).after(h, state)


def heard_window(prompt: Prompt, params: SamplingParams, pattern: DelayPattern) -> mx.array | None:
    """The RAS window ``[1, W, K]`` over the prompt's clips and the all-BOS row, if there is one."""
    every = pattern.machine == "transformers"  # it does not tell heard from spoken
    clips = [part.codes for part in prompt if isinstance(part, Audio) and (part.spoken or every)]
    bos = mx.full((pattern.edge_frames, pattern.num_codebooks), pattern.bos_id, dtype=mx.int32)
    heard = mx.concatenate([*(pattern.apply(codes) for codes in clips), bos])
    return start_window(heard, params, pattern)


class RowReader:
    """The host's side of one stream: what a report says, and when the stream ends.

    ``stop_reason`` is set by the row that is the last.
    """

    def __init__(self, max_frames: int, max_identical_rows: int = MAX_IDENTICAL_ROWS):
        self.stop_reason: StopReason | None = None
        self._left = max_frames
        self._max_identical = max_identical_rows
        self._recent: deque[bytes] = deque(maxlen=max_identical_rows or None)

    def read(self, report: np.ndarray) -> np.ndarray:
        """The row ``[K]`` of a report ``[K + 1]``.

        Raises:
            GenerationError: the model made something that is not a number.
        """
        row, status = report[:-1].astype(np.int32), report[-1]
        if status == BROKEN:
            raise GenerationError(
                "The model's output is not a number: its weights or their width do not work."
            )
        self._left -= 1
        if status == DONE:
            self.stop_reason = "eos"
        elif self._repeats(row):
            self.stop_reason = "repetition"
        elif not self._left:
            self.stop_reason = "length"
        return row

    def _repeats(self, row: np.ndarray) -> bool:
        if not self._max_identical:
            return False
        self._recent.append(row.tobytes())
        return len(self._recent) == self._max_identical and len(set(self._recent)) == 1


class Rows:
    """The delayed rows of one request, made while they are iterated.

    ``stop_reason`` is set once the iteration ends. The frame after the one being handed out is
    already under way on the device; the host reads each row once, one frame late.

    Args:
        prompt: ends where speech begins.
        params: ``params.seed`` must be set.
        prefix: the first parts of the prompt, already computed.
        max_identical_rows: stop a stream that repeats one row so often; 0 never does.
        loop: ``eager`` waits for every frame, ``async`` is one frame ahead, ``compiled`` is that
            with a compiled step; ``auto`` takes the faster. All make the same rows.
    """

    def __init__(
        self,
        model: SpeechModel,
        prompt: Prompt,
        params: SamplingParams,
        *,
        prefix: Prefix | None = None,
        max_identical_rows: int = MAX_IDENTICAL_ROWS,
        loop: Loop = "auto",
    ):
        if params.seed is None:
            raise ValueError("Rows needs params.seed: draw one first.")
        check_loop(loop)
        self.stop_reason: StopReason | None = None
        self._model, self._prompt, self._params, self._prefix = model, prompt, params, prefix
        self._reader = RowReader(params.max_frames, max_identical_rows)
        self._loop: Loop = loop
        self._closed = False

    def close(self) -> None:
        """Make no more rows than the one being handed out."""
        self._closed = True

    def __iter__(self) -> Iterator[np.ndarray]:
        loop = fastest_loop(self._model) if self._loop == "auto" else self._loop
        state, step = self._start(loop)
        mx.async_eval(state.report)
        while self.stop_reason is None and not self._closed:
            upcoming = None
            if loop != "eager":
                upcoming = step(state)
                mx.async_eval(upcoming.report)
            mx.eval(state.report)  # NumPy would take what is there after a rank was lost
            row = self._reader.read(np.array(state.report)[0])
            yield row
            self.stop_reason = self._reader.stop_reason
            state = upcoming or step(state)

    def _start(self, loop: Loop) -> tuple[StepState, Callable[[StepState], StepState]]:
        caches, state = begin(self._model, self._prompt, self._params, self._prefix)
        step = AudioStep.of(self._model, [self._params])
        if loop == "compiled":
            return state, CompiledStep(step, Slots.of(caches))
        return state, partial(step, caches=caches)
