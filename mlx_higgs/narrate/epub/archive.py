"""The archive an e-book is: its entries, with every size counted while it is read.

Nothing in it is trusted and nothing is unpacked: an entry is found by its name in the archive's own
list. XML goes through expat, which loads nothing external, and a document that declares an entity
is refused before one could be expanded.
"""

from __future__ import annotations

import codecs
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from xml.parsers import expat

from ...types import InputError

MAX_ARCHIVE = 1 << 30  # bytes; pictures and sounds are in it, but never read
MAX_LIST = 4 << 20  # bytes of its list of entries
MAX_ENTRY = 8 << 20  # bytes of one entry, decompressed
MAX_BOOK = 64 << 20  # bytes of all that is read
MAX_DEPTH = 100  # of elements in the package's own files

_ENCODINGS = re.compile(
    r"utf-?8|utf-?16(-?[bl]e)?|us-ascii|ascii|iso-8859-\d{1,2}|latin-?1|windows-125\d|cp125\d"
    r"|koi8-[ru]|big5|gbk|gb2312|gb18030|shift_jis|euc-jp|euc-kr",
    re.IGNORECASE,
)
_DECLARED = re.compile(rb"<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([\w.-]{1,40})[\"']")
_META = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.-]{1,40})", re.IGNORECASE)
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


Start = Callable[[str, dict[str, str]], None]


class Archive:
    """The entries of a book, read with all sizes counted."""

    def __init__(self, path: Path):
        self.path, self._left = path, MAX_BOOK
        try:
            if not path.is_file():  # opening a pipe would wait
                raise InputError(f"The book {path!s} does not exist.")
            self._file = path.open("rb")
        except InputError:
            raise
        except (OSError, ValueError) as error:  # a NUL in a name is a ValueError
            raise InputError(f"The book {path!s} cannot be read: {error}.") from error
        try:
            self._check_list()
            self._zip = zipfile.ZipFile(self._file)
            self._names = {_name(info): info for info in self._zip.infolist()}
        except InputError:
            self._file.close()
            raise
        except Exception as error:  # zipfile has many kinds for damaged archives
            self._file.close()
            raise self.fault(f"is no EPUB, or is damaged ({_words(error)})") from error

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def fault(self, what: str) -> InputError:
        return InputError(f"The book {self.path} {what}.")

    def _check_list(self) -> None:
        """The list of entries is bounded before zipfile takes it all into memory."""
        size = self._file.seek(0, os.SEEK_END)
        if size > MAX_ARCHIVE:
            raise self.fault(f"has {size:,} bytes: at most {MAX_ARCHIVE:,} are read")
        self._file.seek(max(0, size - (1 << 16) - 22))
        tail = self._file.read()
        end = tail.rfind(b"PK\5\6")
        if end < 0 or len(tail) < end + 22:
            raise self.fault("is no EPUB: an EPUB is a ZIP archive")
        if struct.unpack_from("<L", tail, end + 12)[0] > MAX_LIST or b"PK\6\7" in tail[:end][-20:]:
            raise self.fault("has more entries than a book can have")

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def read(self, name: str) -> bytes:
        """Raises InputError: it is not there, damaged, encrypted or too large."""
        info = self._names.get(name)
        if info is None:
            raise self.fault(f"has no {short(name)}")
        if info.flag_bits & 1:
            raise self.fault("is encrypted: only books without protection can be read")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self.fault(f"holds {short(name)} in a compression that EPUB does not allow")
        most = min(MAX_ENTRY, self._left)
        try:
            with self._zip.open(info) as entry:
                data = entry.read(most + 1)
        except Exception as error:
            raise self.fault(f"is damaged: {short(name)} ({_words(error)})") from error
        if len(data) > most:
            whose = short(name) if most == MAX_ENTRY else "all its text"
            raise self.fault(f"is too large: {whose} has more than {most:,} bytes")
        self._left -= len(data)
        return data

    def text(self, name: str) -> str:
        """Raises InputError as :meth:`read`, or when it is not in the encoding that it says."""
        data = self.read(name)
        encoding = _encoding(data)
        if not _ENCODINGS.fullmatch(encoding.removesuffix("-sig")):
            raise self.fault(f"has {short(name)} in the unknown encoding {short(encoding)}")
        try:
            return data.decode(encoding)
        except (UnicodeError, LookupError) as error:
            raise self.fault(f"has {short(name)}, which is not {encoding} ({error})") from error

    def walk(self, name: str, start: Start, text: Callable[[str], None] | None = None) -> None:
        """Parse an XML entry; names come without their prefixes.

        Args:
            start: called with each element's name and attributes. text: with what stands in it.

        Raises:
            InputError: not well-formed, nested too deeply, or with entities of its own.
        """
        depth = 0

        def enter(tag: str, attributes: dict[str, str]) -> None:
            nonlocal depth
            depth += 1
            if depth > MAX_DEPTH:
                raise self.fault(f"is damaged: {short(name)} is nested too deeply")
            start(_local(tag), {_local(key): value for key, value in attributes.items()})

        def leave(tag: str) -> None:
            nonlocal depth
            depth -= 1

        def refuse(*declaration: object) -> None:
            raise self.fault(f"declares entities in {short(name)}: no book needs that")

        parser = expat.ParserCreate()
        parser.StartElementHandler, parser.EndElementHandler = enter, leave
        parser.EntityDeclHandler = refuse
        parser.buffer_text = True
        if text is not None:
            parser.CharacterDataHandler = text
        try:
            parser.Parse(self.text(name), True)
        except expat.ExpatError as error:
            raise self.fault(f"is damaged: {short(name)} is not XML ({error})") from error


def _encoding(data: bytes) -> str:
    """What a document says of itself; UTF-8 where it says nothing."""
    for mark, encoding in _BOMS.items():
        if data.startswith(mark):
            return encoding
    if data[:2] in (b"<\0", b"\0<"):
        return "utf-16-le" if data[0] else "utf-16-be"
    said = _DECLARED.match(data.lstrip()[:300]) or _META.search(data[:2000])
    encoding = said[1].decode("ascii", "replace") if said else "utf-8"
    return "utf-8" if encoding.lower().startswith("utf") else encoding  # 16 would have shown


def _name(info: zipfile.ZipInfo) -> str:
    """Many programs write UTF-8 without saying so; zipfile then reads the PC's first characters."""
    try:
        return info.filename if info.flag_bits & 0x800 else info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _local(name: str) -> str:
    return name.rpartition(":")[2]


def short(name: str) -> str:
    """Printable, on one line, of a bounded length."""
    name = "".join(char if char.isprintable() else "?" for char in name)
    return name if len(name) <= 80 else name[:80] + "…"


def _words(error: Exception) -> str:
    return short(str(error) or type(error).__name__)
