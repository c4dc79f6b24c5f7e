"""Higgs Audio as a service inside a Python program."""

from .engine import HiggsAudioServer, SpeechRequest

__all__ = ["HiggsAudioServer", "SpeechRequest"]
