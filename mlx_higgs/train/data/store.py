"""Audio files of a data set that is being written, and clips that know where they will be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ...types import InputError
from ...voices import SUFFIXES
from .clips import extract
from .conversation import Clip, Conversation, Message


class Store:
    """Audio files of one folder, each clip once, under its own name where that is free."""

    def __init__(self, folder: Path, final: Path):
        """``folder`` is written to now, and will be found as ``final``."""
        self.folder, self.final = folder, final
        self._paths: dict[Clip, Path] = {}
        self._taken: set[str] = set()

    def keep(self, clip: Clip, *, again: bool = False) -> Path:
        """Where the clip will be found; ``again`` copies one that is there already."""
        if clip in self._paths and not again:
            return self._paths[clip]
        stem = "clip" if clip.path is None else clip.path.stem
        whole = is_file(clip) and clip.path is not None and clip.path.suffix.lower() in SUFFIXES
        if whole and clip.path is not None:
            name = self.free(stem, clip.path.suffix.lower())
            if not clip.path.is_file():
                raise InputError(f"The clip {clip.path} does not exist.")
            shutil.copyfile(clip.path, self.folder / name)
        else:
            name = self.free(stem, ".wav")
            extract(clip, self.folder / name)
        self._paths[clip] = self.final / name
        return self._paths[clip]

    def free(self, stem: str, suffix: str) -> str:
        """A name that is not taken: two clips never share a stem, whatever their suffixes."""
        number, name = 1, stem
        while name.lower() in self._taken:  # as macOS and Windows compare names
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name.lower())
        return name + suffix

    def moved(self, clip: Clip) -> Clip:
        """The clip as it will be read back."""
        return moved(clip, str(self._paths[clip]))

    def moved_or(self, clip: Clip, kept: Clip) -> Clip:
        """As ``moved`` for the clip that is kept; others as they were."""
        return self.moved(clip) if clip == kept else absolute(clip)


def is_file(clip: Clip) -> bool:
    """Whether the clip is a whole file on disk."""
    return clip.path is not None and not clip.offset and clip.duration is None


def absolute(clip: Clip) -> Clip:
    return clip if clip.path is None else replace(clip, path=Path(os.path.abspath(clip.path)))


def moved(clip: Clip, name: str) -> Clip:
    return Clip(Path(os.path.abspath(name)), row_id=clip.row_id)


def with_clips(conversation: Conversation, change: Callable[[Clip], Clip]) -> Conversation:
    """The same conversation with every clip changed."""
    messages = [
        Message(m.role, tuple(p if isinstance(p, str) else change(p) for p in m.parts), m.recipient)
        for m in conversation.messages
    ]
    return replace(conversation, messages=tuple(messages))
