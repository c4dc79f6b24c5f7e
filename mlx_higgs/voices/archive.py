"""Voices from one machine to another: a zip of ``NAME.wav``, ``NAME.txt`` and ``NAME.json``.

An archive is somebody else's. Nothing is unpacked by the names in it: each voice is read, within
bounds, and goes through the same preparation as any new clip.
"""

from __future__ import annotations

import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ..text import decode, read_text
from ..types import InputError
from .clip import MAX_BYTES
from .folders import MAX_PRESETS_BYTES, NAME, PRESETS, SUFFIXES, preset_entries, presets, voices_in
from .library import MAX_ABOUT, MAX_VOICES, NewVoice, StoredVoice, VoiceLibrary, read_about

MAX_ARCHIVE = 512 << 20  # bytes, and as many in all of its files together
MAX_DIRECTORY = 4 << 20  # bytes of the list of its files: 40,000 of them
MAX_TEXT = 64 << 10  # bytes of a transcript's or a description's file
END, END_BYTES = b"PK\5\6", 22  # the record at a zip's end; a comment of 64 KiB may follow
METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
KEPT = {  # of a description: what stays true of a copy, and its type
    "created": str,
    "source_sha256": str,
    "description": str,
    "consent": str,
    "language": str,
    "done": list,
}
DAMAGE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,  # NotImplementedError among them
    ValueError,
)


def export_voices(voices: Iterable[StoredVoice], path: Path, *, force: bool = False) -> Path:
    """Write voices to a zip, which appears whole or not at all.

    Raises:
        InputError: it exists (without ``force``), or cannot be written.
    """
    if os.path.lexists(path) and not force:
        raise InputError(f"The archive {path} exists. Add --force to replace it.")
    if not path.name:
        raise InputError(f"The archive needs a name, not {str(path)!r}.")
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file, zipfile.ZipFile(file, "w") as archive:
            for voice in voices:
                _put(archive, voice)
        partial.replace(path)
    except (OSError, ValueError) as error:  # a NUL in a name is a ValueError
        raise InputError(f"The archive {path!s} cannot be written: {error}.") from error
    finally:
        with suppress(OSError, ValueError):
            partial.unlink(missing_ok=True)
    return path


def _put(archive: zipfile.ZipFile, voice: StoredVoice) -> None:
    about = json.dumps(voice.about, indent=1)
    archive.write(voice.clip, f"{voice.name}{voice.clip.suffix.lower()}", zipfile.ZIP_STORED)
    archive.writestr(f"{voice.name}.json", about, zipfile.ZIP_DEFLATED)
    archive.writestr(f"{voice.name}.txt", f"{voice.transcript}\n", zipfile.ZIP_DEFLATED)


def import_voices(
    library: VoiceLibrary, source: Path, *, replace: bool = False
) -> list[StoredVoice]:
    """Add all voices of a zip or a folder, or none of them.

    Both may hold ``NAME.wav`` and ``NAME.txt``, or a ``config.json`` of vLLM's presets.

    Raises:
        InputError: no voices in it, a damaged or hostile archive, a voice that cannot be used.
        VoiceExists, LibraryFull: as `VoiceLibrary.add`.
    """
    if source.is_dir():
        return library.add_all(_in_folder(source), replace=replace)
    with _opened(source) as archive:
        return library.add_all(_in_archive(source, archive), replace=replace)


