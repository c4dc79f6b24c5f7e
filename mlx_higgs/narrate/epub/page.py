"""The words of an XHTML page, for reading aloud.

Its own scanner rather than an XML parser: a page of a book is rarely well-formed, no entity but the
named characters of HTML is ever replaced, and each character is looked at a bounded number of
times, which ``html.parser`` does not promise for hostile pages.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

SKIPPED = {"head", "script", "style", "svg", "template", "rt", "rp", "audio", "video", "iframe"}
RAW = {"script", "style"}  # what is inside is no markup
BLOCKS = {
    *("address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "div", "dl"),
    *("dt", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6"),
    *("header", "hr", "html", "li", "main", "nav", "ol", "p", "pre", "section", "table", "td"),
    *("th", "tr", "ul"),
}
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "wbr"}
# epub:type or role, without "doc-": neither notes nor page numbers are part of what is told.
UNSPOKEN = {"noteref", "footnote", "endnote", "rearnote", "footnotes", "endnotes", "rearnotes"}
UNSPOKEN |= {"pagebreak", "page-list", "pagelist", "toc", "landmarks", "annoref", "backlink"}

_TAG = re.compile(r"<(/?)([A-Za-z][^\s<>/\"'=]*+)((?:[^<>\"']|\"[^\"<]*+\"|'[^'<]*+')*+)>")
_ATTRIBUTE = re.compile(
    r"(?<![^\s\"'/])([^\s=\"'/<>]++)\s*+=\s*+(?:\"([^\"]*+)\"|'([^']*+)'|([^\s\"'<>]++))"
)
_QUOTED = re.compile(r"\"[^\"]*+\"|'[^']*+'")
_TOC = re.compile(r"(?:type|role)=[\"'][^\"'<>]{0,80}\btoc\b")
_HUGE = re.compile(r"&#[0-9]{8,};?")  # no character has that number
_NOTE = re.compile(
    r"[\[(]?(?:\d{1,4}|[*†‡§¶]{1,4}|[ivxl]{1,6}|[a-z])[\])]?"
)  # what a link to one says
_UNSEEN = dict.fromkeys([0x00AD, 0x200B, 0x2060, 0xFEFF])  # where words may break or join
_CONTROL = dict.fromkeys([*range(32), *range(0x7F, 0xA0), 0xFFFE, 0xFFFF], " ")


class Tag(NamedTuple):
    name: str  # lower case, without its prefix
    closes: bool
    empty: bool  # <br/>
    attributes: str  # as written

    def get(self, name: str) -> str:
        """An attribute's value; "" where it has none."""
        for key, *values in _ATTRIBUTE.findall(self.attributes):
            if key.lower() == name:
                return unescape("".join(values))
        return ""


@dataclass
class Section:
    """A part of a page: from its beginning, or from an element that was asked for."""

    anchor: str = ""  # the element's id
    heading: str = ""  # the first in it
    paragraphs: list[str] = field(default_factory=list)

    @property
    def begins(self) -> bool:
        """Whether it starts with a heading."""
        return bool(self.heading) and tidy(self.paragraphs[0]) == self.heading

    @property
    def text(self) -> str:
        return "\n\n".join(self.paragraphs)


def unescape(text: str) -> str:
    """``&eacute;`` and ``&#233;`` -> ``é``; other entities stay as they are written."""
    return html.unescape(_HUGE.sub("\ufffd", text))


def sections(page: str, anchors: Iterable[str] = ()) -> list[Section]:
    """The words of a page, in paragraphs.

    Left out: scripts, styles, pictures, readings of ruby text, page numbers, notes and the links to
    them, tables of contents.

    Args:
        anchors: ids of elements; each begins a section of its own.
    """
    reader = _Reader(anchors)
    for token in tokens(page):
        if isinstance(token, str):
            reader.words(token)
        elif token.closes:
            reader.close(token)
        else:
            reader.open(token)
    return reader.finish()


def links(page: str) -> list[tuple[str, str]]:
    """``(href, words)`` of every link in the page's table of contents, or in all of it."""
    found: list[tuple[str, str]] = []
    navs: list[bool] = []  # of the open ones: whether it is the table of contents
    any_toc = _TOC.search(page) is not None
    href: str | None = None
    words: list[str] = []
    for token in tokens(page):
        if isinstance(token, str):
            words.append(token)
        elif token.name == "nav" and not token.closes:
            navs.append(not any_toc or "toc" in _kinds(token))
        elif token.name == "nav" and navs:
            navs.pop()
        elif token.name == "a" and not token.closes:
            href, words = token.get("href"), []
        elif token.name == "a" and href is not None:
            if not navs or navs[-1]:
                found.append((href, tidy("".join(words))))
            href = None
    return found


