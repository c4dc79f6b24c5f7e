"""A file to be read aloud -> chapters in pieces: plain text, Markdown, EPUB, dialogue scripts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ..cli import note
from ..pieces import Chunking, Piece
from ..sentences import LETTERS, letters, paragraphs, split
from ..text import is_blank, read_text
from ..types import InputError
from . import markdown
from .script import begins_as_script, parse

CHAPTERS = (1, 2)  # levels of headings
PARAGRAPH, TITLE, BREAK = 0.35, 0.8, 1.0  # seconds of silence before, after, and instead of words

_NUMBER = (
    r"(?:\d+|[ivxlcdm]+"
    r"|(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)"
    r"(?:[ -](?:one|two|three|four|five|six|seven|eight|nine"
    r"|first|second|third|fourth|fifth|sixth|seventh|eighth|ninth))?"
    r"|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
    r"|(?:thir|four|fif|six|seven|eigh|nine)teen"
    r"|(?:the )?(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last)"
    r"|eins|zwei|drei|vier|fünf|sechs|sieben|acht|neun|zehn|elf|zwölf)\b"
)
_CHAPTER = r"(?:chapter|kapitel|chapitre|cap[ií]tulo|capitolo|глава)\s+"
_PART = r"(?:part|book|act|teil)\s+"
_SENTENCE = r"(?<![.,;:!?…])"  # its end is the end of no heading
_HEADING = re.compile(
    rf"{_CHAPTER}{_NUMBER}.*|{_CHAPTER}\w.*{_SENTENCE}"
    rf"|{_PART}{_NUMBER}(?:[.:]?|\s*[.:—–-].*|.*{_SENTENCE})"
    r"|(?:prologue|epilogue|preface|foreword|introduction)[.:]?"
    r"|第[\d一二三四五六七八九十百千〇零]+[章回節节部].{0,30}",
    re.IGNORECASE,
)
_ABOVE = re.compile(rf"{_CHAPTER}{_NUMBER}[.:]?", re.IGNORECASE)  # its title may follow at once
LONGEST = 60  # letters of a heading in plain text
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
        script: whether a text is a dialogue script; None: if it begins as one.
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
    if script or (script is None and begins_as_script(text)):
        return _dialogue(text, chunking, path, names)
    lines = _headings(text) if path.suffix.lower() == ".txt" else _marked(text, path)
    return _book(list(_sections(lines)), chunking, path)


def _headed(title: str, text: str) -> Section:
    """The text of an e-book holds the heading, which need not be what its contents say."""
    first, _, rest = text.partition("\n\n")
    if rest and letters(first) <= markdown.HEADING:
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


def _sections(lines: Iterable[markdown.Line]) -> Iterator[Section]:
    """Chapters by the headings of the two highest levels."""
    title, text = "", []
    for level, line in lines:
        if line and level in CHAPTERS:
            yield Section(title, title, "\n".join(text))
            title, text = line, []
        else:
            text.append(line)
    yield Section(title, title, "\n".join(text))


def _headings(text: str) -> Iterator[markdown.Line]:
    """Plain text: a heading is known by its words, and stands between blank lines."""
    lines = [line.strip() for line in text.splitlines()]
    for line, before, after in zip(lines, ["", *lines], [*lines[1:], ""], strict=False):
        alone = not after or (_ABOVE.fullmatch(line) and not _is_heading(after))
        heading = not before and alone and _is_heading(line)
        yield markdown.Line(1 if heading else 0, line)


def _is_heading(line: str) -> bool:
    return letters(line) <= LONGEST and bool(_HEADING.fullmatch(line))


def _marked(text: str, path: Path) -> list[markdown.Line]:
    """Markdown; says what is not read of it."""
    found = markdown.read(text)
    if found.codes:
        blocks = "a block" if found.codes == 1 else f"{found.codes} blocks"
        note(f"{path}: {blocks} of code (```) will not be read aloud.")
    return found.lines
