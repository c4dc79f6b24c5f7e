"""Markdown -> what is read of it: headings with their levels, and text without its marks.

No word is left out but images, comments, tags, addresses of links, and fenced code, which is
counted. Emphasis inside a word is none: ``my_var`` and ``3*4*5`` stay what they are. Numbers at the
beginning of a line, as lists have them, are read.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import NamedTuple

from ..sentences import letters

HEADING = 120  # letters: what is longer is a paragraph
RULE = "* * *"
TAGS = (  # "a < b and c > d" has none
    "a abbr b big blockquote br center cite code dd del details div dl dt em figcaption figure font"
    " h[1-6] hr i img ins kbd li mark ol p pre q s samp small span strike strong sub summary sup"
    " table tbody td th thead tr tt u ul var"
)
_HIDDEN = 0xE000  # escaped marks wait here until the others are gone
_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
_BACK = {_HIDDEN + code: code for code in range(128)}
_WIDE = r"\u2e80-\u9fff\uac00-\ud7af\uff00-\uff60"  # written without spaces

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^`]*)")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_DEFINITION = re.compile(
    r"""^ {0,3}\[(?!\^)([^\[\]]+)\]:[ \t]*\S*[/.#]\S*(?:[ \t]+["'(][^\n]*["')])?[ \t]*$""", re.M
)
_ATX = re.compile(r" {0,3}(#{1,6})(?:\s+(.*?))??(?:\s+#+)?\s*")
_UNDERLINE = re.compile(r" {0,3}(={2,}|-{2,})\s*")
_BREAK = re.compile(r"\s{0,3}([-*_])(?:\s*\1){2,}\s*")
_QUOTE = re.compile(r"\s{0,3}(?:>\s?)+")
_BULLET = re.compile(r"\s*[-*+]\s+(?=\S)")

_CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_ADDRESS = (
    r"\(\s*(?:<[^<>\n]*>|[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)"
    r"""(?:\s+(?:"[^"]*"|'[^']*'|\([^()]*\)))?\s*\)"""
)
_WORDS = r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]"
_IMAGE = re.compile("!" + _WORDS + _ADDRESS)
_LINK = re.compile(_WORDS + _ADDRESS)
_REFERENCE = re.compile(r"\[([^\[\]]+)\]\[([^\[\]]*)\]")
_BARE = re.compile(r"<((?:https?|ftp|mailto):[^<>\s]+)>")
_TAG = re.compile(
    rf"</?({TAGS.replace(' ', '|')})"
    r"""(?:\s+[\w:.-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>]+))*\s*/?>""",
    re.IGNORECASE,
)
_INLINE = re.compile(
    "a|abbr|b|big|cite|code|del|em|font|i|ins|kbd|mark|q|s|samp|small|span|strike|strong|sub|sup"
    "|tt|u|var",
    re.IGNORECASE,
)
_EMPHASIS = [
    re.compile(
        rf"(?:(?<![\w*])|(?<=[{_WIDE}]))(\*{{1,3}})(?=[^\s*])(.+?)(?<=[^\s*])\1"
        rf"(?!\*)(?:(?!\w)|(?=[{_WIDE}]))",
        re.DOTALL,
    ),
    re.compile(r"(?<!\w)(_{1,3})(?=[^\s_])(.+?)(?<=[^\s_])\1(?!\w)", re.DOTALL),
    re.compile(r"(~~)(?=\S)(.+?)(?<=\S)\1", re.DOTALL),
]
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]\w{1,30});")


class Line(NamedTuple):
    """A heading of level 1 to 6, or a line of text: level 0."""

    level: int
    text: str


class Markdown(NamedTuple):
    """What is read of a text, and how many blocks of code are not."""

    lines: list[Line]
    codes: int


def read(text: str) -> Markdown:
    """The lines of ``text`` without their marks; a blank line ends a paragraph."""
    kept, codes = _without_code(text.splitlines())
    text = _COMMENT.sub("", "\n".join(kept))
    known = {_key(found[1]) for found in _DEFINITION.finditer(text)}
    text = _DEFINITION.sub("", text)
    return Markdown([*_Blocks(known).read(text.splitlines())], codes)


