"""Voices on disk: a folder of ``NAME.wav`` with what the clip says in ``NAME.txt``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .text import read_text
from .types import InputError

CHECKOUT = Path(__file__).parent.parent / "examples" / "voice_prompts"
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus")
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Reference:
    """A clip to clone and its transcript."""

    path: Path
    transcript: str
    name: str = ""


def voice_folders() -> list[Path]:
    """Where names are looked up: ``$MLX_HIGGS_VOICES`` first, then the examples' folder."""
    named = os.environ.get("MLX_HIGGS_VOICES", "")
    folders = [Path(entry) for entry in named.split(os.pathsep) if entry]
    return [*folders, Path("examples") / "voice_prompts", CHECKOUT]


def list_voices(folders: Iterable[Path] | None = None) -> dict[str, Path]:
    """Name -> clip of every voice that has a transcript; earlier folders win."""
    found: dict[str, Path] = {}
    for folder in voice_folders() if folders is None else folders:
        for clip in sorted(folder.glob("*")) if folder.is_dir() else ():
            known = clip.suffix.lower() in SUFFIXES and NAME.fullmatch(clip.stem)
            if known and clip.with_suffix(".txt").is_file():
                found.setdefault(clip.stem, clip)
    return found


def find_voice(name: str, folders: Iterable[Path] | None = None) -> Reference:
    """A voice by name.

    Raises:
        InputError: unknown; the message lists the known ones.
    """
    known = list_voices(folders)
    if name not in known:
        names = ", ".join(sorted(known)) or "none found; name their folder in $MLX_HIGGS_VOICES"
        raise InputError(f"There is no voice {name!r}. Known voices: {names}.")
    return reference(known[name], name=name)


def reference(
    path: str | os.PathLike, transcript: str | None = None, *, name: str = ""
) -> Reference:
    """A clip with its transcript, read from ``CLIP.txt`` beside it when not given.

    Raises:
        InputError: no clip, or no transcript.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"The reference {path} does not exist, or is no file.")
    sidecar = path.with_suffix(".txt")
    if transcript is None and sidecar.is_file():
        transcript = read_text(sidecar)
    if transcript is None or not transcript.strip():
        raise InputError(
            f"The reference {path} has no transcript: give its exact words with --ref-text "
            f"(reference_text), or write them to {sidecar}."
        )
    return Reference(path, transcript.strip(), name or path.stem)
