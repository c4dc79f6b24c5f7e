"""A long text -> the texts it is spoken in: whole sentences, a number of words, or speakers' turns.

Sentences are found by ``sentencex``, which knows the scripts of some 300 languages; what it lacks
is here: Japanese quotations with what follows them, lines that are broken or not, speaker tags, and
sentences that are too long, which are cut at the best place there is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Literal, get_args

from .text import is_blank
from .types import InputError

Mode = Literal["sentence", "word", "speaker"]
LETTERS = 300  # in a piece: some 20 s of speech
WORDS = 100  # in a piece, as in the reference
LIMITS: dict[str, int] = {"sentence": LETTERS, "speaker": LETTERS, "word": WORDS}
SYLLABLE = 3  # letters that a character counts for which is read as a syllable or a word
JOINER = "\u200d"
MARKS = ("Mn", "Mc", "Me", "Cf")  # categories of what belongs to the character before
LEADING = tuple("เแโใไ")  # Thai vowels written before their consonant
LONGEST_CHARACTER = 16  # marks and all; more of them are no writing
WRAPPED = 50  # a line as long as this was broken by a program; shorter ones by a person

_TAG = re.compile(r"\[SPEAKER\d+\]")
_PARAGRAPH = re.compile(r"\n[ \t\r]*\n\s*")
_WIDE = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003fffd"  # no spaces
_HANGUL = "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"
_SYLLABLES = re.compile(rf"[\d{_WIDE}{_HANGUL}]")
_OPENERS, _CLOSERS = "“‘«「『（(【《", "\"'”’»」』）)】》"
_WORD = re.compile(
    rf"[{_OPENERS}]*[{_WIDE}][^\w\s{_OPENERS}]*\s*|(?:(?![{_OPENERS}]*[{_WIDE}])\S)+\s*|\s+"
)
_BREAKS = [  # where a sentence too long is cut: as late in this list as it must be
    re.compile(rf"(?:[。！？…।॥]+[{_CLOSERS}]*\s*|[.!?؟۔]+[{_CLOSERS}]*\s+)"),
    re.compile(rf"(?:[、，；：،؛]+[{_CLOSERS}]*\s*|[,;:—–]+[{_CLOSERS}]*\s+|—|\s[-–]\s)"),
    re.compile(r"\s+"),
]
_UNSPACED = re.compile(rf"[{_WIDE}，。、！？；：」』”）][{_WIDE}「『“（]")
_QUOTED = re.compile(r"[」』][\s]*$")
_SAYS = re.compile(r"(と|って|、)")  # Japanese: what follows a quotation belongs to it


def split(
    text: str, *, mode: str = "sentence", limit: int | None = None, language: str = "en"
) -> list[str]:
    """The pieces of ``text``, in order. None is blank; every letter and digit is in one of them.

    Args:
        mode: ``sentence``: whole sentences of one paragraph, as many as fit; short paragraphs share
            a piece. ``word``: so many words of one paragraph. ``speaker``: a turn each, from one
            ``[SPEAKERn]`` to the next, cut at its sentences if it is too long.
        limit: letters in a piece (see ``letters``), or words where ``mode`` is ``word``: a
            character of Chinese or Japanese is one. None: 300 letters, 100 words.
        language: as ISO 639-1 says it; only abbreviations and dates depend on it.

    A piece from within a speaker's turn begins with the speaker's tag.

    Raises:
        InputError: an unknown mode, or a limit below 1.
    """
    if mode not in get_args(Mode):
        raise InputError(f"The mode is {mode!r}: it must be one of {', '.join(get_args(Mode))}.")
    limit = LIMITS[mode] if limit is None else limit
    if limit < 1:
        raise InputError(f"The limit of a piece is {limit}: it must be 1 or more.")
    return [
        f"{tag} {piece}".strip()
        for tag, turn in _turns(text)
        for piece in _pieces(turn, mode, limit, language)
        if not is_blank(piece)
    ]


def letters(text: str) -> int:
    """How long a text is to read: a digit, or a wide character as in Chinese, counts as three."""
    return _size(text.strip())


def _size(text: str) -> int:
    return len(text) + (SYLLABLE - 1) * len(_SYLLABLES.findall(text))


def paragraphs(text: str, limit: int = LETTERS) -> list[str]:
    """Paragraphs, with neighbours that are short together: up to half of ``limit`` letters."""
    found: list[str] = []
    for paragraph in filter(None, map(str.strip, _PARAGRAPH.split(text.strip()))):
        together = f"{found[-1]}\n{paragraph}" if found else paragraph
        if found and (is_blank(found[-1]) or is_blank(paragraph)):
            found.append(paragraph)
        elif found and letters(together) <= limit // 2:
            found[-1] = together
        else:
            found.append(paragraph)
    return found


def _turns(text: str) -> Iterator[tuple[str, str]]:
    """Each speaker's tag with what follows it; no tag for what comes before the first."""
    begin, tag = 0, ""
    for match in _TAG.finditer(text):
        yield tag, text[begin : match.start()]
        begin, tag = match.end(), match.group()
    yield tag, text[begin:]


