"""What is given one width: matrices that a frame reads as one, and what each width costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..quantization import MODES, Quantization

# read the same input and are one multiplication when generating (`model.fuse`), if stored alike
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True)
class Unit:
    """Modules that share a width.

    Attributes:
        paths: of its modules. shapes: of their matrices.
    """

    paths: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, modules: Mapping[str, Any]) -> Unit:
        return cls(tuple(modules), tuple(module.weight.shape for module in modules.values()))

    @property
    def size(self) -> int:
        """Parameters."""
        return sum(rows * width for rows, width in self.shapes)

    @property
    def name(self) -> str:
        """For people: ``layers.0.self_attn.q_proj+k_proj+v_proj``."""
        ends = [path.rpartition(".")[2] for path in self.paths[1:]]
        return "+".join([self.paths[0], *ends])

    def choices(self, widths: Sequence[int]) -> list[Quantization]:
        """The affine widths, in each size of groups that divides its rows."""
        groups = [n for n in sorted(MODES["affine"][0]) if all(w % n == 0 for _, w in self.shapes)]
        return [Quantization(bits, group) for bits in widths for group in groups]


def units_of(modules: dict[str, Any]) -> list[Unit]:
    """Modules by path -> units, in the order of their first modules."""
    left, units = dict(modules), []
    for path in modules:
        if path in left:
            units.append(Unit.of({p: left.pop(p) for p in _company(path) if p in left}))
    return units


def _company(path: str) -> Iterable[str]:
    parent, dot, name = path.rpartition(".")
    for names in TOGETHER:
        if name in names:
            return [parent + dot + other for other in names]
    return [path]
