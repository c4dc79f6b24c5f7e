"""Low-rank updates beside a weight, as they run when nothing is trained, and folded into it.

The arithmetic is that of mlx-lm's ``LoRALinear``, ``DoRALinear`` and their embeddings, whose
parameters have the same names. That package is for training: importing it takes seconds.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

LEAVES = ("lora_a", "lora_b", "m")  # a module's parameters in an adapter file; m is DoRA's


class Adapted(nn.Module):
    """A layer and its low-rank update, dropout off.

    Args:
        base: the frozen layer, quantised or not; its weight is ``[rows, columns]``.
        lora_a, lora_b: whose product is the update, transposed for a linear layer.
        scale: what the update is multiplied by.
        m: DoRA's length of every row, ``[rows]``.
    """

    def __init__(
        self,
        base: nn.Module,
        lora_a: mx.array,
        lora_b: mx.array,
        scale: float,
        m: mx.array | None = None,
    ):
        super().__init__()
        self.lora_a, self.lora_b, self.scale = lora_a, lora_b, scale
        if m is not None:
            self.m = m
            self._gain = m / _row_norms(self._updated(base))  # [rows]; the same for every input

    def _updated(self, base: nn.Module) -> mx.array:
        return float_weight(base) + self.scale * self._product()

    def _product(self) -> mx.array:
        return (self.lora_a @ self.lora_b).astype(mx.float32)


class AdaptedLinear(Adapted):
    """``x -> linear(x) + scale * (x @ lora_a) @ lora_b``, each output times its gain."""

    def __init__(self, linear: nn.Module, *args: Any):
        super().__init__(linear, *args)
        self.linear = linear

    def _product(self) -> mx.array:
        return super()._product().T

    def __call__(self, x: mx.array) -> mx.array:
        z = (x @ self.lora_a) @ self.lora_b
        y = self.linear(x) + (self.scale * z).astype(x.dtype)
        return self._gain.astype(x.dtype) * y if "m" in self else y


class AdaptedEmbedding(Adapted):
    """``ids -> embedding(ids) + scale * lora_a[ids] @ lora_b``, each vector times its gain."""

    def __init__(self, embedding: nn.Module, *args: Any):
        super().__init__(embedding, *args)
        self.embedding = embedding

    def __call__(self, ids: mx.array) -> mx.array:
        y = self.embedding(ids)
        y = y + (self.scale * (self.lora_a[ids] @ self.lora_b)).astype(y.dtype)
        return self._gain[ids][..., None].astype(y.dtype) * y if "m" in self else y


def adapt(module: nn.Module, tensors: dict[str, mx.array], scale: float) -> Adapted:
    """The layer with its update beside it; ``tensors`` by the names of ``LEAVES``."""
    kind = AdaptedEmbedding if is_embedding(module) else AdaptedLinear
    return kind(module, tensors["lora_a"], tensors["lora_b"], scale, tensors.get("m"))


def fused(module: Any) -> nn.Module:
    """One float layer that does what ``module`` and its update do (ours or mlx-lm's).

    The sum is taken in float32 and rounded once, to the dtype of the layer below.
    """
    base = module.embedding if "embedding" in module else module.linear
    product = (module.lora_a @ module.lora_b).astype(mx.float32)
    weight = float_weight(base) + module.scale * (product if is_embedding(base) else product.T)
    if "m" in module:
        weight = (module.m / _row_norms(weight))[:, None] * weight
    return float_layer(base, weight)


def float_layer(base: Any, weight: mx.array) -> nn.Module:
    """A float layer like ``base``, of ``weight`` in the dtype ``base`` computes in."""
    rows, columns = weight.shape
    layer = nn.Embedding(1, 1) if is_embedding(base) else nn.Linear(1, 1, bias=False)
    if isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.dims = rows, columns
    elif "bias" in base:
        layer.bias = base.bias
    layer.weight = weight.astype(compute_dtype(base))
    return layer


def compute_dtype(module: Any) -> mx.Dtype:
    return module.scales.dtype if is_quantized(module) else module.weight.dtype


def float_weight(module: Any) -> mx.array:
    """The weight in float32, out of its bits where it is quantised: ``[rows, columns]``."""
    weight = module.weight
    if is_quantized(module):
        weight = mx.dequantize(
            weight,
            module.scales,
            module.get("biases"),
            group_size=module.group_size,
            bits=module.bits,
            mode=module.mode,
        )
    return weight.astype(mx.float32)


def is_quantized(module: Any) -> bool:
    return isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding)


def is_embedding(module: Any) -> bool:
    return isinstance(module, nn.Embedding | nn.QuantizedEmbedding)


def _row_norms(weight: mx.array) -> mx.array:
    return mx.linalg.norm(weight, axis=1)
