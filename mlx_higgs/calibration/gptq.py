"""GPTQ: rounding column by column, each column's error made good by those that follow.

Frantar et al. 2022 (https://arxiv.org/abs/2210.17323). mlx-lm's ``gptq_quantize`` does the work
where it fits: given a view of the model that shows only the linear layers of one width, it never
meets the audio head or the table of codes. It packs 2, 4 and 8 bits alone; for 3, 5 and 6 there is
our own rounding by the same rule, and on a width that both have, both choose the same codes.
Embeddings and the text head have no input to weigh, and keep their plain rounding.

A layer that only codes of speech pass (the audio FFN) is weighed on these, one that only words pass
on words, and attention, which hears both when it speaks, on both alike (words left out or at a
quarter of the weight were measured to be worse). Layers are rounded in their order, each for what
it reads after those before it were rounded: no more than one layer's Hessians are ever held.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from itertools import groupby

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..quantization import Quantization
from ..train.batches import Batch, collate
from ..train.samples import Sample
from .bench import Bench, inputs_of
from .rounding import Rounded
from .watching import Watch, unwatched

DAMPING = 1e-2  # of the mean diagonal, as mlx-lm's
THEIRS = (2, 4, 8)  # widths that mlx-lm packs
LAYER = re.compile(r"layers\.(\d+)\.")
NOWHERE = 1 << 30  # after all layers: a head


def round_with_gptq(
    bench: Bench,
    table: Mapping[str, Quantization],
    samples: Sequence[Sample],
    watch: Watch = unwatched,
) -> dict[str, Rounded]:
    """A table of widths, its linear layers rounded for what they read in ``samples``."""
    rounded = bench.plain(table)
    batches = [collate([sample]) for sample in samples]
    groups = list(_groups(bench, table))
    bench.put({path: rounded[path] for path in rounded if not bench.fitted(path, table[path])})
    for how, paths in watch(groups, "rounding", len(groups)):
        work = _by_mlx_lm if how.bits in THEIRS else _by_hessian
        new = work(bench, paths, how, batches)
        bench.put(new)
        rounded |= new
    bench.restore(table)
    return rounded


def _groups(
    bench: Bench, table: Mapping[str, Quantization]
) -> Iterable[tuple[Quantization, list[str]]]:
    """The linear layers of one width in one decoder layer, in the model's order."""
    fitting = sorted((p for p in table if bench.fitted(p, table[p])), key=_layer)
    for _, layer in groupby(fitting, _layer):
        paths = list(layer)
        for how in dict.fromkeys(table[path] for path in paths):
            yield how, [path for path in paths if table[path] == how]


def _layer(path: str) -> int:
    found = LAYER.match(path)
    return int(found[1]) if found else NOWHERE


# ---------------------------------------------------------------- mlx-lm's


class View(nn.Module):
    """Some linear layers of a model, which hear what they would hear in it."""

    def __init__(self, bench: Bench, paths: Sequence[str]):
        super().__init__()
        self.linears = [_alone(bench.exact[path]) for path in paths]
        self._bench, self._paths = bench, paths

    def __call__(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            seen = inputs_of(self._bench, self._paths, batch)
            for linear, path in zip(self.linears, self._paths, strict=True):
                linear(seen[path].astype(mx.float32))


def _alone(weight: mx.array) -> nn.Linear:
    linear = nn.Linear(1, 1, bias=False)
    linear.weight = weight
    return linear


def _by_mlx_lm(
    bench: Bench, paths: Sequence[str], how: Quantization, batches: Sequence[Batch]
) -> dict[str, Rounded]:
    from mlx_lm.quant.gptq import gptq_quantize

    view, (bits, group) = View(bench, paths), (how.bits, how.group_size)
    with redirect_stderr(io.StringIO()):  # bars of its own, one a layer
        gptq_quantize(view, batches, bits, group, bits, group, batch_size=1)
    return {
        path: Rounded(
            how,
            linear["weight"],
            linear["scales"].astype(bench.dtype_of(path)),
            linear["biases"].astype(bench.dtype_of(path)),
        )
        for path, linear in zip(paths, view.linears, strict=True)
    }


# ---------------------------------------------------------------- our own


def _by_hessian(
    bench: Bench, paths: Sequence[str], how: Quantization, batches: Sequence[Batch]
) -> dict[str, Rounded]:
    hessians = hessians_of(bench, paths, batches)
    return {
        path: round_matrix(bench.exact[path], hessians[path], how, bench.dtype_of(path))
        for path in paths
    }


def hessians_of(
    bench: Bench, paths: Sequence[str], batches: Sequence[Batch]
) -> dict[str, np.ndarray]:
    """Of each linear layer, the weighed sum of ``x xᵀ`` ``[I, I]`` over all that it reads."""
    sums: dict[str, mx.array] = {}
    for batch in batches:
        for path, x in inputs_of(bench, paths, batch).items():
            x = x.astype(mx.float32)
            sums[path] = sums.get(path, mx.array(0.0)) + x.T @ x
        mx.eval(sums)
    return {path: np.array(total) for path, total in sums.items()}


def round_matrix(
    weight: mx.array, hessian: np.ndarray, how: Quantization, dtype: mx.Dtype
) -> Rounded:
    """GPTQ of one matrix ``[O, I]`` in affine groups.

    Args:
        hessian: ``[I, I]``. dtype: of the scales and biases, which the codes are chosen for.
    """
    left = np.array(weight.astype(mx.float32))
    factor = inverse_factor(hessian)
    codes = np.empty(left.shape, np.uint8)
    scales, biases = [], []
    for start in range(0, left.shape[1], how.group_size):
        some = slice(start, start + how.group_size)
        scale, bias = _steps(left[:, some], how, dtype)
        scales.append(scale)
        biases.append(bias)
        steps = np.array(scale.astype(mx.float32)), np.array(bias.astype(mx.float32))
        codes[:, some], errors = _round_group(left[:, some], factor[some, some], *steps, how.bits)
        left[:, some.stop :] -= errors @ factor[some, some.stop :]
    return Rounded.of_codes(
        how, codes, mx.concatenate(scales, axis=1), mx.concatenate(biases, axis=1)
    )


def inverse_factor(hessian: np.ndarray) -> np.ndarray:
    """The upper triangle U with ``Uᵀ U`` the damped Hessian's inverse."""
    damped = hessian.astype(np.float64)
    damped[np.diag_indices_from(damped)] += DAMPING * max(np.mean(np.diag(damped)), 1e-12)
    return np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)


def _steps(group: np.ndarray, how: Quantization, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    """MLX's scales and biases ``[O, 1]`` of one group of columns."""
    _, scale, bias = mx.quantize(mx.array(group), how.group_size, how.bits)
    return scale.astype(dtype), bias.astype(dtype)


def _round_group(
    left: np.ndarray, factor: np.ndarray, scale: np.ndarray, bias: np.ndarray, bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of one group's columns, and the errors that the columns after it make good.

    ``left`` ``[O, G]`` is changed in place; ``factor`` ``[G, G]`` is its part of the whole.
    """
    codes, errors = np.empty(left.shape, np.uint8), np.empty_like(left)
    width = np.where(scale == 0, 1, scale)[:, 0]
    for column in range(left.shape[1]):
        exact = left[:, column].copy()
        code = np.clip(np.rint((exact - bias[:, 0]) / width), 0, 2**bits - 1)
        error = (exact - (scale[:, 0] * code + bias[:, 0])) / factor[column, column]
        left[:, column:] -= np.outer(error, factor[column, column:])
        codes[:, column], errors[:, column] = code, error
    return codes, errors
