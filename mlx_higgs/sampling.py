"""Logits -> codes: temperature, top-k, top-p, then repetition-aware sampling (RAS).

Everything runs in float32 on the device. One random key per frame makes a result depend on
the seed and the frame alone, not on the batch or on how the loop is driven.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple, get_args

import mlx.core as mx

from .delay import DelayPattern, Machine
from .memory import on_cpu
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
        machine: whose end-of-speech and RAS rules apply (see DelayPattern); None: the model's.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 50
    ras_window: int = 7
    ras_max_repeats: int = 2
    max_frames: int = 2048
    seed: int | None = None
    machine: Machine | None = None

    def __post_init__(self):
        for name, kind, _, _ in LIMITS:
            value = getattr(self, name)
            if name in ("seed", "machine") and value is None:
                continue
            check(name, value)
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
    ("machine", str, lambda v: v in get_args(Machine), " or ".join(get_args(Machine))),
]


def check(name: str, value: Any, called: str = "") -> None:
    """Raises InputError for a value that a field of `SamplingParams` cannot have.

    Args:
        called: the field's name where the value was given.
    """
    _, kind, allowed, wanted = next(limit for limit in LIMITS if limit[0] == name)
    if not isinstance(value, kind) or isinstance(value, bool) or not allowed(value):
        raise InputError(f"{called or name} is {value!r}: it must be {wanted}.")


class FrameKeys(NamedTuple):
    """The random keys of one frame: uint32 ``[B, 2]`` each."""

    draw: mx.array
    redraw: mx.array


def seed_key(seed: int) -> mx.array:
    """The key all frames of one generation derive from; hashed, so that near seeds differ."""
    return mx.random.split(mx.random.key(seed))[0]


def frame_keys(base: mx.array, frame: mx.array) -> FrameKeys:
    """Keys ``[B, 2]`` of the seeds, frames ``[B]`` -> the keys of those frames, and of no other."""
    frame = frame.astype(mx.uint32)
    pairs = _each(mx.random.split, base ^ mx.stack([mx.zeros_like(frame), frame], axis=-1))
    return FrameKeys(pairs[:, 0], pairs[:, 1])


def _each(function: Callable[[mx.array], mx.array], keys: mx.array) -> mx.array:
    """``function`` of every key, so that a row draws the same in any company."""
    return function(keys.squeeze(0))[None] if len(keys) == 1 else mx.vmap(function)(keys)


class Values(NamedTuple):
    """What B requests asked for, on the device: it may differ from row to row."""

    temperature: mx.array  # [B, 1, 1]; 1 where greedy
    greedy: mx.array  # bool [B, 1]
    top_k: mx.array  # int32 [B, 1, 1]; all ids where off
    top_p: mx.array  # [B, 1, 1]; more than all probability where off
    window_from: mx.array  # int32 [B, 1, 1]: the first place of the window that counts
    max_repeats: mx.array  # int32 [B, 1]


@dataclass(frozen=True)
class Kind:
    """What the host must know to build the sampler's graph."""

    draws: bool  # some row has a temperature
    greedy: bool  # some row has none
    filters: bool  # some row has top-k or top-p
    cuts: bool  # some row has top-p
    top_k: int  # ids kept by the row that keeps most
    ragged: bool  # they look back differently far


@dataclass(frozen=True)
class Sampler:
    """The sampling of B requests as one."""

    kind: Kind
    values: Values

    @classmethod
    def of(cls, requests: Sequence[SamplingParams], codebook_vocab: int) -> Sampler:
        kept = [min(p.top_k or codebook_vocab, codebook_vocab) for p in requests]
        windows = [p.ras_window for p in requests]
        furthest = max(windows)
        kind = Kind(
            draws=any(p.temperature for p in requests),
            greedy=any(not p.temperature for p in requests),
            filters=any(p.top_k or p.top_p < 1 for p in requests),
            cuts=any(p.top_p < 1 for p in requests),
            top_k=max(kept),
            ragged=min(windows) < furthest,
        )

        def column(values: Iterable, dtype: mx.Dtype, ndim: int = 3) -> mx.array:
            return mx.array(list(values), dtype=dtype).reshape(-1, *[1] * (ndim - 1))

        values = Values(
            column((p.temperature or 1.0 for p in requests), mx.float32),
            column((not p.temperature for p in requests), mx.bool_, 2),
            column(kept, mx.int32),
            column((p.top_p if p.top_p < 1 else 2.0 for p in requests), mx.float32),
            column((furthest - window for window in windows), mx.int32),
            column((p.ras_max_repeats for p in requests), mx.int32, 2),
        )
        return cls(kind, values)


