"""Where voices are looked up, and what makes one of two files: a clip and its words.

A folder holds ``NAME.wav`` and ``NAME.txt``, as Boson's examples do, or lists its voices in a
``config.json`` as vLLM's presets do: ``{NAME: {"transcript": WORDS, "audio_file": FILE}}``.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..text import read_text
from ..types import InputError

if TYPE_CHECKING:
    import numpy as np

BUNDLED = Path(__file__).parent / "bundled"
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus")
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")
PRESETS = "config.json"
MAX_PRESETS_BYTES = 4 << 20
SHOWN = 20  # names in an error


def clips_in(folder: Path) -> list[Path]:
    """The sound files of a folder, in the order of their names.

    Raises:
        InputError: no folder, or no sound file in it.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.")
    clips = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not clips:
        raise InputError(f"There is no sound file in {folder} (NAME.wav with NAME.txt).")
    return clips


class UnknownVoice(InputError):  # noqa: N818
    """A name that no folder has."""


@dataclass(frozen=True)
class Reference:
    """A clip to clone and its transcript.

    Attributes:
        wave: the clip itself, mono float32 ``[N]`` at 24 kHz, where it has been decoded already;
            ``path`` is then no more than its name, which other samples must not share.
    """

    path: Path
    transcript: str
    name: str = ""
    wave: np.ndarray | None = field(default=None, repr=False, compare=False)


def data_folder() -> Path | None:
    """Where this user's own voices go: ``$XDG_DATA_HOME``, or where the system has such things.

    None for a user without a home.
    """
    shared = Path(os.environ.get("XDG_DATA_HOME", ""))
    if sys.platform == "darwin":
        shared = Path("~/Library/Application Support")
    elif not shared.is_absolute():
        shared = Path("~/.local/share")
    try:
        return shared.expanduser() / "mlx_higgs" / "voices"
    except RuntimeError:  # pathlib's word for it
        return None


def named_folders() -> list[Path]:
    """The folders of ``$MLX_HIGGS_VOICES``."""
    named = os.environ.get("MLX_HIGGS_VOICES", "")
    return [Path(entry).expanduser() for entry in named.split(os.pathsep) if entry]


def own_folder() -> Path:
    """Where a new voice is put: the first folder of ``$MLX_HIGGS_VOICES``, or the user's own.

    Raises:
        InputError: there is neither.
    """
    for folder in [*named_folders(), data_folder()]:
        if folder is not None:
            return folder
    raise InputError("There is no home to keep voices in: name a folder in $MLX_HIGGS_VOICES.")


def voice_folders() -> list[Path]:
    """Where names are looked up, the first to have one wins.

    The folders of ``$MLX_HIGGS_VOICES``, the user's own, ``examples/voice_prompts`` of the current
    folder, and the voices that come with the package.
    """
    own = data_folder()
    examples = Path("examples") / "voice_prompts"
    return [*named_folders(), *([own] if own else []), examples, BUNDLED]


def list_voices(folders: Iterable[Path] | None = None) -> dict[str, Path]:
    """Name -> clip of every voice that has a transcript; earlier folders win."""
    found: dict[str, Path] = {}
    for folder in voice_folders() if folders is None else folders:
        found = {**voices_in(folder), **found}
    return found


def voices_in(folder: Path) -> dict[str, Path]:
    """Name -> clip of one folder, by name. What cannot be read holds none."""
    try:
        with os.scandir(folder) as entries:
            there = {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):  # a NUL in a name is a ValueError
        return {}
    found = {name: clip for name, (clip, _) in presets(folder).items()} if PRESETS in there else {}
    for file in sorted(there):
        name, suffix = os.path.splitext(file)
        if suffix.lower() in SUFFIXES and NAME.fullmatch(name) and f"{name}.txt" in there:
            found.setdefault(name, folder / file)
    return dict(sorted(found.items()))


def presets(folder: Path) -> dict[str, tuple[Path, str]]:
    """Name -> clip and words of a folder's ``config.json``; what is no preset is passed over."""
    path = folder / PRESETS
    try:
        if path.stat().st_size > MAX_PRESETS_BYTES:
            return {}
        listed = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    found = {}
    for name, words, file in preset_entries(listed):
        clip = folder / file
        inside = clip.resolve().is_relative_to(folder.resolve())
        if inside and clip.suffix.lower() in SUFFIXES and clip.is_file():
            found[name] = (clip, words)
    return found


def preset_entries(listed: object) -> Iterable[tuple[str, str, str]]:
    """Name, words and file of each usable entry of vLLM's ``{name: {transcript, audio_file}}``."""
    for name, entry in listed.items() if isinstance(listed, dict) else ():
        if not isinstance(entry, dict) or not NAME.fullmatch(name):
            continue
        words, file = entry.get("transcript"), entry.get("audio_file")
        if isinstance(words, str) and isinstance(file, str) and file.isprintable():
            yield name, words, file


def find_voice(name: str, folders: Iterable[Path] | None = None) -> Reference:
    """A voice by name.

    Raises:
        UnknownVoice: the message lists the known ones. InputError: it has no words.
    """
    folders = voice_folders() if folders is None else list(folders)
    for folder in folders:
        found = voices_in(folder)
        if name in found:
            _, words = presets(folder).get(name, (None, None))
            return reference(found[name], words, name=name)
    raise UnknownVoice(f"There is no voice {name[:70]!r}. {known_names(list_voices(folders))}")


def known_names(names: Iterable[str]) -> str:
    """A sentence or two that say what there is instead."""
    known = sorted(names)
    if not known:
        return "Known voices: none found; add one with python -m mlx_higgs.voices add."
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    listed = ", ".join(known[:SHOWN])
    return f"Known voices: {listed}{more}. See python -m mlx_higgs.voices list."


def reference(
    path: str | os.PathLike,
    transcript: str | None = None,
    *,
    name: str = "",
    wordless: bool = False,
) -> Reference:
    """A clip with its transcript, read from ``CLIP.txt`` beside it when not given.

    Args:
        wordless: a transcript of ``""`` says that there is none, and is no mistake.

    Raises:
        InputError: no clip, or no transcript.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"The reference {path} does not exist, or is no file.")
    sidecar = path.with_suffix(".txt")
    if transcript is None and sidecar.is_file():
        transcript = read_text(sidecar)
    if wordless and transcript == "":
        return Reference(path, "", name or path.stem)
    if transcript is None or not transcript.strip():
        raise no_transcript(path)
    return Reference(path, transcript.strip(), name or path.stem)


def no_transcript(path: Path) -> InputError:
    """What is wrong with a clip without words, and the ways out."""
    return InputError(
        f"The reference {path} has no transcript: give its exact words with --ref-text "
        f"(reference_text), or write them to {path.with_suffix('.txt')}. Models that clone without "
        'them (Higgs v3) want it said: --ref-text "".'
    )
