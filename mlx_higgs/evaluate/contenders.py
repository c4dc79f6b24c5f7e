"""What takes part in a speed measurement: our loops, and the bare products of their step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import mlx.core as mx
import numpy as np

from ..batch import Batch
from ..delay import DelayPattern
from ..frames import Rows
from ..models.base import SpeechModel
from ..sampling import SamplingParams
from ..step import Loop
from ..types import Prompt, Text
from .reads import frame_readings

NEVER = 1 << 30  # an end-of-speech id that no codebook has
MAX_FRAMES = 1 << 20


class Endless:
    """A talker that never ends its speech: random weights would, after a few frames."""

    def __init__(self, model: SpeechModel):
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @property
    def delay(self) -> DelayPattern:
        return replace(self._model.delay, eos_id=NEVER)


def drawn_prompt(model: SpeechModel, positions: int, seed: int) -> Prompt:
    """Text of so many random tokens."""
    ids = np.random.default_rng(seed).integers(0, model.args.vocab_size, positions)
    return [Text(ids.tolist())]


def endless(model: SpeechModel) -> SpeechModel:
    """Keep it as long as the model: a loop chosen by measurement is remembered in it."""
    return cast(SpeechModel, Endless(model))


def talker_work(
    model: SpeechModel, prompt: Prompt, seed: int, loop: Loop = "auto"
) -> Callable[[int], None]:
    """Our loop on one stream of an endless model; each call goes on where the last one ended.

    The frame that is under way at the end of a call is waited for, so that a call's time is
    that of its own frames.
    """
    params = _params(model, seed)
    rows = iter(Rows(model, prompt, params, max_identical_rows=0, loop=loop))

    def work(frames: int) -> None:
        advance(rows, frames)

    return work


def batch_work(
    model: SpeechModel, prompt: Prompt, seed: int, streams: int
) -> Callable[[int], None]:
    """Our loop on so many streams of an endless model at once, each with a seed of its own."""
    batch = Batch(model, streams)
    for stream in range(streams):
        batch.join(prompt, _params(model, seed + stream), max_identical_rows=0)

    def work(frames: int) -> None:
        for _ in range(frames):
            batch.step()
        mx.synchronize()

    return work


def _params(model: SpeechModel, seed: int) -> SamplingParams:
    """As the model samples by default."""
    return replace(model.SAMPLING, seed=seed, max_frames=MAX_FRAMES)


def advance(rows: Iterator[Any], frames: int) -> None:
    for _ in range(frames):
        next(rows)
    mx.synchronize()


def floor_work(model: SpeechModel, streams: int = 1) -> Callable[[int], None]:
    """Only the products with the weights that one audio step needs, in the same precision."""
    readings = [reading for reading in frame_readings(model)[0] if reading.multiplies]
    inputs: dict[int, mx.array] = {}
    for reading in readings:
        width = _input_width(reading.module)
        dtype = _compute_dtype(reading.module)
        inputs.setdefault(width, mx.random.normal((streams, width)).astype(dtype))
    mx.eval(inputs)

    def work(frames: int) -> None:
        for _ in range(frames):
            mx.eval([_multiply(r.module, inputs[_input_width(r.module)]) for r in readings])

    return work


def _multiply(module: Any, x: mx.array) -> mx.array:
    return module.as_linear(x) if hasattr(module, "as_linear") else module(x)


def _input_width(module: Any) -> int:
    rows = module.weight.shape[-1]
    return rows * 32 // module.bits if hasattr(module, "bits") else rows


def _compute_dtype(module: Any) -> mx.Dtype:
    return module.scales.dtype if "scales" in module else module.weight.dtype
