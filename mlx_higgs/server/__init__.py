"""Higgs Audio as a service inside a Python program."""

from .engine import HiggsAudioServer
from .job import SpeechJob
from .request import SpeechRequest

__all__ = ["HiggsAudioServer", "SpeechJob", "SpeechRequest"]
