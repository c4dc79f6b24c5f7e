"""Higgs Audio as a service inside a Python program."""

from .engine import HiggsAudioServer
from .request import SpeechRequest

__all__ = ["HiggsAudioServer", "SpeechRequest"]
