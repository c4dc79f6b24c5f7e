"""``--cast NAME=VOICE``: who speaks which turns, and how each of them is asked for."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli import note
from ..speech_options import build_request
from ..types import InputError, Profile, Voice
from .narration import Role, digest
from .script import NARRATOR

if TYPE_CHECKING:
    from ..server import SpeechRequest
    from ..voices import Reference

OF_THE_PIECE = ("target_text", "seed", "history", "speakers")
OF_THE_VOICE = ("reference_audio_path", "reference_text", "voice")


def read_cast(entries: Iterable[str]) -> dict[str, str]:
    """Name -> voice.

    Raises:
        InputError: an entry that is not NAME=VOICE, or a name twice.
    """
    cast: dict[str, str] = {}
    for entry in entries:
        name, equals, voice = (part.strip() for part in entry.partition("="))
        if not (name and equals and voice):
            raise InputError(f"--cast {entry!r} names nobody: write --cast NAME=VOICE.")
        if name.casefold() in map(str.casefold, cast):
            raise InputError(f"--cast gives {name} two voices.")
        cast[name] = voice
    return cast


def roles(
    arguments: argparse.Namespace, cast: Mapping[str, str], names: Sequence[str]
) -> dict[str, Role]:
    """Speaker -> role; "" is the narrator, whose voice those have whom nobody was cast for.

    Raises:
        InputError: somebody is cast who says nothing; a voice or an option that cannot be used.
    """
    known = {name.casefold(): name for name in names} | {NARRATOR: ""}
    if strangers := [name for name in cast if name.casefold() not in known]:
        there = f"it has {', '.join(names)}" if names else "it is no dialogue"
        raise InputError(f"{strangers[0]} says nothing in {arguments.file}: {there}.")
    narrator = build_request(arguments, "one")
    found = {"": _role(narrator)}
    for name, voice in cast.items():
        found[known[name.casefold()]] = _role(_spoken_by(narrator, voice))
    if silent := [name for name in names if name not in found]:
        note(f"Nobody is cast as {', '.join(silent)}: the narrator speaks for them (see --cast).")
    return found


def _spoken_by(request: SpeechRequest, voice: str) -> SpeechRequest:
    """In a voice of its own: a clip's path, a name, or a description."""
    from ..voices import SUFFIXES

    cleared = replace(request, **dict.fromkeys(OF_THE_VOICE))
    if Path(voice).suffix.lower() in SUFFIXES:
        return replace(cleared, reference_audio_path=[voice])
    return replace(cleared, voice=[voice])


def _role(request: SpeechRequest) -> Role:
    """Everything that can be refused without a model is refused here."""
    from ..sampling import SamplingParams
    from ..server.request import check_clips, references

    request.sampling(SamplingParams())
    voices = references(request)
    check_clips(voices)
    asked = {
        field.name: getattr(request, field.name)
        for field in fields(request)
        if field.name not in (*OF_THE_PIECE, *OF_THE_VOICE)
    }
    content = digest(asked, [_content(voice) for voice in voices])
    return Role(request, content, any(not isinstance(voice, Profile) for voice in voices))


def _content(voice: Reference | Voice | Profile) -> list[str]:
    if isinstance(voice, Profile):
        return [voice.description]
    assert not isinstance(voice, Voice)  # a command names its voices
    return [hashlib.sha256(voice.path.read_bytes()).hexdigest(), voice.transcript]
