"""A change to a folder of voices that is there whole or not at all, whenever the process is killed.

Its files are written to a folder of their own under ``.changes``. Then a manifest there says what
becomes of which voice: from then on the change holds. Then the files are moved to their names. Who
comes next finishes what has a manifest; what has none was given up.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..disk import sync
from ..types import InputError
from .folders import NAME, SUFFIXES

CHANGES = ".changes"
LOCK = ".lock"
MANIFEST = "manifest.json"
FILES = (*SUFFIXES, ".json", ".txt")  # of a voice; the words come last: without them it is none
ABANDONED = 3600.0  # seconds: whoever wrote files for so long was killed

Manifest = dict[str, list[str]]  # name -> suffixes of its new files; none: it goes


class Change:
    """Files under way to ``folder``, which is made when it is missing."""

    def __init__(self, folder: Path):
        self.folder, self._manifest = folder, Manifest()
        self._path = folder / CHANGES / secrets.token_hex(8)

    @property
    def names(self) -> set[str]:
        return set(self._manifest)

    def put(self, name: str, files: dict[str, bytes]) -> None:
        """The voice ``name`` shall consist of these files, by suffix, and of no others."""
        self._begin()
        for suffix, data in files.items():
            write_synced(self._path / f"{name}{suffix}", data)
        self._manifest[name] = list(files)

    def drop(self, name: str) -> None:
        """The voice ``name`` shall go."""
        self._begin()
        self._manifest[name] = []

    def _begin(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # a NUL in a name is a ValueError
            raise InputError(f"The folder {self.folder!s} cannot be written: {error}.") from error

    def commit(self) -> None:
        """Under the folder's lock: make it hold, then do it."""
        partial = self._path / f"{MANIFEST}.partial"
        sync(self._path)
        write_synced(partial, json.dumps(self._manifest).encode())
        partial.replace(self._path / MANIFEST)
        sync(self._path)
        _apply(self.folder, self._path, self._manifest)

    def discard(self) -> None:
        """Forget what is not committed; after that, nothing is left to forget."""
        if not (self._path / MANIFEST).exists():
            shutil.rmtree(self._path, ignore_errors=True)


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """The lock of a folder that exists, with the changes of those who were killed done."""
    with locked(folder / LOCK):
        for path in sorted((folder / CHANGES).glob("*")):
            manifest = _read(path / MANIFEST)
            if manifest is not None:
                _apply(folder, path, manifest)
            elif (path / MANIFEST).exists() or _age(path) > ABANDONED:  # damaged, or given up
                shutil.rmtree(path, ignore_errors=True)
        yield


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock of that file and hold it: one thread of one process at a time.

    The system gives a lock back when its process ends, however that ends.
    """
    import fcntl

    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with suppress(OSError):  # a file system that has no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    path.write_bytes(data)
    sync(path)


def recover(folder: Path) -> None:
    """Finish what somebody was killed at; a folder that may only be read stays as it is."""
    with suppress(OSError):
        if any((folder / CHANGES).glob(f"*/{MANIFEST}")):
            with holding(folder):
                pass


def _apply(folder: Path, path: Path, manifest: Manifest) -> None:
    """Each step may have been done before."""
    for name, kept in manifest.items():
        for suffix in reversed(FILES):
            if suffix not in kept:
                (folder / f"{name}{suffix}").unlink(missing_ok=True)
        for suffix in FILES:
            with suppress(FileNotFoundError):  # moved before
                if suffix in kept:
                    os.replace(path / f"{name}{suffix}", folder / f"{name}{suffix}")
    sync(folder)
    shutil.rmtree(path, ignore_errors=True)


def _read(path: Path) -> Manifest | None:
    """None for what is no manifest of ours."""
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    usable = isinstance(manifest, dict) and all(
        NAME.fullmatch(name) and isinstance(kept, list) and all(s in FILES for s in kept)
        for name, kept in manifest.items()
    )
    return manifest if usable else None


def _age(path: Path) -> float:
    with suppress(OSError):  # gone meanwhile
        return time.time() - path.stat().st_mtime
    return 0.0
