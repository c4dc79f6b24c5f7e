"""Bytes of every recipe at a named shape: arithmetic on shapes, no weight is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_unflatten

from ..footprint import bits_per_weight
from ..loading import build_model, leaves
from ..quantization import Plan, quantizable
from ..recipes import Recipe, shipped
from ..types import FRAME_RATE, InputError
from ..weights import nbytes
from .reads import frame_bytes
from .shapes import shape_config

ORIGINAL = "bfloat16"
MINUTE = round(60 * FRAME_RATE)


@dataclass(frozen=True)
class Size:
    """One recipe at one shape.

    Attributes:
        bits: per weight that may be quantised.
        disk: bytes of all weights, the text head too; memory: of those that speech needs.
        frame: bytes of weights that a frame reads; minute: those, and the keys and values of the
            minute of speech before it.
        about: widths are still to be chosen: what the target makes of it.
    """

    shape: str
    recipe: str
    bits: float
    disk: int
    memory: int
    frame: int
    minute: int
    about: bool = False


def sizes(shapes: Sequence[str]) -> list[Size]:
    """Every recipe that fits, at every shape.

    Raises:
        InputError: no such shape.
    """
    for name in shapes:
        shape_config(name)
    recipes = [Recipe(ORIGINAL), *shipped().values()]
    return [size for name in shapes for size in _sizes(name, recipes)]


def _sizes(name: str, recipes: Sequence[Recipe]) -> Iterator[Size]:
    config = shape_config(name)
    for recipe in recipes:
        try:
            yield (
                _chosen(name, config, recipe) if recipe.target_bpw else _size(name, config, recipe)
            )
        except InputError:  # a group that a small shape's widths are no multiple of
            continue


def _size(name: str, config: dict, recipe: Recipe) -> Size:
    model, whole = unread(config, recipe.plan), unread(config, recipe.plan, text_head=True)
    read = frame_bytes(model)
    return Size(
        shape=name,
        recipe=recipe.name,
        bits=bits_per_weight(model),
        disk=nbytes(whole),
        memory=nbytes(model),
        frame=read.weights,
        minute=read.at(MINUTE),
    )


def _chosen(name: str, config: dict, recipe: Recipe) -> Size:
    """Where the widths will be chosen: as if all came out alike."""
    assert recipe.target_bpw is not None
    plain = _size(name, config, Recipe(ORIGINAL))
    full = _size(name, config, shipped()["q8"])
    share = (plain.bits - recipe.target_bpw) / (plain.bits - full.bits)

    def between(part: str) -> int:
        before, after = getattr(plain, part), getattr(full, part)
        return round(before - share * (before - after))

    parts = {part: between(part) for part in ("disk", "memory", "frame", "minute")}
    return Size(name, recipe.name, recipe.target_bpw, **parts, about=True)


def unread(config: dict, plan: Plan, *, text_head: bool = False) -> Any:
    """A talker of these shapes in bfloat16, stored by a plan; nothing is allocated."""
    model = build_model(config, text_head=text_head)
    model.set_dtype(mx.bfloat16)
    modules = leaves(model)
    for path, how in quantizable(model, plan).items():
        quantized = modules[path].to_quantized(how.group_size, how.bits, how.mode)
        model.update_modules(tree_unflatten([(path, quantized)]))
    return model


def show_sizes(found: Sequence[Size]) -> Iterator[str]:
    """The table, line by line."""
    heads = ("on disk", "in memory", "per frame", "with 1 min")
    yield f"{'GB':10} {'recipe':16} {'bits':>7}" + "".join(f"{head:>12}" for head in heads)
    for size in found:
        bits = f"{'~' if size.about else ''}{size.bits:.2f}"
        parts = (size.disk, size.memory, size.frame, size.minute)
        cells = "".join(f"{part / 1e9:>12.3f}" for part in parts)
        yield f"{size.shape:10} {size.recipe:16} {bits:>7}{cells}"
    yield ""
    yield "on disk with the text head, which speech does not need; in memory without it."
    yield f"per frame: weights read; with 1 min: and keys and values of the {MINUTE} frames before."
    if any(size.about for size in found):
        yield "~ its widths are chosen by measuring: as if speech and text came out alike."
