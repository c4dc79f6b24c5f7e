"""Quantised weights as floats again: the same numbers, which a CPU multiplies several times faster.

MLX has a fast quantised product for GPUs alone. In float32 nothing is lost: a weight is a whole
number times its group's scale, plus the group's bias.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from ..loading import leaves


def as_floats(model: Any) -> None:
    """Compute in float32, every quantised matrix as the floats that it stands for; in place."""
    model.set_dtype(mx.float32)
    modules = leaves(model)
    for path in list(modules):
        module = modules.pop(path)
        if "scales" in module:
            module = _float(module)
            model.update_modules(tree_unflatten([(path, module)]))
        mx.eval(module.parameters())
    mx.clear_cache()


def _float(module: Any) -> nn.Module:
    weight = mx.dequantize(
        module.weight,
        module.scales,
        module.get("biases"),
        module.group_size,
        module.bits,
        module.mode,
        dtype=mx.float32,
    )
    if isinstance(module, nn.QuantizedEmbedding):
        table = nn.Embedding(1, 1)
        table.weight = weight
        return table
    linear = nn.Linear(1, 1, bias=False)
    linear.weight = weight
    if "bias" in module:
        linear.bias = module.bias
    return linear