def _without_code(lines: list[str]) -> tuple[list[str], int]:
    """A fence that nothing closes is text: nothing is lost."""
    kept: list[str] = []
    at = codes = 0
    while at < len(lines):
        found = _FENCE.fullmatch(lines[at])
        end = _closing(lines, at + 1, found[1]) if found else None
        if end is None:
            kept.append(lines[at])
            at += 1
        else:
            kept.append("")
            at, codes = end + 1, codes + 1
    return kept, codes


def _closing(lines: list[str], begin: int, fence: str) -> int | None:
    closing = re.compile(rf" {{0,3}}{fence[0]}{{{len(fence)},}}\s*")
    return next((at for at in range(begin, len(lines)) if closing.fullmatch(lines[at])), None)


class _Blocks:
    """Takes lines, keeps the paragraph that is open."""

    def __init__(self, known: set[str]):
        self._known = known
        self._open: list[str] = []
        self._alone = True  # the paragraph began after a blank line

    def read(self, lines: list[str]) -> Iterator[Line]:
        blank = True
        for raw in lines:
            line = _QUOTE.sub("", raw, count=1) if _QUOTE.match(raw) else raw
            if heading := self._heading(line):
                yield from self._end()
                yield from [Line(0, ""), heading, Line(0, "")]
            elif _BREAK.fullmatch(line):
                yield from self._end()
                yield from [Line(0, ""), Line(0, RULE), Line(0, "")]
            elif not line.strip():
                yield from self._end()
                yield Line(0, "")
            elif not (_UNDERLINE.fullmatch(line) and line.strip()[0] == "="):
                yield from self._take(line, blank)
            blank = not line.strip()
        yield from self._end()

    def _take(self, line: str, blank: bool) -> Iterator[Line]:
        if bullet := _BULLET.match(line):
            yield from self._end()
            line = line[bullet.end() :]
        if not self._open:
            self._alone = blank and not bullet
        self._open.append(line)

    def _heading(self, line: str) -> Line | None:
        """``## Words``, or the open paragraph where ``line`` is its underline."""
        if found := _ATX.fullmatch(line):
            return Line(len(found[1]), inline(found[2] or "", self._known))
        found = _UNDERLINE.fullmatch(line)
        text = " ".join(map(str.strip, self._open))
        if not (found and text and self._alone and letters(text) <= HEADING):
            return None
        if found[1][0] == "-" and len(self._open) > 1:
            return None
        self._open = []
        return Line(1 if found[1][0] == "=" else 2, inline(text, self._known))

    def _end(self) -> Iterator[Line]:
        text, self._open = "\n".join(self._open), []
        if text:
            yield from (Line(0, line) for line in inline(text, self._known).split("\n"))


def inline(text: str, known: set[str] | frozenset[str] = frozenset()) -> str:
    """A paragraph without its marks.

    Args:
        known: the links that are defined elsewhere, as ``[words][link]`` names them.
    """
    text = _CODE.sub(lambda found: _hidden(found[2]), text.replace("\\\n", "\n"))
    text = _ESCAPED.sub(lambda found: _hidden(found[1]), text)
    text = _BARE.sub(lambda found: _hidden(found[1]), _IMAGE.sub("", text))
    text = _LINK.sub(r"\1", text)
    text = _REFERENCE.sub(
        lambda found: found[1] if _key(found[2] or found[1]) in known else found[0], text
    )
    text = _TAG.sub(lambda found: "" if _INLINE.fullmatch(found[1]) else "\n", text)
    for mark in _EMPHASIS:
        before = ""
        while before != text:
            before, text = text, mark.sub(r"\2", text)
    text = _ENTITY.sub(lambda found: html.unescape(found[0]), text)
    return text.translate(_BACK)


def _hidden(text: str) -> str:
    """Where no mark is found in it."""
    return "".join(
        chr(_HIDDEN + ord(char))
        if char.isascii() and not char.isalnum() and not char.isspace()
        else char
        for char in text
    )


def _key(name: str) -> str:
    return " ".join(name.split()).casefold()
