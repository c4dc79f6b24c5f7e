"""Higgs Audio text-to-speech, native in MLX.

Names are imported on first use, so ``import mlx_higgs`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "HiggsAudioServer": ".server",
    "load": ".loading",
    "SamplingParams": ".sampling",
    "Voice": ".types",
}
__all__ = ["HiggsAudioServer", "SamplingParams", "Voice", "__version__", "load"]

if TYPE_CHECKING:
    from .loading import load
    from .sampling import SamplingParams
    from .server import HiggsAudioServer
    from .types import Voice


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
