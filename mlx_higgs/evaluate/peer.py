"""mlx-audio, with which we compare. It is looked for when asked for, and never a dependency."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from ..models.rotary import RopeArgs
from ..quantization import Quantization
from ..types import InputError


def peer_version() -> str:
    """Which mlx-audio is installed.

    Raises:
        InputError: none.
    """
    try:
        return version("mlx-audio")
    except PackageNotFoundError as error:
        raise InputError("--peer mlx-audio needs that package: pip install mlx-audio.") from error


def peer_module(name: str) -> Any:
    """A module of mlx-audio by its full name.

    Raises:
        InputError: this release does not have it, or lacks something it needs.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"mlx-audio {peer_version()} cannot be used: {error}.") from error


def rope_scaling(rope: RopeArgs) -> dict[str, Any] | None:
    """Rotary positions as its configs spell them; the base apart."""
    if rope.kind != "llama3":
        return None
    return {
        "rope_type": "llama3",
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "original_max_position_embeddings": rope.original_max_position_embeddings,
    }


def give_weights(
    model: Any,
    peer: Any,
    quantization: Quantization | None,
    names: Sequence[tuple[str, str]] = (),
    unused: str = "",
) -> None:
    """Quantise a talker of mlx-audio by its own rule, and put the very arrays of ``model`` into it.

    Args:
        names: how our parameters begin -> how its do, the first that fits; all others alike.
        unused: a module of its that no frame of speech needs.

    Raises:
        InputError: the two talkers do not have the same weights.
    """
    if quantization:
        nn.quantize(
            peer,
            group_size=quantization.group_size,
            bits=quantization.bits,
            class_predicate=peer.model_quant_predicate,
        )
    flat: Any = tree_flatten(model.parameters())
    ours = [(_renamed(name, names), array) for name, array in flat]
    held: Any = tree_flatten(peer.parameters())
    theirs = [pair for pair in held if not (unused and unused in pair[0])]
    shapes = [{(name, array.shape) for name, array in arrays} for arrays in (ours, theirs)]
    if different := sorted(name for name, _ in shapes[0] ^ shapes[1]):
        raise InputError(
            f"mlx-audio stores this talker in another way ({different[0]}): leave --peer out."
        )
    peer.load_weights(ours, strict=False)


def _renamed(name: str, names: Sequence[tuple[str, str]]) -> str:
    for ours, theirs in names:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name