# -- tokens ---------------------------------------------------------------------------------------


def tokens(page: str) -> Iterator[Tag | str]:
    """Tags and the text between them, entities replaced. Comments and declarations are left out.

    What has no end (a comment, a script) lasts until the page's end: so no character is searched
    twice for it.
    """
    at = 0
    while (mark := page.find("<", at)) >= 0:
        if mark > at:
            yield unescape(page[at:mark])
        if page.startswith("<!--", mark):
            at = _after(page, "-->", mark + 4)
        elif page.startswith("<![CDATA[", mark):
            at = _after(page, "]]>", mark + 9)
            yield page[mark + 9 : at].removesuffix("]]>")
        elif page.startswith(("<!", "<?"), mark):
            at = _after(page, ">", mark)
        elif tag := _TAG.match(page, mark):
            at = tag.end()
            yield (read := _tag(tag))
            if read.name in RAW and not (read.closes or read.empty):
                end = re.compile(f"</(?:[^\\s<>/:]*:)?{read.name}", re.IGNORECASE).search(page, at)
                at = end.start() if end else len(page)
        else:
            yield "<"
            at = mark + 1
    yield unescape(page[at:])


def _after(page: str, end: str, start: int) -> int:
    found = page.find(end, start)
    return len(page) if found < 0 else found + len(end)


def _tag(match: re.Match[str]) -> Tag:
    slash, name, attributes = match.groups()
    name = name.lower().rpartition(":")[2]
    return Tag(name, bool(slash), attributes.endswith("/") or name in VOID, attributes)


def _kinds(tag: Tag) -> set[str]:
    """What an element is for: its epub:type and role."""
    kinds = f"{tag.get('epub:type')} {tag.get('role')}".lower().split()
    return {kind.removeprefix("doc-") for kind in kinds}


def tidy(text: str) -> str:
    """On one line, without what nobody sees."""
    return " ".join(text.translate(_UNSEEN).translate(_CONTROL).split())


def _is_unspoken(tag: Tag) -> bool:
    if tag.name in SKIPPED or not tag.attributes:
        return tag.name in SKIPPED
    hidden = "hidden" in re.split(r"[\s=/]+", _QUOTED.sub("", tag.attributes))
    return hidden or not UNSPOKEN.isdisjoint(_kinds(tag))


# -- words ----------------------------------------------------------------------------------------


class _Reader:
    """Takes tags and text, keeps the paragraph that is open."""

    def __init__(self, anchors: Iterable[str]):
        self.sections = [Section()]
        self._anchors = {*anchors} - {""}  # that have not come yet
        self._words: list[str] = []
        self._heading = False
        self._skipped, self._depth = "", 0  # the element that is left out, how often it is open
        self._link: tuple[int, bool] | None = (
            None  # where its words begin, whether it may be a note
        )

    def open(self, tag: Tag) -> None:
        if self._skipped == "head" and tag.name == "body":  # it was never closed
            self._skipped = ""
        if self._skipped:
            self._depth += tag.name == self._skipped and not tag.empty
            return
        if self._anchors and (anchor := tag.get("id") or tag.get("name")) in self._anchors:
            self._end_paragraph()
            self.sections.append(Section(anchor))
            self._anchors.discard(anchor)
        if _is_unspoken(tag):
            if tag.name in BLOCKS:
                self._end_paragraph()
            if not tag.empty:
                self._skipped, self._depth = tag.name, 1
        elif tag.name == "br":
            self._words.append("\n")
        elif tag.name in BLOCKS:
            self._end_paragraph()
            self._heading = tag.name in HEADINGS
        elif tag.name == "a" and not tag.empty:
            self._link = len(self._words), "#" in tag.get("href")

    def close(self, tag: Tag) -> None:
        if self._skipped:
            self._depth -= tag.name == self._skipped
            self._skipped = self._skipped if self._depth else ""
        elif tag.name in BLOCKS:
            self._end_paragraph()
            self._heading = False
        elif tag.name == "a" and self._link:
            start, inside = self._link
            if inside and _NOTE.fullmatch(tidy("".join(self._words[start:]))):
                del self._words[start:]
            self._link = None

    def words(self, text: str) -> None:
        if not self._skipped:
            self._words.append(" ".join(re.split(r"[ \t\r\n\f]+", text)))

    def _end_paragraph(self) -> None:
        lines = [tidy(line) for line in "".join(self._words).split("\n")]
        paragraph = "\n".join(line for line in lines if line)
        self._words, self._link = [], None
        if paragraph:
            section = self.sections[-1]
            section.paragraphs.append(paragraph)
            if self._heading and not section.heading:
                section.heading = tidy(paragraph)

    def finish(self) -> list[Section]:
        self._end_paragraph()
        return self.sections
