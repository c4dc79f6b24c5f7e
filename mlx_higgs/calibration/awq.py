"""AWQ: inputs that are large are given finer steps, and weights that stand out are clipped.

Lin et al. 2023 (https://arxiv.org/abs/2306.00978). Of mlx-lm's module the parts fit that know one
step: ``search_best_scale``, ``apply_scale`` and ``search_best_clip``. What walks a model there
(``awq_quantize``) does not: it knows layers by model type, with one norm before the projections of
attention. A v2 talker has two, one for words and one for codes, which feed the same projections:
what these are multiplied by, both must be divided by (a layer's ``SCALED_BY`` says what belongs
together). It is also built around batches of token ids and one width for all.

Each layer is judged on what it reads in the unrounded model: the audio FFN on codes, attention on
words and codes. Queries and keys are not clipped, as in mlx-lm: their product is too sensitive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..quantization import Quantization
from ..train.batches import Batch, collate
from ..train.samples import Sample
from .bench import Bench, inputs_of
from .watching import Watch, unwatched

GRID = 20  # exponents tried, and shrinkages: mlx-lm's own
ROWS = 1024  # of what a layer reads, at most, spread evenly
NOT_CLIPPED = ("q_proj", "k_proj")


def transform(
    bench: Bench,
    table: Mapping[str, Quantization],
    samples: Sequence[Sample],
    *,
    clip: bool = True,
    watch: Watch = unwatched,
) -> None:
    """Change a model into one that says the same and rounds better; then clip.

    What is to be rounded afterwards is the bench's new ``exact``.

    Args:
        clip: False leaves out the clipping, the part that changes what the model says.
    """
    batches = [collate([sample]) for sample in samples]
    for index in watch(range(len(bench.model.layers)), "scaling", len(bench.model.layers)):
        start = f"layers.{index}."
        widths = {
            path.removeprefix(start): how
            for path, how in table.items()
            if path.startswith(start) and bench.fitted(path, how)
        }
        doubles = _doubles(bench, start, list(widths), batches)
        layer: Any = bench.model.layers[index]
        norms = dict(layer.named_modules()) | doubles
        for names, readers in layer.SCALED_BY:
            if all(name in doubles for name in readers):
                made_by = [norms[name] for name in names if name in norms]
                scale(made_by, [doubles[name] for name in readers], [widths[n] for n in readers])
        for name, double in doubles.items():
            if clip and not name.endswith(NOT_CLIPPED):
                double.weight = clipped(double, widths[name])
            bench.modules[start + name].weight = double.weight
        bench.replace_exact()
        mx.eval(bench.model.parameters())


def scale(
    made_by: Sequence[nn.Module], readers: Sequence[nn.Linear], widths: Sequence[Quantization]
) -> None:
    """Multiply the columns of matrices that read one input, and divide whatever makes it.

    Without rounding this changes nothing. The factors are those that round best; the narrowest
    width decides.

    Args:
        readers: with what they read as ``input_feat`` ``[1, N, I]``.
    """
    from mlx_lm.quant.awq import apply_scale, search_best_scale

    how = min(widths, key=lambda how: (how.bits, -how.group_size))
    factors = search_best_scale(
        list(readers), partial(rounded_values, how=how), Beside(readers), {}, GRID
    )
    first, *others = made_by
    apply_scale(first, list(readers), factors)
    for other in others:
        apply_scale(other, [], factors)


def clipped(reader: nn.Linear, how: Quantization) -> mx.array:
    """A matrix whose largest weights are nearer to the others where that rounds better."""
    from mlx_lm.quant.awq import search_best_clip

    rounding = partial(rounded_values, how=how)
    return search_best_clip(reader, rounding, how.group_size, GRID, n_frames=ROWS)


def rounded_values(weight: mx.array, how: Quantization) -> mx.array:
    """What a matrix is once it is stored in fewer bits."""
    stored = mx.quantize(weight, how.group_size, how.bits)
    return mx.dequantize(*stored, how.group_size, how.bits)


class Beside(nn.Module):
    """Linear layers of one input, side by side."""

    def __init__(self, linears: Sequence[nn.Linear]):
        super().__init__()
        self.linears = list(linears)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.concatenate([linear(x) for linear in self.linears], axis=-1)


def _doubles(
    bench: Bench, start: str, names: Sequence[str], batches: Sequence[Batch]
) -> dict[str, Any]:
    """Copies of a layer's linear layers that hold what those read, as mlx-lm's searches want it."""
    paths = [start + name for name in names]
    seen = [inputs_of(bench, paths, batch) for batch in batches]
    doubles = {}
    for name, path in zip(names, paths, strict=True):
        double = nn.Linear(1, 1, bias=False)
        rows = mx.concatenate([inputs[path] for inputs in seen if path in inputs])
        double.weight, double.input_feat = bench.exact[path], rows[:: -(-len(rows) // ROWS)][None]
        mx.eval(double.parameters())
        doubles[name] = double
    return doubles
