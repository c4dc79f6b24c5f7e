"""One frame of B requests, wholly on the device, and the ways to drive it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import mlx.core as mx

from .delay import DelayPattern, DelayState
from .memory import on_cpu
from .models.cache import Slots
from .models.snapshot import Snapshot
from .sampling import (
    Kind,
    Sampler,
    SamplingParams,
    Values,
    frame_keys,
    sample_codes,
    seed_key,
    slide_window,
)
from .types import InputError

if TYPE_CHECKING:
    from .models.base import SpeechModel
    from .models.layers import Cache

Loop = Literal["auto", "eager", "async", "compiled"]
GOING, DONE, BROKEN = 0, 1, 2  # the last entry of a step's report
TRIED_FRAMES = 8  # of each loop, where the faster one has to be found


class StepState(NamedTuple):
    """One frame of B requests on the device; nothing of it is read to build the next."""

    row: mx.array  # int32 [B, K]
    delay: DelayState
    window: mx.array | None  # int32 [B, W, K]
    report: mx.array  # int32 [B, K + 1]: the row and GOING, DONE or BROKEN


@dataclass(frozen=True)
class AudioStep:
    """A frame after the one in ``state``: audio path, sampler, delay pattern.

    Args:
        keys: the requests' seeds as keys, ``[B, 2]``.
    """

    model: SpeechModel
    pattern: DelayPattern
    sampler: Sampler
    keys: mx.array

    @classmethod
    def of(cls, model: SpeechModel, requests: Sequence[SamplingParams]) -> AudioStep:
        """The step of some requests, all of one ``machine`` and with seeds."""
        pattern = model.delay.under(requests[0].machine)
        keys = [seed_key(cast(int, params.seed)) for params in requests]
        sampler = Sampler.of(requests, pattern.codebook_size + 2)  # BOS and EOS
        return cls(model, pattern, sampler, mx.stack(keys))

    def __call__(self, state: StepState, caches: Sequence[Cache]) -> StepState:
        model = self.model
        return self.after(model.hidden(model.embed_rows(state.row[:, None]), caches), state)

    def after(self, h: mx.array, state: StepState) -> StepState:
        """The frame that hidden states ``[B, S, D]`` lead to."""
        pattern = self.pattern
        logits = self.model.audio_logits(h[:, -1])
        keys = frame_keys(self.keys, state.delay.step + 1)
        allowed = pattern.allowed(logits, state.delay)
        row = sample_codes(allowed, self.sampler, keys, state.window)
        row = self.model.ranks.same(row)  # unlike machines round differently
        row, delay = pattern.advance(row, state.delay)
        window = slide_window(state.window, row, pattern)
        status = mx.where(delay.done, DONE, GOING)
        status = mx.where(mx.isfinite(mx.sum(logits, axis=(1, 2))), status, BROKEN)
        return StepState(row, delay, window, report_of(row, status))


def report_of(row: mx.array, status: mx.array) -> mx.array:
    return mx.concatenate([row, status.astype(mx.int32)[:, None]], axis=1)


def first_state(pattern: DelayPattern, window: mx.array | None, batch: int = 1) -> StepState:
    """Before the first frame is sampled: rows of BOS (the reference's AUDIO_INIT)."""
    row = mx.full((batch, pattern.num_codebooks), pattern.bos_id, dtype=mx.int32)
    return StepState(
        row, pattern.start(batch), window, report_of(row, mx.full((batch,), GOING, dtype=mx.int32))
    )


class CompiledStep:
    """The same frame as one compiled function, over caches of a fixed capacity.

    Compiled once for a model, a kind of sampling, a number of requests and a bucket of
    positions; what the requests ask for is an argument.
    """

    def __init__(self, step: AudioStep, slots: Slots):
        self._step, self.slots = step, slots
        self._run = _compiled(step.model, step.pattern, step.sampler.kind)

    def __call__(self, state: StepState) -> StepState:
        slots, step = self.slots, self._step
        slots.reserve()
        stores = [(layer.keys, layer.values) for layer in slots.layers]
        after, written = self._run(
            step.keys, tuple(step.sampler.values), state, slots.offsets, stores
        )
        del stores  # an array that somebody else holds is copied, not written in place
        for layer, (keys, values) in zip(slots.layers, written, strict=True):
            layer.keys, layer.values = keys, values
        slots.advance()
        row, delay, window, report = after
        return StepState(row, DelayState(*delay), window, report)


def _compiled(model: SpeechModel, pattern: DelayPattern, kind: Kind) -> Callable:
    """Kept with the model: it holds the weights it was compiled with, and is right for these."""
    of_model = vars(model)
    if "_compiled_with" not in of_model or not of_model["_compiled_with"].holds(model):
        of_model |= {"_compiled_with": Snapshot(model), "_compiled_steps": {}}
    known: dict = of_model["_compiled_steps"]
    if (pattern, kind) not in known:
        known[pattern, kind] = mx.compile(partial(_traced, model, pattern, kind))
    return known[pattern, kind]


def _traced(model, pattern, kind, keys, values, state, offsets, stores) -> Any:
    row, delay, window, report = state
    slots = Slots(offsets, stores, [cache.holds for cache in model.make_cache()])
    step = AudioStep(model, pattern, Sampler(kind, Values(*values)), keys)
    after = step(StepState(row, DelayState(*delay), window, report), slots.layers)
    written = [(layer.keys, layer.values) for layer in slots.layers]
    return tuple(after), written


def check_loop(loop: str) -> None:
    if loop not in get_args(Loop):
        raise InputError(f"There is no loop {loop!r}: use one of {', '.join(get_args(Loop))}.")


def fastest_loop(model: SpeechModel) -> Loop:
    """``compiled`` or ``async``: measured once for a model, but not on a CPU.

    There the compiled step wins only where a model is so small that it is fast anyway, and MLX
    calls a C++ compiler for seconds before the first frame.
    """
    if on_cpu():
        return "async"
    chosen: dict = vars(model)
    if "_fastest_loop" not in chosen:
        loops: tuple[Loop, Loop] = ("async", "compiled")
        fastest = loops.index(min(loops, key=partial(_seconds, model)))
        chosen["_fastest_loop"] = loops[int(model.ranks.same(mx.array(fastest)))]
    return chosen["_fastest_loop"]


def _seconds(model: SpeechModel, loop: Loop) -> float:
    """For some frames after a prompt of one frame, warmed up."""
    step = AudioStep.of(model, [SamplingParams(ras_window=0, seed=0)])
    state, caches = first_state(step.pattern, None), model.make_cache()
    mx.eval(model.hidden(model.embed_rows(state.row[:, None]), caches))
    run = partial(step, caches=caches)
    if loop == "compiled":
        run = CompiledStep(step, Slots.of(caches))
    started = 0.0
    for frame in range(2 * TRIED_FRAMES):
        if frame == TRIED_FRAMES:
            mx.synchronize()
            started = time.perf_counter()
        state = run(state)
        mx.async_eval(state.report)
    mx.eval(state.report)
    return time.perf_counter() - started
