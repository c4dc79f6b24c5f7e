"""E-books in, chapters out: EPUB 2 and 3, with the standard library alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...text import is_blank
from ...types import InputError
from .archive import Archive
from .package import Package, check_protection, read_package
from .page import sections


@dataclass(frozen=True)
class Chapter:
    """A part of a book.

    Attributes:
        title: from the book's contents, else its first heading; "" without either.
        text: paragraphs with a blank line between them, the heading included.
    """

    title: str
    text: str


def read(path: str | os.PathLike) -> list[Chapter]:
    """The chapters of an EPUB in the order they are read.

    A chapter begins where the book's contents point to, and with each document that begins with a
    heading; other documents go on with the one before. Without contents every document is one. What
    is not read out is left out (``page.sections``).

    Raises:
        InputError: it is none, is damaged or protected (DRM), beyond a bound (archive.py), or holds
            nothing to say.
    """
    path = Path(path)
    with Archive(path) as archive:
        check_protection(archive)
        package = read_package(archive)
        chapters = list(_chapters(archive, package))
    if not chapters:
        raise InputError(f"The book {path} holds no text: its pages may be pictures.")
    return chapters


def _chapters(archive: Archive, package: Package) -> Iterator[Chapter]:
    title, texts = "", []
    for path in package.spine:
        titles = package.contents.get(path, {})
        # Where the contents name a document as a whole, its sections are no chapters; but a book
        # of one document is divided.
        whole = "" in titles and len(package.contents) > 1
        for section in sections(archive.text(path), [] if whole else titles):
            named = titles.get(section.anchor, "")
            if named or section.begins or not package.contents:
                if texts:
                    yield Chapter(title, "\n\n".join(texts))
                title, texts = named or section.heading, []
            if not is_blank(section.text):
                texts.append(section.text)
    if texts:
        yield Chapter(title, "\n\n".join(texts))
