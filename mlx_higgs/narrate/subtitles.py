"""What was said when, as SubRip (.srt), WebVTT (.vtt) or JSON (.json).

Times are kept to the sample in JSON and rounded to milliseconds, halves up, in the others: two cues
that meet still do. There a long text becomes several cues of at most two lines of 42 columns, which
share its time by their letters; its beginning and end stay.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..disk import sync
from ..types import InputError

LINE_COLUMNS = 42  # a wide character (CJK) takes two
LINES = 2  # of one cue

_SENTENCE = re.compile(r"(?<=[.!?…])(?=\s)|(?<=[。！？])")
_UNIT = re.compile(r"\s*\S[^\s\u1100-\u11ff\u2e80-\u9fff\uf900-\ufaff\uff00-\uff60]*")
_NOT_FIRST = set(
    "、。，．！？：；）」』】》〉”’…ー々ぁぃぅぇぉっゃゅょァィゥェォッャュョ)]}.,!?:;%"
)
_TAG = re.compile(r"<(?=[/A-Za-z!?])")


@dataclass(frozen=True)
class Cue:
    """What is heard from ``start`` to ``end``, seconds from the beginning: samples / rate."""

    start: float
    end: float
    text: str
    speaker: str = ""  # "" is the narrator


def write(path: str | os.PathLike, cues: Iterable[Cue]) -> Path:
    """Write by suffix, in UTF-8; the file appears whole or not at all.

    Raises:
        InputError: another suffix, or cues that are out of order or have no length.
        OSError: it cannot be written.
    """
    path = Path(path)
    content = dumps(cues, path.suffix).encode("utf-8")
    partial = path.with_name(f".{secrets.token_hex(8)}{path.suffix}")
    try:
        partial.write_bytes(content)
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def dumps(cues: Iterable[Cue], suffix: str) -> str:
    """The content of a file with that suffix. Raises InputError as :func:`write`."""
    if suffix.lower() not in FORMATS:
        known = ", ".join(FORMATS)
        raise InputError(f"Subtitles have the suffix {known}, not {suffix!r}.")
    cues = list(cues)
    check(cues)
    return FORMATS[suffix.lower()](cues)


def check(cues: Iterable[Cue]) -> None:
    """Raises InputError, with the number of the cue, for times that cannot be."""
    before = 0.0
    for number, cue in enumerate(cues, start=1):
        if not (0 <= cue.start <= cue.end < math.inf):
            raise InputError(
                f"Subtitle {number} lasts from {cue.start} to {cue.end} s: that is no time span."
            )
        if cue.start < before:
            raise InputError(
                f"Subtitle {number} begins at {cue.start} s, before the one in front of it."
            )
        before = cue.start


# -- the formats ----------------------------------------------------------------------------------


def _srt(cues: list[Cue]) -> str:
    """SubRip has no speakers and no escapes: names come first, marks that mean something change."""
    blocks = []
    for cue in _shown(cues, lambda cue: f"{cue.speaker}: {cue.text}" if cue.speaker else cue.text):
        text = _TAG.sub("‹", cue.text.replace("-->", "→")).replace("{\\", "{ \\")
        blocks.append(f"{len(blocks) + 1}\n{_span(cue, ',')}\n{text}\n\n")
    return "".join(blocks)


def _vtt(cues: list[Cue]) -> str:
    blocks = ["WEBVTT\n\n"]
    for cue in _shown(cues, lambda cue: cue.text):
        text = _escaped(cue.text)
        if speaker := _plain(cue.speaker):
            text = f"<v {_escaped(speaker)}>{text}"
        blocks.append(f"{_span(cue, '.')}\n{text}\n\n")
    return "".join(blocks)


def _json(cues: list[Cue]) -> str:
    """One object a cue under ``segments``, as in what transcribers write; nothing is split."""
    segments = [{"id": index, **asdict(cue)} for index, cue in enumerate(cues)]
    text = json.dumps({"segments": segments}, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    return _without_surrogates(text)


FORMATS: dict[str, Callable[[list[Cue]], str]] = {".srt": _srt, ".vtt": _vtt, ".json": _json}


def _span(cue: Cue, point: str) -> str:
    """At least a millisecond: players refuse a cue that ends where it begins."""
    start = milliseconds(cue.start)
    return f"{_clock(start, point)} --> {_clock(max(milliseconds(cue.end), start + 1), point)}"


def milliseconds(seconds: float) -> int:
    """The nearest; halves go up, so that equal times stay equal and order stays order."""
    return math.floor(seconds * 1000 + 0.5)


def _clock(ms: int, point: str) -> str:
    minutes, ms = divmod(ms, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{ms // 1000:02}{point}{ms % 1000:03}"


def _escaped(text: str) -> str:
    """``&``, ``<`` and ``>``, and with it ``-->``, mean something in WebVTT."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _plain(text: str) -> str:
    """On one line, without control characters."""
    text = _without_surrogates(text)
    return " ".join(
        "".join(" " if unicodedata.category(char) == "Cc" else char for char in text).split()
    )


