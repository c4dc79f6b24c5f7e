"""A file to be read aloud -> chapters in pieces: plain text, Markdown, EPUB, dialogue scripts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ..pieces import Chunking, Piece
from ..sentences import LETTERS, letters, paragraphs, split
from ..text import is_blank, read_text
from ..types import InputError
from .script import is_script, parse

HEADING = 120  # letters: what is longer is a paragraph
PARAGRAPH, TITLE, BREAK = 0.35, 0.8, 1.0  # seconds of silence before, after, and instead of words

_HEADING = re.compile(
    r"(?:chapter|part|book|act|kapitel|teil|chapitre|cap[ií]tulo|capitolo|глава)\s+"
    r"(?:\d+|[ivxlcdm]+|[a-z]+)\b.{0,60}|(?:prologue|epilogue|preface|foreword|introduction)"
    r"|第[\d一二三四五六七八九十百千〇零]+[章回節节部].{0,30}",
    re.IGNORECASE,
)
_MARKDOWN = re.compile(r"(#{1,6})\s+(.+?)\s*#*")
_MARKS = [  # what is written in Markdown and not read, and what stands for it
    (re.compile(r"<!--.*?-->", re.DOTALL), ""),
    (re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.DOTALL | re.MULTILINE), ""),
    (re.compile(r"!\[[^\]]*\]\([^)]*\)"), ""),
    (re.compile(r"\[([^\]]+)\]\([^)]*\)"), r"\1"),
    (re.compile(r"^\s{0,3}(?:[-*+]|\d+[.)]|>+)\s+", re.MULTILINE), ""),
    (re.compile(r"^\s*(?:[-*_]\s*){3,}$", re.MULTILINE), "* * *"),
    (re.compile(r"(\*\*|__|\*|_|~~|`)(?=\S)([^\n]*?\S)\1"), r"\2"),
]
SUFFIXES = (".txt", ".md", ".markdown", ".epub")


class Section(NamedTuple):
    """A chapter as it is written."""

    title: str  # "" if it has none
    heading: str  # what is read of it, before the text
    text: str


@dataclass(frozen=True)
class Manuscript:
    """What is to be read.

    Attributes:
        titles: of its chapters; a piece's ``chapter`` counts them.
        names: who speaks beside the narrator.
        tail: seconds of silence at the end.
    """

    titles: list[str]
    pieces: list[Piece]
    names: list[str] = field(default_factory=list)
    tail: float = 0.0


def read(
    path: Path, chunking: Chunking, *, script: bool | None = None, names: Iterable[str] = ()
) -> Manuscript:
    """Read a file by its suffix: .txt, .md or .epub.

    Args:
        chunking: how chapters and turns are cut.
        script: whether a text is a dialogue script; None: if its first line begins a turn.
        names: who is known to speak in it.

    Raises:
        InputError: it cannot be read, or holds nothing to say.
    """
    if path.suffix.lower() == ".epub":
        from .epub import read as read_epub

        chapters = [_headed(chapter.title, chapter.text) for chapter in read_epub(path)]
        return _book(chapters, chunking, path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} cannot be read aloud: use one of {', '.join(SUFFIXES)}.")
    text = read_text(path)
    if script or (script is None and _begins_a_turn(text)):
        return _dialogue(text, chunking, path, names)
    markdown = path.suffix.lower() != ".txt"
    return _book(list(_sections(_plain(text) if markdown else text, markdown)), chunking, path)


def _begins_a_turn(text: str) -> bool:
    return text.lstrip("\ufeff \t\r\n").startswith("[") and is_script(text)


def _headed(title: str, text: str) -> Section:
    """The text of an e-book holds the heading, which need not be what its contents say."""
    first, _, rest = text.partition("\n\n")
    if rest and letters(first) <= HEADING:
        return Section(title or first, first, rest)
    return Section(title, "", text)


def _dialogue(text: str, chunking: Chunking, path: Path, names: Iterable[str]) -> Manuscript:
    script = parse(text, names)
    pieces = [
        replace(turn, text=part, pause=0.0 if index else turn.pause)
        for turn in script.pieces
        for index, part in enumerate(_cut(turn.text, chunking))
    ]
    return Manuscript([path.stem], _some(pieces, path), script.names, script.tail)


def _book(chapters: list[Section], chunking: Chunking, path: Path) -> Manuscript:
    titles: list[str] = []
    pieces: list[Piece] = []
    for section in chapters:
        said = list(_chapter(section, chunking, len(titles)))
        if said:
            titles.append(" ".join(section.title.split()) or path.stem)
            pieces += said
    return Manuscript(titles, _some(pieces, path))


def _some(pieces: list[Piece], path: Path) -> list[Piece]:
    if not pieces:
        raise InputError(f"There is nothing to say in {path}: it has no letter and no digit.")
    return pieces


def _chapter(section: Section, chunking: Chunking, chapter: int) -> Iterator[Piece]:
    """Its heading, then its paragraphs; those that are no words, such as ``* * *``, are silence."""
    pause, begun = 0.0, False
    for part in _cut(" ".join(section.heading.split()), chunking):
        yield Piece(part, chapter=chapter)
        pause, begun = TITLE, True
    for paragraph in paragraphs(section.text, chunking.limit or LETTERS):
        parts = _cut(paragraph, chunking)
        pause = max(pause, PARAGRAPH if parts else BREAK)
        for part in parts:
            yield Piece(part, pause=pause if begun else 0.0, chapter=chapter)
            pause, begun = 0.0, True


def _cut(text: str, chunking: Chunking) -> list[str]:
    """Sentences are kept together even where the whole would fit into a piece of more words."""
    if is_blank(text):
        return []
    if chunking.mode in ("auto", "sentence", "speaker"):
        return split(text, limit=chunking.limit, language=chunking.language)
    return chunking.cut(text)


def _sections(text: str, markdown: bool) -> Iterator[Section]:
    """Chapters by their headings: of the two highest levels in Markdown, by their words in text."""
    title, lines, before = "", [], ""
    for line in [*text.splitlines()]:
        found = _MARKDOWN.fullmatch(line) if markdown else None
        if found and len(found[1]) > 2:
            line, found = found[2], None
        heading = found[2] if found else ""
        if not markdown and not before and _HEADING.fullmatch(line.strip()):
            heading = line.strip()
        before = line.strip()
        if heading:
            yield Section(title, title, "\n".join(lines))
            title, lines = heading, []
        else:
            lines.append(line)
    yield Section(title, title, "\n".join(lines))


def _plain(text: str) -> str:
    for mark, replacement in _MARKS:
        text = mark.sub(replacement, text)
    return text
