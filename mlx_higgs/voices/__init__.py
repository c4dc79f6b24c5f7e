"""Voices on disk: folders of ``NAME.wav`` with what the clip says in ``NAME.txt``."""

from .folders import (
    NAME,
    SUFFIXES,
    Reference,
    UnknownVoice,
    clips_in,
    find_voice,
    list_voices,
    no_transcript,
    reference,
    voice_folders,
)

__all__ = [
    "NAME",
    "SUFFIXES",
    "Reference",
    "UnknownVoice",
    "clips_in",
    "find_voice",
    "list_voices",
    "no_transcript",
    "reference",
    "voice_folders",
]