def _without_surrogates(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


# -- what fits on a screen ------------------------------------------------------------------------


def _shown(cues: Iterable[Cue], words: Callable[[Cue], str]) -> Iterator[Cue]:
    """The cues with their lines, split where too long; those without words are left out."""
    for cue in cues:
        if _plain(cue.text):
            yield from _split(cue, screens(words(cue)))


def _split(cue: Cue, texts: list[str]) -> Iterator[Cue]:
    """Shares the time of ``cue`` among ``texts`` by their letters."""
    weights = [columns("".join(text.split())) for text in texts]
    total, said, start = sum(weights), 0, cue.start
    for text, weight in zip(texts, weights, strict=True):
        said += weight
        last = said == total
        end = cue.end if last else cue.start + (cue.end - cue.start) * said / total
        yield replace(cue, start=start, end=end, text=text)
        start = end


def screens(text: str) -> list[str]:
    """``text`` as screens of at most two lines, broken at the ends of sentences where they fit."""
    packed: list[str] = []
    for sentence in _SENTENCE.split(_plain(text)):
        together = "".join(packed[-1:]) + sentence
        if len(_filled(_units(together), LINE_COLUMNS)) <= LINES:
            packed[-1:] = [together]
            continue
        lines = wrapped(sentence)
        packed += ["".join(lines[i : i + LINES]) for i in range(0, len(lines), LINES)]
    return ["\n".join(map(str.strip, wrapped(screen))) for screen in packed if screen.strip()]


def wrapped(text: str) -> list[str]:
    """As few lines of at most 42 columns as can be, about as long; joined they are ``text``."""
    units = _units(text)
    lines = _filled(units, LINE_COLUMNS)
    for width in range(LINE_COLUMNS - 1, 0, -1):
        narrower = _filled(units, width)
        if len(narrower) > len(lines):
            break
        lines = narrower
    return lines


def _filled(units: list[str], width: int) -> list[str]:
    """Lines filled one after the other; a unit that is wider has its own.

    A line keeps the space it begins with, which takes no column.
    """
    lines: list[str] = []
    room = 0
    for unit in units:
        if lines and columns(unit) <= room:
            lines[-1] += unit
            room -= columns(unit)
        else:
            lines.append(unit)
            room = width - columns(unit.lstrip())
    return lines


def _units(text: str) -> list[str]:
    """Words with the space before them; single characters where words have none between them."""
    units: list[str] = []
    for unit in _UNIT.findall(text):
        if units and unit[0] in _NOT_FIRST:  # closing marks do not begin a line
            units[-1] += unit
        else:
            units += _cut(unit)
    return units


def _cut(word: str) -> list[str]:
    """A word wider than a line, in pieces; never before a mark that belongs to a letter."""
    if columns(word) <= LINE_COLUMNS:
        return [word]
    pieces, room = [""], LINE_COLUMNS
    for char in word:
        if columns(char) > room:
            pieces.append("")
            room = LINE_COLUMNS
        pieces[-1] += char
        room -= columns(char)
    return pieces


def columns(text: str) -> int:
    """How wide it is: two for wide characters, none for marks."""
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