def nucleus(logits: mx.array, sampler: Sampler) -> mx.array:
    """Logits ``[B, K, V]`` over their temperature, -inf where top-k or top-p drop them.

    As transformers' warpers do it: top-k keeps ties with the k-th value, top-p keeps the
    smallest set that reaches ``top_p`` and always one; of its lowest ties, those of lower id.
    """
    values = sampler.values
    ordered = likeliest(logits, sampler.kind.top_k)
    last = mx.take_along_axis(ordered, values.top_k - 1, axis=-1)
    if not sampler.kind.cuts:  # what follows would keep as much
        return mx.where(logits < last, -math.inf, logits)
    top = ordered[..., :1]
    whole = mx.sum(mx.where(logits < last, 0.0, mx.exp(logits - top)), axis=-1, keepdims=True)
    probs = mx.exp(ordered - top) / whole
    inside = (mx.cumsum(probs, axis=-1) - probs < values.top_p) & (ordered >= last)
    lowest = mx.min(mx.where(inside, ordered, math.inf), axis=-1, keepdims=True)
    sure = mx.sum(mx.where(ordered > lowest, probs, 0.0), axis=-1, keepdims=True)
    room = mx.ceil((values.top_p - sure) * whole / mx.exp(lowest - top))  # for the lowest's ties
    tied = logits == lowest
    fits = mx.cumsum(tied.astype(mx.float32), axis=-1) <= room
    return mx.where((logits > lowest) | (tied & fits), logits, -math.inf)


def likeliest(logits: mx.array, count: int) -> mx.array:
    """The ``count`` largest of the last axis, in order.

    With one sort, which is what a GPU partitions with, too; on a CPU, of those few alone.
    """
    if count < logits.shape[-1] and on_cpu():
        return -mx.sort(-mx.topk(logits, count), axis=-1)
    return -mx.sort(-logits, axis=-1)[..., :count]


def _draw(logits: mx.array, sampler: Sampler, keys: mx.array) -> mx.array:
    kind, values = sampler.kind, sampler.values
    if not kind.draws:
        return mx.argmax(logits, axis=-1)
    scaled = logits / values.temperature
    drawn = _categorical(nucleus(scaled, sampler) if kind.filters else scaled, keys)
    return mx.where(values.greedy, mx.argmax(logits, axis=-1), drawn) if kind.greedy else drawn


def _categorical(logits: mx.array, keys: mx.array) -> mx.array:
    noise = _each(lambda key: mx.random.gumbel(logits.shape[1:], key=key), keys)
    return mx.argmax(logits + noise, axis=-1)


def sample_codes(
    logits: mx.array, sampler: Sampler, keys: FrameKeys, window: mx.array | None = None
) -> mx.array:
    """Ids ``[B, K]`` from logits ``[B, K, V]``; ``window`` ``[B, W, K]`` switches RAS on.

    RAS (HiggsAudioModel._sample_audio_tokens): an id already seen ``ras_max_repeats`` times in
    the window is replaced by one draw from the raw softmax: temperature 1, all ids allowed.
    """
    logits = logits.astype(mx.float32)
    row = _draw(logits, sampler, keys.draw).astype(mx.int32)
    if window is None:
        return row
    seen = window == row[:, None]
    if sampler.kind.ragged:
        seen = seen & (mx.arange(window.shape[1])[None, :, None] >= sampler.values.window_from)
    fresh = _categorical(logits, keys.redraw).astype(mx.int32)
    return mx.where(mx.sum(seen, axis=1) >= sampler.values.max_repeats, fresh, row)


def start_window(rows: mx.array, params: SamplingParams, pattern: DelayPattern) -> mx.array | None:
    """The RAS window ``[1, W, K]`` of one request over rows heard before; -1 where none were.

    transformers' window does not count BOS and EOS; Boson's does.
    """
    if not params.ras_window:
        return None
    unheard = mx.full((params.ras_window, rows.shape[1]), -1, dtype=mx.int32)
    rows = _countable(rows.astype(mx.int32), pattern)
    return mx.concatenate([unheard, rows])[None, -params.ras_window :]


def slide_window(window: mx.array | None, row: mx.array, pattern: DelayPattern) -> mx.array | None:
    """The windows ``[B, W, K]`` one row ``[B, K]`` later."""
    if window is None:
        return None
    return mx.concatenate([window[:, 1:], _countable(row, pattern)[:, None]], 1)


def _countable(rows: mx.array, pattern: DelayPattern) -> mx.array:
    if pattern.machine != "transformers":
        return rows
    return mx.where(rows >= pattern.codebook_size, -1, rows)
