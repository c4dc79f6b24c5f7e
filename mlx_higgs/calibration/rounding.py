"""A matrix in fewer bits: MLX's storage, made from codes that somebody else chose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..quantization import Quantization, quantize_module

ROWS_AT_ONCE = 1024  # of codes being packed: a byte per bit for a moment


@dataclass(frozen=True)
class Rounded:
    """What a quantised module holds.

    Attributes:
        weight: uint32 ``[O, I * bits / 32]``. scales: ``[O, I / group_size]``.
        biases: the same; None in modes without.
    """

    how: Quantization
    weight: mx.array
    scales: mx.array
    biases: mx.array | None = None

    @classmethod
    def plain(cls, module: Any, how: Quantization, dtype: mx.Dtype | None = None) -> Rounded:
        """The nearest of MLX's own steps, as an uncalibrated conversion takes them.

        Args:
            dtype: of the scales, and what the weight is brought to before; None for its own.
        """
        source = nn.Linear(1, 1, bias=False)
        source.weight = module.weight if dtype is None else module.weight.astype(dtype)
        stored = quantize_module(source, how)
        return cls(how, stored["weight"], stored["scales"], stored.get("biases"))

    @classmethod
    def of_codes(
        cls, how: Quantization, codes: np.ndarray, scales: mx.array, biases: mx.array
    ) -> Rounded:
        """``codes`` ``[O, I]`` that stand for ``scales * code + biases``."""
        return cls(how, mx.array(pack(codes, how.bits)), scales, biases)

    def dense(self, dtype: mx.Dtype) -> mx.array:
        """The values it stands for ``[O, I]``."""
        how = self.how
        values = mx.dequantize(
            self.weight, self.scales, self.biases, how.group_size, how.bits, mode=how.mode
        )
        return values.astype(dtype)

    def put_into(self, module: Any) -> nn.Module:
        """A quantised module of ``module``'s kind with these arrays."""
        quantized: Any = module.to_quantized(self.how.group_size, self.how.bits, self.how.mode)
        arrays = {"weight": self.weight, "scales": self.scales}
        if self.biases is not None:
            arrays["biases"] = self.biases
        quantized.update(arrays)
        return quantized


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes ``[O, I]`` below ``2 ** bits`` -> uint32 ``[O, I * bits / 32]``.

    MLX's layout for every affine width: the codes' bits one after the other, the lowest first.
    """
    rows = [
        _packed(codes[start : start + ROWS_AT_ONCE], bits)
        for start in range(0, len(codes), ROWS_AT_ONCE)
    ]
    return np.concatenate(rows)


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    lowest_first = (codes.astype(np.uint8)[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    stream = np.packbits(lowest_first.reshape(len(codes), -1), axis=-1, bitorder="little")
    return stream.view("<u4")


def unpack(weight: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of ``pack``: uint8 ``[O, I]``."""
    stream = np.unpackbits(weight.astype("<u4").view(np.uint8), axis=-1, bitorder="little")
    codes = stream.reshape(len(weight), -1, bits)
    return (codes << np.arange(bits, dtype=np.uint8)).sum(axis=-1, dtype=np.uint8)


def stored_bits(shape: tuple[int, ...], how: Quantization, dtype: mx.Dtype) -> int:
    """Bits that a matrix of ``shape`` takes, with its scales (and biases) of ``dtype``."""
    return 8 * how.nbytes(int(np.prod(shape)), dtype.size)
