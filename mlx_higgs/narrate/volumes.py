"""The files a book becomes: sounds, subtitles, chapter times; made whole, and only once."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from .. import audio
from ..disk import sync
from ..pieces import Chunking, Piece
from ..types import InputError
from . import subtitles
from .binding import Layout, Part, arrange, bind
from .manuscript import Manuscript
from .narration import digest
from .shelf import Shelf

CHAPTERS = "chapters.json"
TITLE = 40  # characters of a title in a file's name


@dataclass(frozen=True)
class Volume:
    """A sound file to be, and what is said in it."""

    path: Path
    pieces: Sequence[Piece]
    tail: float = 0.0


@dataclass(frozen=True)
class Binding:
    """How files are made.

    Args:
        formats: of subtitles, as ``.srt``.
        loudness: LUFS, or None for what it is.
    """

    chunking: Chunking
    formats: Sequence[str] = ()
    loudness: float | None = None


def shelf_path(output: Path | None, folder: Path | None) -> Path:
    """The hidden folder for the pieces of a book."""
    if folder is not None:
        return folder / ".pieces"
    assert output is not None
    return output.parent / f".{output.stem}.pieces"


def one_file(manuscript: Manuscript, path: Path) -> list[Volume]:
    """All chapters in one."""
    return [Volume(path, manuscript.pieces, manuscript.tail)]


def files(manuscript: Manuscript, folder: Path, suffix: str) -> list[Volume]:
    """A file per chapter, numbered and named by its title."""
    chapters = [list(group) for _, group in groupby(manuscript.pieces, lambda one: one.chapter)]
    digits = max(2, len(str(len(chapters))))
    found = []
    for number, pieces in enumerate(chapters, start=1):
        title = re.sub(r"[\W_]+", "-", manuscript.titles[pieces[0].chapter].lower()).strip("-")
        name = f"{number:0{digits}}" + (f"-{title[:TITLE].strip('-')}" if title else "")
        found.append(Volume(folder / f"{name}{suffix}", pieces))
    return found


class Volumes:
    """The files of one book.

    Args:
        chapters: where the times of chapters go; None: nowhere.
        source: the file that is read: what was made of another is not ours to replace.
    """

    def __init__(
        self,
        volumes: Sequence[Volume],
        manuscript: Manuscript,
        binding: Binding,
        shelf: Shelf,
        chapters: Path | None,
        source: Path,
    ):
        self._volumes, self._titles, self._binding = volumes, manuscript.titles, binding
        self._shelf, self._chapters = shelf, chapters
        self._source, about = str(source.resolve()), shelf.about()
        self._done: dict[str, dict] = (
            about.get("files", {}) if about.get("source") == self._source else {}
        )
        self._bound: list[tuple[Volume, Layout]] = []

    @property
    def pieces(self) -> list[Piece]:
        """All of them, in the order in which they are needed."""
        return [piece for volume in self._volumes for piece in volume.pieces]

    def check(self, *, force: bool) -> None:
        """Raises InputError for a file that cannot be written, or is there and not from here."""
        for volume in self._volumes:
            audio.check_output(volume.path, force=force or self._is_ours(volume.path))
        others = [path for volume in self._volumes for path in self._subtitles(volume)]
        for path in [*others, *([self._chapters] if self._chapters else [])]:
            if path.exists() and not force and not self._is_ours(path):
                raise InputError(f"The output {path} exists. Add --force to replace it.")

    def take(self, parts: Iterator[Part]) -> Iterator[Part]:
        """Pass on every part; a file is written as soon as its last one came.

        Raises:
            InputError, OSError: as `binding.bind`.
        """
        for volume in self._volumes:
            own = []
            for _ in volume.pieces:
                own.append(next(parts))
                yield own[-1]
            self._bind(volume, own)

    def finish(self) -> None:
        """Write the times of the chapters."""
        if self._chapters is not None:
            content = json.dumps({"chapters": self.chapters()}, ensure_ascii=False, indent=1)
            self._write(self._chapters, content + "\n")

    @property
    def paths(self) -> list[str]:
        return [str(volume.path) for volume in self._volumes]

    @property
    def seconds(self) -> float:
        return sum(layout.samples / layout.rate for _, layout in self._bound)

    def chapters(self) -> list[dict[str, Any]]:
        """Title, file, and times within it, in samples and in seconds."""
        return [
            {
                "title": self._titles[chapter],
                "file": volume.path.name,
                "start": start / layout.rate,
                "end": stop / layout.rate,
                "start_sample": start,
                "end_sample": stop,
            }
            for volume, layout in self._bound
            for chapter, (start, stop) in layout.chapters().items()
        ]

    def faults(self) -> list[dict[str, Any]]:
        """The pieces that no attempt said well, with their places."""
        return [
            {
                "file": volume.path.name,
                "start": start / layout.rate,
                "end": stop / layout.rate,
                "fault": part.kept.fault,
                "stop_reason": part.kept.stop_reason,
                "attempts": part.kept.attempts,
                "seed": part.kept.seed,
                "text": part.piece.text,
            }
            for volume, layout in self._bound
            for part, start, stop in layout.places
            if part.kept.fault
        ]

    def _bind(self, volume: Volume, parts: Sequence[Part]) -> None:
        binding = self._binding
        layout = arrange(parts, binding.chunking.gap_ms, volume.tail)
        self._bound.append((volume, layout))
        content = _content(layout, binding)
        for path in self._subtitles(volume):
            self._write(path, subtitles.dumps(layout.cues, path.suffix))
        if self._is_done(volume.path, content):
            return
        sound = self._shelf.path / f".bound{volume.path.suffix.lower()}"
        bind(
            sound, layout, self._shelf, fade_ms=binding.chunking.fade_ms, loudness=binding.loudness
        )
        self._put(sound, volume.path, content)

    def _subtitles(self, volume: Volume) -> list[Path]:
        return [volume.path.with_suffix(suffix) for suffix in self._binding.formats]

    def _write(self, path: Path, text: str) -> None:
        content = digest(text)
        if self._is_done(path, content):
            return
        made = self._shelf.path / ".written"
        made.write_text(text, encoding="utf-8")
        self._put(made, path, content)

    def _put(self, made: Path, path: Path, content: str) -> None:
        """Move it to its place. The note comes first: killed between, both files are ours."""
        sync(made)
        marks = [_mark(made), *([_mark(path)] if self._is_ours(path) else [])]
        self._done[path.name] = {"content": content, "marks": marks}
        about = {**self._shelf.about(), "files": self._done, "source": self._source}
        self._shelf.note(about)
        os.replace(made, path)
        sync(path.parent)

    def _is_ours(self, path: Path) -> bool:
        """Made of this source, and the same since."""
        return path.is_file() and _mark(path) in self._noted(path).get("marks", [])

    def _is_done(self, path: Path, content: str) -> bool:
        """It holds ``content``: moved there, not just noted."""
        noted = self._noted(path)
        same = path.is_file() and noted.get("marks", [])[:1] == [_mark(path)]
        return same and noted["content"] == content

    def _noted(self, path: Path) -> dict:
        noted = self._done.get(path.name)
        return noted if isinstance(noted, dict) else {}


def _mark(path: Path) -> list[int]:
    """What a file keeps when it is moved, and loses when it is written to."""
    about = path.stat()
    return [about.st_size, about.st_mtime_ns]


def _content(layout: Layout, binding: Binding) -> str:
    """Hash of all that a file is made of."""
    places = [(place.part.key, place.start, asdict(place.part.kept)) for place in layout.places]
    return digest(places, layout.samples, binding.chunking.fade_ms, binding.loudness)
