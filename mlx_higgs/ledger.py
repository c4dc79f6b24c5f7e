"""What is done in a folder of results: ``results.jsonl``, right whenever the process is killed.

A result goes three ways, each of them whole or not at all: the sound and its entry are written
under ``.unfinished/``, the sound is moved to its name, the entry is appended. A run that finds an
entry there whose sound has been moved knows what the run before had no time to append.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from . import audio
from .types import InputError

if TYPE_CHECKING:
    import numpy as np

RESULTS = "results.jsonl"
UNFINISHED = ".unfinished"
Entry = dict[str, Any]


class Ledger:
    """The results in one folder; a context manager that holds the folder against other runs.

    Args:
        folder: made when it is missing.

    Attributes:
        made: output -> hash of what it was last made from.

    Raises:
        InputError: the folder cannot be written, or another run is writing to it.
    """

    def __init__(self, folder: Path):
        self.folder, self._unfinished = folder, folder / UNFINISHED
        self.made: dict[str, str] = {}
        self._last: Entry | None = None
        try:
            self._new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / RESULTS).open("a+b")
        except (OSError, ValueError) as error:  # a NUL in a name is a ValueError
            raise InputError(f"The folder {folder!s} cannot be written: {error}.") from error
        try:
            _lock(self._file, folder)
            self._read()
            self._recover()
            self._unfinished.mkdir()
        except OSError as error:
            self._file.close()
            raise InputError(f"The folder {folder!s} cannot be written: {error}.") from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):  # the next run does it
            self._recover()
            if not os.path.getsize(self.folder / RESULTS):
                self._leave_nothing()
        self._file.close()

    def _leave_nothing(self) -> None:
        (self.folder / RESULTS).unlink()
        if self._new:
            self.folder.rmdir()

    def has(self, output: str, key: str) -> bool:
        """Whether ``output`` is there and was made from what ``key`` is the hash of."""
        return self.made.get(output) == key and (self.folder / output).is_file()

    def keep(self, entry: Entry, wave: np.ndarray, sample_rate: int) -> None:
        """Put samples ``[N]`` under ``entry["output"]`` and append the entry.

        Raises:
            OSError: a full disk; the sound is then not there.
        """
        name = entry["output"]
        sound, unwritten = self._unfinished / name, self._unfinished / f"{name}.json"
        audio.write(sound, wave, sample_rate)
        unwritten.write_bytes(_line(entry))
        os.replace(sound, self.folder / name)
        self.append(entry)
        unwritten.unlink()

    def append(self, entry: Entry) -> None:
        self._file.write(_line(entry))
        self._file.flush()
        self._note(entry)

    def _note(self, entry: Entry) -> None:
        self._last = entry
        output, key = entry.get("output"), entry.get("hash")
        if isinstance(output, str) and isinstance(key, str) and "error" not in entry:
            self.made[output] = key

    def _read(self) -> None:
        """Take in every entry; what a kill cut off at the end goes."""
        self._file.seek(0)
        end = 0
        for line in self._file:
            if (entry := _parsed(line)) is not None:
                self._note(entry)
            if entry is None and not line.endswith(b"\n"):
                self._file.truncate(end)
            elif not line.endswith(b"\n"):  # somebody's editor
                self._file.write(b"\n")
            end += len(line)

    def _recover(self) -> None:
        """Append the entry whose sound was moved to its name just before the end came."""
        for path in self._unfinished.glob("*.json"):
            entry = _parsed(path.read_bytes())
            moved = not path.with_suffix("").exists()
            if moved and entry is not None and entry != self._last:
                self.append(entry)
        if os.path.lexists(self._unfinished):
            shutil.rmtree(self._unfinished)


def _lock(file: BinaryIO, folder: Path) -> None:
    """The system gives a lock back when its process ends, however that ends."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"Another run is writing to {folder}: wait for it, or name another folder."
        ) from error
    except OSError:  # a file system that has no locks
        pass


def _line(entry: Entry) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def _parsed(line: bytes) -> Entry | None:
    """None for what is no entry: a line cut off, or somebody else's."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
