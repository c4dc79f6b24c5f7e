"""Logits -> codes: temperature, top-k, top-p, then repetition-aware sampling (RAS).

Everything runs in float32 on the device. One random key per frame makes a result depend on
the seed and the frame alone, not on the batch or on how the loop is driven.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple, get_args

import mlx.core as mx

from .delay import Machine
from .types import InputError


@dataclass(frozen=True)
class SamplingParams:
    """How rows are drawn. The only home of these defaults.

    Args:
        temperature: 0 takes the most likely code.
        top_p, top_k: 1 and 0 switch them off.
        ras_window: rows looked back on; 0 switches repetition-aware sampling off.
        ras_max_repeats: a code this often in the window is drawn again from the raw softmax.
        max_frames: rows at most, the all-BOS row included (25 make a second).
        seed: None draws one; a result always says which.
        machine: whose end-of-speech and RAS rules apply (see DelayPattern).
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 50
    ras_window: int = 7
    ras_max_repeats: int = 2
    max_frames: int = 2048
    seed: int | None = None
    machine: Machine = "boson"

    def __post_init__(self):
        for name, kind, allowed, wanted in LIMITS:
            value = getattr(self, name)
            if name == "seed" and value is None:
                continue
            known = isinstance(value, kind) and not isinstance(value, bool)
            if not known or not allowed(value):
                raise InputError(f"{name} is {value!r}: it must be {wanted}.")
            if kind is not str:  # numpy's numbers are welcome, too
                object.__setattr__(self, name, (int if kind is Integral else float)(value))


# field, kind, test, and how a person would say it
LIMITS: list[tuple[str, type, Callable[[Any], bool], str]] = [
    ("temperature", Real, lambda v: 0 <= v <= 100, "a number from 0 to 100"),
    ("top_p", Real, lambda v: 0 < v <= 1, "a number above 0 and at most 1"),
    ("top_k", Integral, lambda v: 0 <= v < 2**31, "a whole number, 0 (off) or more"),
    ("ras_window", Integral, lambda v: 0 <= v <= 4096, "a whole number from 0 (off) to 4096"),
    ("ras_max_repeats", Integral, lambda v: 1 <= v < 2**31, "a whole number above 0"),
    ("max_frames", Integral, lambda v: 1 <= v < 2**31, "a whole number above 0"),
    ("seed", Integral, lambda v: 0 <= v < 2**64, "a whole number from 0 to 2**64 - 1"),
    ("machine", str, lambda v: v in get_args(Machine), "boson or transformers"),
]


class FrameKeys(NamedTuple):
    """The random keys of one frame."""

    draw: mx.array
    redraw: mx.array


def seed_key(seed: int) -> mx.array:
    """The key all frames of one generation derive from; hashed, so that near seeds differ."""
    return mx.random.split(mx.random.key(seed))[0]


def frame_keys(base: mx.array, frame: int) -> FrameKeys:
    """The keys of frame ``frame``: they depend on the seed and the frame alone."""
    draw, redraw = mx.random.split(base ^ mx.array([0, frame], dtype=mx.uint32))
    return FrameKeys(draw, redraw)


def nucleus(logits: mx.array, params: SamplingParams) -> tuple[mx.array, mx.array]:
    """Temperature, top-k and top-p over the last axis, with one sort.

    As transformers' warpers do it: top-k keeps ties with the k-th value, top-p keeps the
    smallest set that reaches ``top_p`` and always one.

    Returns:
        Logits, likeliest first and -inf where dropped, and the id at each of their places.
    """
    order = mx.argsort(-logits, axis=-1)
    ordered = mx.take_along_axis(logits, order, axis=-1) / params.temperature
    if 0 < params.top_k < logits.shape[-1]:
        ordered = mx.where(ordered < ordered[..., params.top_k - 1, None], -math.inf, ordered)
    if params.top_p < 1:
        probs = mx.softmax(ordered, axis=-1)
        before = mx.cumsum(probs, axis=-1) - probs
        ordered = mx.where(before < params.top_p, ordered, -math.inf)
    return ordered, order


def _draw(logits: mx.array, params: SamplingParams, key: mx.array) -> mx.array:
    if params.temperature == 0:
        return mx.argmax(logits, axis=-1)
    if params.top_p >= 1 and not 0 < params.top_k < logits.shape[-1]:
        return mx.random.categorical(logits / params.temperature, key=key)
    ordered, order = nucleus(logits, params)
    place = mx.random.categorical(ordered, key=key)
    return mx.take_along_axis(order, place[..., None], axis=-1)[..., 0]


def sample_codes(
    logits: mx.array, params: SamplingParams, keys: FrameKeys, window: mx.array | None = None
) -> mx.array:
    """One row of ids ``[K]`` from logits ``[K, V]``; ``window`` ``[W, K]`` switches RAS on.

    RAS (HiggsAudioModel._sample_audio_tokens): an id already seen ``ras_max_repeats`` times in
    the window is replaced by one draw from the raw softmax: temperature 1, all ids allowed.
    """
    logits = logits.astype(mx.float32)
    row = _draw(logits, params, keys.draw).astype(mx.int32)
    if window is None:
        return row
    repeats = mx.sum(window == row, axis=0)
    fresh = mx.random.categorical(logits, key=keys.redraw).astype(mx.int32)
    return mx.where(repeats >= params.ras_max_repeats, fresh, row)


def start_window(rows: mx.array, params: SamplingParams, codebook_size: int) -> mx.array | None:
    """The RAS window ``[ras_window, K]`` over rows heard before; -1 where there were none.

    transformers' window does not count BOS and EOS; Boson's does.
    """
    if not params.ras_window:
        return None
    K = rows.shape[1]
    empty = mx.full((params.ras_window, K), -1, dtype=mx.int32)
    window = mx.concatenate([empty, rows.astype(mx.int32)])[-params.ras_window :]
    return _countable(window, params, codebook_size)


def slide_window(
    window: mx.array | None, row: mx.array, params: SamplingParams, codebook_size: int
) -> mx.array | None:
    """The window one row later."""
    if window is None:
        return None
    return mx.concatenate([window[1:], _countable(row[None], params, codebook_size)])


def _countable(rows: mx.array, params: SamplingParams, codebook_size: int) -> mx.array:
    if params.machine == "transformers":
        return mx.where(rows >= codebook_size, -1, rows)
    return rows
