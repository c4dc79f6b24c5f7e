"""Higgs Audio as a service: in a Python program, or over HTTP (``python -m mlx_higgs.server``).

Names are imported on first use, so that the command's ``--help`` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_HOMES = {
    "ChatJob": ".chat",
    "ChatRequest": ".chat",
    "HiggsAudioServer": ".engine",
    "SpeechJob": ".job",
    "SpeechRequest": ".request",
}
__all__ = ["ChatJob", "ChatRequest", "HiggsAudioServer", "SpeechJob", "SpeechRequest"]

if TYPE_CHECKING:
    from .chat import ChatJob, ChatRequest
    from .engine import HiggsAudioServer
    from .job import SpeechJob
    from .request import SpeechRequest


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
