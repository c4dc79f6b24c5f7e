"""What one audio frame reads from memory, by watching which weights a step asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

TABLES = (nn.Embedding, nn.QuantizedEmbedding)
Step = Callable[[], Any]


@dataclass
class Reading:
    """One module that a step used.

    Attributes:
        arrays: the parameters it asked for, by name.
        rows: looked up in it; 0 for what is no table.
        whole: a table that is multiplied with, too: an output head that shares it.
    """

    path: str
    module: nn.Module
    arrays: dict[str, mx.array] = field(default_factory=dict)
    rows: int = 0
    whole: bool = False

    @property
    def nbytes(self) -> int:
        everything = sum(array.nbytes for array in self.arrays.values())
        looked_up = self.rows and not self.whole
        return everything // len(self.arrays["weight"]) * self.rows if looked_up else everything

    @property
    def multiplies(self) -> bool:
        return self.whole or (not self.rows and self.arrays["weight"].ndim == 2)


@dataclass(frozen=True)
class FrameBytes:
    """Bytes that one frame reads: ``parts`` of the weights, and keys and values by position."""

    parts: dict[str, int]
    kv_per_position: int

    @property
    def weights(self) -> int:
        return sum(self.parts.values())

    def at(self, position: int) -> int:
        """Everything a frame reads when so many positions came before it."""
        return self.weights + self.kv_per_position * position


def frame_readings(model: Any) -> tuple[list[Reading], int]:
    """The modules of one audio step, and bytes of keys and values per position.

    The step's graph is built and dropped: nothing is computed, weights may be lazy.
    """
    cache = model.make_cache()

    def step() -> None:
        row = mx.zeros((1, 1, model.delay.num_codebooks), mx.int32)
        model.audio_logits(model.hidden(model.embed_rows(row), cache)[:, -1])

    readings = watch(model, step)
    stores = [store for layer in cache for store in (layer.keys, layer.values) if store is not None]
    return readings, sum(store.nbytes // store.shape[2] for store in stores)


def frame_bytes(model: Any) -> FrameBytes:
    """Bytes of one frame, by part."""
    readings, kv = frame_readings(model)
    return FrameBytes(by_part(readings), kv)


def by_part(readings: list[Reading]) -> dict[str, int]:
    parts = {"attention": 0, "ffn": 0, "audio_head": 0, "other": 0}
    for reading in readings:
        parts[_part(reading)] += reading.nbytes
    return parts


def _part(reading: Reading) -> str:
    """``other``: norms, and the rows of codes looked up."""
    if not reading.multiplies:
        return "other"
    names = reading.path.split(".")
    if any("attn" in name for name in names):
        return "attention"
    return "ffn" if any("mlp" in name for name in names) else "audio_head"


def watch(model: Any, step: Step) -> list[Reading]:
    """The modules whose parameters ``step`` asks for, in the order of first use."""
    found: dict[str, Reading] = {}
    modules = [(path, m) for path, m in model.named_modules() if not m.children()]
    with _watched(modules, found):
        step()
    return list(found.values())


@contextmanager
def _watched(modules: list[tuple[str, Any]], found: dict[str, Reading]) -> Iterator[None]:
    classes = [type(module) for _, module in modules]
    try:
        for path, module in modules:
            module.__class__ = _watching(type(module), Reading(path, module), found)
        yield
    finally:
        for (_, module), kind in zip(modules, classes, strict=True):
            module.__class__ = kind


def _watching(kind: Any, reading: Reading, found: dict[str, Reading]) -> type:
    """A subclass that notes what is asked for: modules are dicts of their parameters."""

    def note(key: str, value: Any) -> Any:
        if isinstance(value, mx.array) and not key.startswith("_"):
            found.setdefault(reading.path, reading).arrays[key] = value
        return value

    class Watching(kind):
        def __getitem__(self, key: str) -> Any:
            return note(key, super().__getitem__(key))

        def get(self, key: str, default: Any = None) -> Any:
            return note(key, super().get(key, default))

        def __call__(self, x: mx.array, *rest: Any) -> Any:
            if issubclass(kind, TABLES):
                reading.rows += x.size
            return super().__call__(x, *rest)

        def as_linear(self, x: mx.array) -> mx.array:
            reading.whole = True
            return super().as_linear(x)

    return Watching
