"""A talker that recites: whatever its logits are, a script stands in their place.

The forward pass runs all the same. A step of the script belongs to a position, not to a call: what
is computed ahead and thrown away takes nothing from it.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_higgs.delay import DelayPattern, DelayState
from mlx_higgs.models.v2 import Model

Script = list[int | list[int] | None]
SPOKEN = 10.0  # the logit of what is to be said; all others are 0


class Scripted:
    """Stands before a model: the prompt's last position says ``script[0]``, the next the next."""

    def __init__(self, model: Model, script: Script, positions: int):
        self._model, self._script, self._first = model, script, positions - 1
        self._at = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def hidden(self, x, cache, is_audio=None):
        h = self._model.hidden(x, cache, is_audio)
        self._at = cache[0].offset - 1 - self._first
        return h

    def text_logits(self, h):
        logits = self._model.text_logits(h)
        said = self._script[self._at] if 0 <= self._at < len(self._script) else None
        assert isinstance(said, int), f"step {self._at} writes, and the script has {said}"
        return mx.zeros_like(logits) + one_hot(said, logits.shape[-1])

    def audio_logits(self, h):
        logits = self._model.audio_logits(h)
        said = self._script[self._at] if 0 <= self._at < len(self._script) else None
        if not isinstance(said, list):  # a row ahead of the end
            return logits
        return mx.zeros_like(logits) + one_hot(said, logits.shape[-1])


def one_hot(ids: int | list[int], size: int) -> mx.array:
    return mx.array(SPOKEN * np.eye(size, dtype=np.float32)[np.array(ids)])


def stretch(
    rng: np.random.Generator,
    pattern: DelayPattern,
    state: DelayState | None = None,
    end: float = 0.03,
) -> list[list[int]]:
    """Random samples ``[K]`` of a stretch of speech from ``state`` on, to the row that ends it."""
    state, rows = state or pattern.start(), []
    while not state.done.item():
        row = rng.integers(0, pattern.codebook_size, pattern.num_codebooks)
        row[rng.random(len(row)) < end] = pattern.eos_id
        rows.append(row.tolist())
        _, state = pattern.advance(mx.array(row[None].astype(np.int32)), state)
    return rows