def _in_folder(folder: Path) -> Iterator[NewVoice]:
    listed = presets(folder)
    found = voices_in(folder)
    if not found:
        raise InputError(f"The folder {folder} holds no voices: NAME.wav with NAME.txt.")
    for name, clip in found.items():
        words = listed[name][1] if name in listed else read_text(clip.with_suffix(".txt"))
        yield NewVoice(name, clip, words, _kept(read_about(clip)))


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with ExitStack() as stack:
        with _readable(path):
            if not path.is_file():
                raise InputError(f"There is no archive or folder {path}.")
            if path.stat().st_size > MAX_ARCHIVE:
                raise InputError(f"{path} has more than {MAX_ARCHIVE:,} bytes: split it.")
            file = stack.enter_context(path.open("rb"))
            _check_directory(path, file)
            archive = stack.enter_context(zipfile.ZipFile(file))
        yield archive


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Every way in which zipfile says that something is wrong, as InputError."""
    try:
        yield
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f"The archive {path!s} cannot be read ({error!s:.200}).") from error


def _check_directory(path: Path, file: BinaryIO) -> None:
    """Before it is read: zipfile makes an object of every file that is listed."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - END_BYTES - (1 << 16)))
    tail = file.read()
    file.seek(0)
    place = tail.rfind(END)
    if place < 0 or len(tail) - place < END_BYTES:
        raise InputError(f"{path} is no zip archive.")
    if int.from_bytes(tail[place + 12 : place + 16], "little") > MAX_DIRECTORY:
        raise InputError(f"The archive {path} lists too many files: split it.")


class _Files:
    """The files of an archive by bare name, read within bounds."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self._path, self._archive, self._left = path, archive, MAX_ARCHIVE
        self._infos: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            name = self._checked(info)
            if name in self._infos:
                raise InputError(f"The archive {path} holds {name!r} twice.")
            if name:
                self._infos[name] = info

    def _checked(self, info: zipfile.ZipInfo) -> str:
        """The bare name; empty for what is not looked at: folders, and what macOS adds."""
        place = PurePosixPath(info.filename)
        strange = place.is_absolute() or ".." in place.parts or "\\" in info.orig_filename
        if strange or not info.orig_filename.isprintable():
            raise InputError(f"The archive {self._path} holds the name {info.filename!r:.80}.")
        hidden = any(part.startswith((".", "__MACOSX")) for part in place.parts)
        return "" if info.is_dir() or hidden else place.name

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._infos))

    def read(self, name: str, limit: int) -> bytes:
        info = self._infos[name]
        if info.flag_bits & 1 or info.compress_type not in METHODS:
            raise InputError(f"{name} in {self._path} is encrypted or packed in a rare way.")
        most = min(limit, self._left)
        with _readable(self._path), self._archive.open(info) as file:
            data = file.read(most + 1)  # what it says of its size decides nothing
        if len(data) > most:
            raise InputError(f"{name} in {self._path} has more than {most:,} bytes.")
        self._left -= len(data)
        return data

    def text(self, name: str, limit: int = MAX_TEXT) -> str:
        return decode(self.read(name, limit), f"{name} in {self._path}")


def _in_archive(path: Path, archive: zipfile.ZipFile) -> Iterator[NewVoice]:
    files = _Files(path, archive)
    listed = {name: (file, words) for name, words, file in _presets(files)}
    clips = {name: file for name, (file, _) in listed.items()}
    for file in files:
        name, suffix = os.path.splitext(file)
        if suffix.lower() in SUFFIXES and NAME.fullmatch(name) and f"{name}.txt" in files:
            clips.setdefault(name, file)
    if not clips:
        raise InputError(f"The archive {path} holds no voices: NAME.wav with NAME.txt.")
    if len(clips) > MAX_VOICES:
        raise InputError(f"The archive {path} holds {len(clips)} voices: {MAX_VOICES} at most.")
    for name, file in sorted(clips.items()):
        words = listed[name][1] if name in listed else files.text(f"{name}.txt")
        about = {} if name in listed else _about(files, name)
        yield NewVoice(name, files.read(file, MAX_BYTES), words, about)


def _presets(files: _Files) -> Iterator[tuple[str, str, str]]:
    if PRESETS in files:
        for name, words, file in preset_entries(_json(files.text(PRESETS, MAX_PRESETS_BYTES))):
            bare = PurePosixPath(file).name
            if bare in files and PurePosixPath(bare).suffix.lower() in SUFFIXES:
                yield name, words, bare


def _about(files: _Files, name: str) -> dict:
    if f"{name}.json" not in files:
        return {}
    about = _json(files.text(f"{name}.json", MAX_ABOUT))
    return _kept(about) if isinstance(about, dict) else {}


def _kept(about: dict) -> dict:
    return {key: about[key] for key in KEPT if isinstance(about.get(key), KEPT[key])}


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"A description in the archive is no JSON ({error!s:.100}).") from error
