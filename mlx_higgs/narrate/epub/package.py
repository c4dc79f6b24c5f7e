"""What a book says of itself: which documents it has, their order, and its table of contents."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote

from .archive import Archive, short
from .page import links, tidy

MAX_ITEMS = 20_000  # documents

_PAGES = {"application/xhtml+xml", "text/html", "text/x-oeb1-document", "application/xml", ""}
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # https:, mailto:
_FONTS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")


class Item(NamedTuple):
    path: str  # in the archive
    media_type: str
    properties: str


Contents = dict[str, dict[str, str]]


@dataclass
class Package:
    """What a book is made of.

    Attributes:
        spine: its documents in the order they are read.
        contents: document -> anchor, or "" for its beginning -> title.
    """

    spine: list[str]
    contents: Contents


def check_protection(archive: Archive) -> None:
    """Fonts may be obfuscated; anything else that is encrypted is DRM."""
    name = "META-INF/encryption.xml"
    methods: list[str] = []
    if name in archive:

        def start(tag: str, attributes: dict[str, str]) -> None:
            if tag == "EncryptionMethod":
                methods.append(attributes.get("Algorithm", ""))

        archive.walk(name, start)
    if any(method not in _FONTS for method in methods) or "META-INF/sinf.xml" in archive:
        raise archive.fault(
            "is protected (DRM): it cannot be read. Use one without protection, from its publisher "
            "or a library such as Project Gutenberg"
        )


def read_package(archive: Archive) -> Package:
    """Raises InputError: a file is missing or damaged, or nothing is to be read."""
    path = _package_path(archive)
    items: dict[str, Item] = {}
    order: list[str] = []
    ncx = ""

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal ncx
        if tag == "item" and "id" in attributes and "href" in attributes:
            target = _resolve(archive, path, attributes["href"])[0]
            kind = attributes.get("media-type", "").lower()
            items[attributes["id"]] = Item(target, kind, attributes.get("properties", ""))
        elif tag == "itemref" and attributes.get("linear", "yes") != "no":
            order.append(attributes.get("idref", ""))
        elif tag == "spine":
            ncx = attributes.get("toc", "")
        if len(items) > MAX_ITEMS or len(order) > MAX_ITEMS:
            raise archive.fault(f"has more than {MAX_ITEMS:,} documents")

    archive.walk(path, start)
    for name in order:
        if name not in items:
            raise archive.fault(f"is damaged: {short(name)} is to be read, but not listed")
    spine = [items[name].path for name in order if items[name].media_type in _PAGES]
    if not spine:
        raise archive.fault("has no pages to be read: they may be pictures")
    return Package(list(dict.fromkeys(spine)), _contents(archive, items, ncx))


def _package_path(archive: Archive) -> str:
    paths: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag == "rootfile" and "full-path" in attributes:
            paths.append(attributes["full-path"])

    if "META-INF/container.xml" not in archive:
        raise archive.fault("is no EPUB: it has no META-INF/container.xml")
    archive.walk("META-INF/container.xml", start)
    if not paths:
        raise archive.fault("is damaged: META-INF/container.xml names no package")
    return _resolve(archive, "", paths[0])[0]


def _contents(archive: Archive, items: dict[str, Item], ncx: str) -> Contents:
    """Titles from EPUB 3's navigation document, else from EPUB 2's NCX."""
    for item in items.values():
        if "nav" in item.properties.split() and item.path in archive:
            return _titles(archive, item.path, links(archive.text(item.path)))
    for key, item in items.items():
        is_ncx = key == ncx or item.media_type == "application/x-dtbncx+xml"
        if is_ncx and item.path in archive:
            return _titles(archive, item.path, _ncx_links(archive, item.path))
    return {}


def _titles(archive: Archive, base: str, links: list[tuple[str, str]]) -> Contents:
    """The first title of each place; links out of the book have none."""
    titles: Contents = {}
    for href, words in links:
        if words and not _SCHEME.match(href):
            path, anchor = _resolve(archive, base, href)
            titles.setdefault(path, {}).setdefault(anchor, words)
    return titles


def _ncx_links(archive: Archive, path: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    label: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag == "text":
            label.clear()
        elif tag == "content":
            found.append((attributes.get("src", ""), tidy("".join(label))))

    archive.walk(path, start, label.append)
    return found


def _resolve(archive: Archive, base: str, href: str) -> tuple[str, str]:
    """(entry, anchor) of a reference in the entry ``base``.

    Raises:
        InputError: it leads out of the book.
    """
    href, _, anchor = href.partition("#")
    if not href:
        return base, unquote(anchor)
    folder = posixpath.dirname(base)
    written = posixpath.normpath(posixpath.join(folder, href))
    path = posixpath.normpath(posixpath.join(folder, unquote(href)))
    if path.startswith(("/", "..")) or "\\" in path or "\0" in path:
        raise archive.fault(f"points out of itself, to {short(href)}: that is no book")
    return (written if written in archive and path not in archive else path), unquote(anchor)
