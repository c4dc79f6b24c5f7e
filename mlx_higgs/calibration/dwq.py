"""DWQ: the scales and biases of rounded matrices, trained until the model says what it said.

What mlx-lm calls distilled weight quantisation. Its ``dwq_quantize`` does not fit: it feeds batches
of token ids and takes logits ``[B, S, V]`` for all positions, where a talker is fed embeddings of
words and rows and says K codebooks at some. The loop here is the same idea over the K codebooks;
the divergence is mlx-lm's own ``kl_div_loss``, which has a kernel on Metal.

Scales move in shares of themselves, and biases in shares of half the range they are the lower end
of: one learning rate suits every matrix of every model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map, tree_unflatten

from ..memory import on_cpu
from ..train.batches import Batch
from .bench import Bench, Passages
from .forced import forced_logits
from .rounding import Rounded
from .watching import Watch, unwatched

Params = dict[str, dict[str, mx.array]]


@dataclass(frozen=True)
class Course:
    """How long and how fast.

    Args:
        epochs: times that every passage is heard.
        batch_size: passages at once.
        learning_rate: of Adam, at first; it falls to 0 along a cosine.
        checks: times that what was learnt so far is tried on the passages held out.
    """

    epochs: int = 6
    batch_size: int = 4
    learning_rate: float = 3e-4
    checks: int = 6


def train(
    bench: Bench,
    rounded: Mapping[str, Rounded],
    passages: Passages,
    held_out: Passages,
    *,
    course: Course = Course(),
    seed: int = 0,
    watch: Watch = unwatched,
) -> dict[str, Rounded]:
    """The same codes with better scales and biases; the best on ``held_out`` are kept.

    So the result is never worse there than ``rounded``. Matrices in modes without biases, and
    embeddings, of which passages use few rows, stay as they are.
    """
    import mlx.optimizers as optim

    trained = {p: r for p, r in rounded.items() if bench.fitted(p, r.how)}
    steps = course.epochs * len(passages)
    optimizer = optim.Adam(optim.cosine_decay(course.learning_rate, max(steps, 1)))
    params = {
        path: {name: mx.zeros(r.scales.shape) for name in ("scales", "biases")}
        for path, r in trained.items()
    }
    best = dict(rounded)
    bench.put(rounded)
    least = bench.divergence(held_out)
    order = _order(len(passages), course.epochs, seed)
    checks = set(np.linspace(0, steps, course.checks + 1).round().astype(int)[1:] - 1)
    for step, index in enumerate(watch(order, "training scales", steps)):
        params = _step(bench, trained, params, optimizer, passages, index)
        if step in checks:
            now = {**rounded, **_moved(trained, params, bench)}
            bench.put(now)
            if (loss := bench.divergence(held_out)) < least:
                least, best = loss, now
    bench.restore(rounded)
    return best


def _order(count: int, epochs: int, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return [int(i) for _ in range(epochs) for i in rng.permutation(count)]


def _step(
    bench: Bench,
    trained: Mapping[str, Rounded],
    params: Params,
    optimizer: Any,
    passages: Passages,
    index: int,
) -> Params:
    """One batch learnt."""
    heard = passages.batches[index], passages.known[index], passages.targets[index]
    layers = {path: Movable(rounded, bench.exact[path].dtype) for path, rounded in trained.items()}
    bench.model.update_modules(tree_unflatten(list(layers.items())))
    try:
        grads = mx.grad(partial(_loss, bench.model, layers, *heard))(params)
        params = optimizer.apply_gradients(grads, params)
        mx.eval(params, optimizer.state)
    finally:
        back = [(path, bench.modules[path]) for path in trained]
        bench.model.update_modules(tree_unflatten(back))
    return params


def _loss(
    model: Any,
    layers: Mapping[str, Movable],
    batch: Batch,
    known: mx.array,
    targets: mx.array,
    params: Params,
) -> mx.array:
    from mlx_lm.tuner.losses import kl_div_loss

    for path, layer in layers.items():
        layer.move(params[path])
    apart = kl_div_loss(forced_logits(model, batch), known)
    scored = targets >= 0
    return mx.where(scored, apart, 0).sum() / scored.sum()


class Movable(nn.Module):
    """A rounded linear layer whose scales and biases are moved from outside."""

    def __init__(self, rounded: Rounded, dtype: mx.Dtype):
        super().__init__()
        self._rounded, self._dtype = rounded, dtype
        self._scales = self._biases = rounded.scales

    def move(self, param: Mapping[str, mx.array]) -> None:
        scales, biases = moved(self._rounded, param)
        self._scales, self._biases = scales.astype(self._dtype), biases.astype(self._dtype)

    def __call__(self, x: mx.array) -> mx.array:
        how = self._rounded.how
        stored = self._rounded.weight, self._scales, self._biases
        if on_cpu():  # whose quantised product is slow
            return x @ mx.dequantize(*stored, how.group_size, how.bits).T
        return mx.quantized_matmul(
            x, *stored, transpose=True, group_size=how.group_size, bits=how.bits
        )


def moved(rounded: Rounded, param: Mapping[str, mx.array]) -> tuple[mx.array, mx.array]:
    """Scales and biases, float32, after shares ``[O, G]`` of each were learnt.

    A change of scale leaves the middle of a group's range where it is.
    """
    scales, biases = rounded.scales.astype(mx.float32), rounded.biases
    assert biases is not None
    half = scales * (2**rounded.how.bits - 1) / 2
    shift = half * (param["biases"] - param["scales"])
    return scales * (1 + param["scales"]), biases.astype(mx.float32) + shift


def _moved(trained: Mapping[str, Rounded], params: Params, bench: Bench) -> dict[str, Rounded]:
    new = {}
    for path, rounded in trained.items():
        scales, biases = tree_map(
            lambda a, path=path: a.astype(bench.dtype_of(path)), moved(rounded, params[path])
        )
        new[path] = replace(rounded, scales=scales, biases=biases)
    mx.eval([(r.scales, r.biases) for r in new.values()])
    return new
