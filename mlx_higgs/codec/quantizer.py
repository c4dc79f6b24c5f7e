"""Residual vector quantisation: features <-> codes.

Source: Zeghidour et al. 2021, "SoundStream", algorithm 1. Distances are Euclidean in the narrow
space of a codebook; the residual lives in the wide one. Attribute names are transformers'.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn


class Codebook(nn.Module):
    """``embed`` ``[codebook_size, codebook_dim]``."""

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.embed = mx.zeros((size, dim))

    def nearest(self, z: mx.array) -> mx.array:
        """``[..., dim]`` -> ``[...]`` int32, the lowest index among equals."""
        distance = mx.sum(z * z, -1, keepdims=True) - 2 * (z @ self.embed.T)
        return mx.argmin(distance + mx.sum(self.embed * self.embed, -1), -1).astype(mx.int32)


class VectorQuantizer(nn.Module):
    """One codebook with its projections into and out of its narrow space."""

    def __init__(self, width: int, size: int, dim: int):
        super().__init__()
        self.codebook = Codebook(size, dim)
        self.project_in = nn.Linear(width, dim)
        self.project_out = nn.Linear(dim, width)

    def encode(self, x: mx.array) -> mx.array:
        return self.codebook.nearest(self.project_in(x))

    def decode(self, codes: mx.array) -> mx.array:
        return self.project_out(self.codebook.embed[codes])


class ResidualQuantizer(nn.Module):
    """Each codebook takes what the ones before it left over."""

    def __init__(self, num_codebooks: int, width: int, size: int, dim: int):
        super().__init__()
        self.quantizers = [VectorQuantizer(width, size, dim) for _ in range(num_codebooks)]

    def encode(self, x: mx.array) -> mx.array:
        """``[..., width]`` -> codes ``[..., K]`` int32."""
        codes = []
        for quantizer in self.quantizers:
            codes.append(quantizer.encode(x))
            x = x - quantizer.decode(codes[-1])
        return mx.stack(codes, -1)

    def decode(self, codes: mx.array) -> mx.array:
        """Codes ``[..., k]`` of the first ``k <= K`` codebooks -> ``[..., width]``."""
        x = self.quantizers[0].decode(codes[..., 0])
        for k in range(1, codes.shape[-1]):
            x = x + self.quantizers[k].decode(codes[..., k])
        return x