def _pieces(turn: str, mode: str, limit: int, language: str) -> Iterator[str]:
    if mode == "speaker" and letters(turn) <= limit:
        yield turn.strip()
        return
    if mode == "word":
        for paragraph in _PARAGRAPH.split(turn):
            yield from _words(paragraph, limit)
        return
    for paragraph in paragraphs(turn, limit):
        yield from _packed(_sentences(paragraph, limit, language), limit)


def _words(paragraph: str, limit: int) -> Iterator[str]:
    words = [part for word in _WORD.findall(paragraph) for part in _cut(word, LETTERS)]
    words = _without_blanks(words, LETTERS)
    for start in range(0, len(words), limit):
        yield "".join(words[start : start + limit]).strip()


def _sentences(paragraph: str, limit: int, language: str) -> list[str]:
    """Sentences with the space behind them, none longer than ``limit`` letters."""
    from sentencex import segment  # pyright: ignore[reportAttributeAccessIssue]  # made in Rust

    found: list[str] = []
    for line in _lines(paragraph):
        for sentence in _without_blanks(segment(language, line), limit):
            belongs = found and _QUOTED.search(found[-1]) and _SAYS.match(sentence)
            if belongs and letters(found[-1] + sentence) <= limit:
                found[-1] += sentence
            else:
                found.append(sentence)
        if found:
            found[-1] = found[-1].rstrip() + "\n"
    return [part for sentence in found for part in _cut(sentence, limit)]


def _lines(paragraph: str) -> list[str]:
    """The lines a person made; those that a program broke are joined."""
    lines = [" ".join(line.split()) for line in paragraph.splitlines() if line.strip()]
    if max(map(len, lines), default=0) <= WRAPPED:
        return lines
    joined = lines[0]
    for line in lines[1:]:
        joined += line if _UNSPACED.fullmatch(joined[-1] + line[0]) else f" {line}"
    return [joined]


def _without_blanks(parts: Iterable[str], limit: int) -> list[str]:
    """Marks without a word go to their neighbour, the one before rather than the one behind."""
    found: list[str] = []
    for part in parts:
        blank = is_blank(part)
        alone = bool(found) and is_blank(found[-1])
        if found and (blank or alone) and letters(found[-1] + part) <= max(limit, len(part)):
            found[-1] += part
        else:
            found.append(part)
    return found


def _packed(parts: Iterable[str], limit: int) -> Iterator[str]:
    """Neighbours together: as few pieces as there can be, and those about as long as each other."""
    parts = list(parts)
    sizes = [_size(part) for part in parts]
    rest = sum(sizes)
    left = max(1, -(-rest // limit))  # pieces to be made
    piece, size = "", 0
    for part, more in zip(parts, sizes, strict=True):
        if piece and (_size((piece + part).strip()) > limit or size + more / 2 > rest / left):
            yield piece
            rest, left = rest - size, max(1, left - 1)
            piece, size = "", 0
        piece, size = piece + part, size + more
    if piece:
        yield piece


def _cut(sentence: str, limit: int, level: int = 0) -> list[str]:
    """A sentence too long in parts: at an end within it, a clause, a space, or anywhere."""
    if letters(sentence) <= limit:
        return [sentence]
    if level == len(_BREAKS):
        return _anywhere(sentence, limit)
    ends = [match.end() for match in _BREAKS[level].finditer(sentence)]
    ends = [0, *ends, len(sentence)]
    parts = [sentence[a:b] for a, b in pairwise(ends) if a < b]
    shorter = [piece for part in parts for piece in _cut(part, limit, level + 1)]
    return list(_packed(_without_blanks(shorter, limit), limit))


def _anywhere(text: str, limit: int) -> list[str]:
    """Cut between characters, but not before a mark that changes the one it follows."""
    found, room, before = [""], limit, ""
    for char in text:
        size = SYLLABLE if _SYLLABLES.match(char) else 1
        belongs = before == JOINER or before in LEADING or unicodedata.category(char) in MARKS
        if size > room and found[-1] and not (belongs and room > -LONGEST_CHARACTER):
            found.append("")
            room = limit
        found[-1] += char
        room, before = room - size, char
    return found
