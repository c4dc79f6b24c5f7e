"""Rotary positions: parameters as configs spell them, and the rotation of some positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from ..memory import on_cpu
from ..types import CheckpointError


@dataclass(frozen=True)
class RopeArgs:
    """Rotary position parameters as a config spells them."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: float = 8192

    @classmethod
    def from_config(cls, config: dict) -> RopeArgs:
        """Parameters from ``rope_parameters``, or ``rope_theta`` with ``rope_scaling``.

        Raises:
            CheckpointError: no theta, two that differ, an unknown type, a missing factor.
        """
        nested, older = config.get("rope_parameters"), config.get("rope_scaling")
        if nested and older and {**nested, **older} != nested:
            raise CheckpointError("The config's rope_parameters and rope_scaling differ.")
        nested = nested or older or {}
        thetas = {c["rope_theta"] for c in (nested, config) if c.get("rope_theta") is not None}
        if len(thetas) != 1:
            found = "none" if not thetas else " and ".join(map(str, sorted(thetas)))
            raise CheckpointError(f"The config must name one rope_theta; it names {found}.")
        kind = nested.get("rope_type", nested.get("type", "default"))
        if kind == "default":
            return cls(theta=float(thetas.pop()))
        if kind != "llama3":
            raise CheckpointError(f"Rotary positions of type {kind!r} are not supported.")
        names = (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        )
        missing = [name for name in names if nested.get(name) is None]
        if missing:
            raise CheckpointError(f"The config's llama3 rope parameters lack {missing}.")
        factors = {name: float(nested[name]) for name in names}
        if min(factors.values()) <= 0:
            raise CheckpointError(f"The config's llama3 rope parameters are {factors}.")
        return cls(float(thetas.pop()), "llama3", **factors)

    def periods(self, dims: int) -> mx.array:
        """Radians per position, inverted: float32 ``[dims / 2]``.

        ``llama3`` slows down the wavelengths the pretraining context was too short for
        (transformers' ``_compute_llama3_parameters``).
        """
        periods = self.theta ** (np.arange(0, dims, 2, dtype=np.float64) / dims)
        if self.kind == "llama3":
            context = self.original_max_position_embeddings
            turns = context / (2 * math.pi * periods)
            span = self.high_freq_factor - self.low_freq_factor
            blend = np.clip((turns - self.low_freq_factor) / span, 0.0, 1.0)
            periods = periods / ((1 - blend) / self.factor + blend)
        return mx.array(periods.astype(np.float32))


Rotation = Callable[[mx.array], mx.array]


@dataclass(frozen=True)
class Turn:
    """The rotation of heads ``[B, heads, S, head_dim]`` at their positions.

    Args:
        of: places ``[B, n]`` among these positions -> the rotation of those alone.
    """

    rotation: Rotation
    of: Callable[[mx.array], Rotation]

    def __call__(self, heads: mx.array) -> mx.array:
        return self.rotation(heads)


class Rotary:
    """The rotation of queries and keys by their positions (RoPE), in halves as the Llama family's.

    Args:
        dims: of a head, all of which turn.
    """

    def __init__(self, args: RopeArgs, dims: int):
        self._dims, self._periods = dims, args.periods(dims)

    def at(self, offset: Any, added: int, dtype: mx.Dtype) -> Turn:
        """The rotation of ``added`` positions from ``offset`` on; all layers use the same.

        Args:
            offset: a number, or int32 ``[B]`` where each request has its own.
        """
        of = partial(self._of, offset, dtype)
        if on_cpu():  # there MLX's own would compute the angles anew in every layer
            return Turn(of(mx.arange(added)), of)
        rotation = partial(
            mx.fast.rope,
            dims=self._dims,
            traditional=False,
            base=None,
            scale=1.0,
            offset=offset,
            freqs=self._periods,
        )
        return Turn(rotation, of)

    def _of(self, offset: Any, dtype: mx.Dtype, places: mx.array) -> Rotation:
        """Of positions ``offset + places``, ``[1 or B, S]``."""
        start = mx.array(offset, dtype=mx.float32).reshape(-1, 1)
        angles = (start + places)[:, None, :, None] * (1 / self._periods)
        cos, sin = mx.cos(angles).astype(dtype), mx.sin(angles).astype(dtype)
        both = mx.concatenate([cos, cos], axis=-1), mx.concatenate([-sin, sin], axis=-1)
        return partial(_turned, *both)


def _turned(cos: mx.array, sin: mx.array, x: mx.array) -> mx.array:
    first, second = mx.split(x, 2, axis=-1)
    return x * cos + mx.concatenate([second, first], axis=-1) * sin
