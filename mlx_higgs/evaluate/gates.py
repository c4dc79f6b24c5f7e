"""Which gate a golden file is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..weights import read_header
from . import audio_gate, text_gate

GATES = (text_gate, audio_gate)


def gate_of(golden: Path) -> Any:
    """The module whose ``judge`` reads a golden file; None where it is none of a gate's."""
    if not golden.is_file():
        return None
    names = read_header(golden)
    return next((gate for gate in GATES if gate.NAMES[0] in names), None)
