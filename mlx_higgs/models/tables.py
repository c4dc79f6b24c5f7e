"""Embedding tables the talkers share: words and rows of codes as one sequence of vectors."""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..delay import DelayPattern
from ..types import Audio, InputError, Prompt, Text


class Tables(Protocol):
    """What embeds words and rows."""

    @property
    def delay(self) -> DelayPattern: ...

    def embed_ids(self, ids: np.ndarray) -> mx.array: ...

    def embed_rows(self, rows: mx.array) -> mx.array: ...


def embed_prompt(model: Tables, prompt: Prompt) -> tuple[mx.array, np.ndarray]:
    """Embeddings ``[1, S, D]`` and which positions hold codes, bool ``[1, S]``.

    Raises:
        InputError: an id or a code that the tables do not hold, or an empty prompt.
    """
    if not prompt:
        raise InputError("The prompt is empty.")
    parts = [_embed_part(model, part) for part in prompt]
    is_audio = [np.full(len(x), isinstance(p, Audio)) for x, p in zip(parts, prompt, strict=True)]
    return mx.concatenate(parts)[None], np.concatenate(is_audio)[None]


def _embed_part(model: Tables, part: Text | Audio) -> mx.array:
    if isinstance(part, Text):
        return model.embed_ids(np.asarray(part.ids))
    check_ids(np.array(part.codes), model.delay.codebook_size, "Code")
    return model.embed_rows(model.delay.apply(part.codes))


def embed_rows(table: nn.Module, rows: mx.array, codebook_vocab: int) -> mx.array:
    """Delayed rows ``[..., K]`` -> ``[..., D]``: the sum of one lookup per codebook.

    ``table`` holds all codebooks in one matrix ``[K * V, D]``, codebook-major.
    """
    return table(rows + mx.arange(rows.shape[-1]) * codebook_vocab).sum(axis=-2)


def check_ids(values: np.ndarray, limit: int, what: str) -> np.ndarray:
    """MLX does not check bounds: an id outside the table would read other memory."""
    if values.size and (values.min() < 0 or values.max() >= limit):
        bad = values[(values < 0) | (values >= limit)].flat[0]
        raise InputError(f"{what} {bad} is outside 0..{limit - 1}.")
    return values
