"""What a gate finds: figures, the limits they are held to, and what lies outside."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters import apply_adapter
from ..loading import open_model, read_weights
from ..quantization import stored_quantization
from ..sources import resolve, resolve_adapter
from ..types import InputError
from ..weights import read_json
from .qwen3 import is_plain_qwen3, open_qwen3

if TYPE_CHECKING:
    from ..models.base import SpeechModel

Figures = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """How a talker stands before a gate.

    Attributes:
        gate: which one.
        dtype: what was computed in; None for a quantised checkpoint's own.
        figures: what was measured; a replay's figures under its name, where there are several.
        limits: what the gate asks.
        failures: what lies outside, a clause each.
    """

    gate: str
    dtype: str | None
    figures: Figures
    limits: dict[str, float]
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the attributes and ``passed``; a figure that is no number is None."""
        return {
            "gate": self.gate,
            "passed": self.passed,
            "dtype": self.dtype,
            **self.figures,
            "limits": self.limits,
            "failures": self.failures,
        }


def number(value: Any) -> float | None:
    """A float that JSON can hold; None for NaN and infinity, which are not below any limit."""
    value = float(value)
    return value if abs(value) < float("inf") else None


def below(value: float | None, limit: float) -> bool:
    """Whether there is a value and it keeps the limit; NaN keeps none."""
    return value is not None and value <= limit


def open_talker(
    checkpoint: str | Path,
    dtype: str,
    adapter: str | Path | None,
    *,
    text_head: bool,
) -> tuple[SpeechModel, str | None]:
    """A talker as generation has it, its matrices joined, or Qwen3 without any codes.

    Returns:
        And the width it computes in: a quantised checkpoint keeps its own.
    """
    folder = resolve(checkpoint)
    config = read_json(folder / "config.json")
    width = None if stored_quantization(config) else dtype
    if is_plain_qwen3(config):
        if adapter is not None:
            raise InputError(f"{checkpoint} is a plain Qwen3: it takes no --adapter.")
        model: Any = open_qwen3(folder, dtype)
    else:
        alone = adapter is None
        model = open_model(folder, dtype=width, text_head=text_head, fuse=alone)
    read_weights(model)
    if adapter is not None:
        apply_adapter(model, resolve_adapter(adapter))
    return model, width
