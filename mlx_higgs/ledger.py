"""What is done in a folder of results: ``results.jsonl``, right whenever the process is killed.

A result goes three ways, each of them whole or not at all: the sound and its entry are written
under ``.unfinished/``, the sound is moved to its name, the entry is appended. A run that finds an
entry there whose sound has been moved knows what the run before had no time to append; nor do other
ranks append anything, whose entries the one that holds the folder finds there. Each step is on the
disk before the next, so a power cut is no worse than a kill. Files of others stay.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import audio
from .disk import lock, sync
from .ranks import Ranks
from .types import InputError

if TYPE_CHECKING:
    import numpy as np

RESULTS = "results.jsonl"
UNFINISHED = ".unfinished"
BEGINNING = b'{"line": '  # of every entry
OURS = re.compile(  # under .unfinished: sounds, their entries and what they are while being written
    rf"[A-Za-z0-9_.-]+({'|'.join(map(re.escape, audio.FORMATS))})(\.json)?", re.IGNORECASE
)
Entry = dict[str, Any]


class Ledger:
    """The results in one folder; a context manager that holds the folder against other runs.

    Args:
        folder: made when it is missing.

    Attributes:
        made: output -> hash of what it was last made from.

    Raises:
        InputError: the folder cannot be written, another run is writing to it, or its results are
            not a batch's.
    """

    def __init__(self, folder: Path):
        self.folder, self._unfinished = folder, folder / UNFINISHED
        self.made: dict[str, str] = {}
        self._last: Entry | None = None
        try:
            self._new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            self._first = not os.path.lexists(folder / RESULTS)
            self._file = (folder / RESULTS).open("a+b")
        except (OSError, ValueError) as error:  # a NUL in a name is a ValueError
            raise InputError(f"The folder {folder!s} cannot be written: {error}.") from error
        try:
            lock(self._file, folder)
            self._read()
            self._recover()
            self._unfinished.mkdir(exist_ok=True)
        except OSError as error:
            self._close()
            raise InputError(f"The folder {folder!s} cannot be written: {error}.") from error
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):  # the next run does it
            self._recover()
        self._close()

    def _close(self) -> None:
        """What this run made and left empty goes."""
        with suppress(OSError):
            if self._first and not os.path.getsize(self.folder / RESULTS):
                (self.folder / RESULTS).unlink()
                if self._new:
                    self.folder.rmdir()
        self._file.close()

    def has(self, output: str, key: str) -> bool:
        """Whether ``output`` is there and was made from what ``key`` is the hash of."""
        return self.made.get(output) == key and self._size(output) > 0

    def lost(self, output: str) -> bool:
        """Whether ``output`` was made here and is an empty file now."""
        return output in self.made and self._size(output) == 0

    def _size(self, output: str) -> int:
        path = self.folder / output
        return path.stat().st_size if path.is_file() else -1

    def keep(self, entry: Entry, wave: np.ndarray, sample_rate: int) -> None:
        """Put samples ``[N]`` under ``entry["output"]`` and append the entry.

        Raises:
            OSError: a full disk; the sound is then not there.
        """
        unwritten = self._put(entry, wave, sample_rate)
        self.append(entry)
        unwritten.unlink()

    def _put(self, entry: Entry, wave: np.ndarray, sample_rate: int) -> Path:
        """Move a sound to its name; the file that holds its entry until that is appended."""
        name = entry["output"]
        sound, unwritten = self._unfinished / name, self._unfinished / f"{name}.json"
        audio.write(sound, wave, sample_rate)
        sync(sound)
        unwritten.write_bytes(_line(entry))
        sync(unwritten)
        sync(self._unfinished)
        os.replace(sound, self.folder / name)
        sync(self.folder)
        return unwritten

    def append(self, entry: Entry) -> None:
        self._file.write(_line(entry))
        self._file.flush()
        sync(self.folder / RESULTS)
        self._note(entry)

    def _note(self, entry: Entry) -> None:
        self._last = entry
        if _is_ours(entry) and "error" not in entry:
            self.made[entry["output"]] = entry["hash"]

    def _read(self) -> None:
        """Take in every entry; what a kill cut off at the end goes.

        Raises:
            InputError: lines, and no entry among them.
        """
        self._file.seek(0)
        end, line, ours, strange = 0, b"\n", False, False
        for line in self._file:
            if (entry := _parsed(line)) is not None:
                self._note(entry)
            ours |= entry is not None and _is_ours(entry)
            strange |= bool(line.strip()) and not _is_cut_off(line)
            end += len(line)
        if strange and not ours:
            raise InputError(
                f"{self.folder / RESULTS} is not from a batch: name a folder of the batch's own."
            )
        if _is_cut_off(line):
            self._file.truncate(end - len(line))
        elif not line.endswith(b"\n"):  # somebody's editor
            self._file.write(b"\n")

    def collect(self) -> list[Entry]:
        """Append what helpers have made since, or a run that ended before it could; the entries."""
        before, found = self._last, []
        for path in sorted(self._unfinished.glob("*.json")):
            entry = _parsed(path.read_bytes()) if OURS.fullmatch(path.name) else None
            if path.with_suffix("").exists() or entry is None or not _is_ours(entry):
                continue  # its sound has not been moved
            if entry != before:  # which a kill kept from being removed
                self.append(entry)
            found.append(entry)
            path.unlink()
        return found

    def _recover(self) -> None:
        """Append the entries of sounds that were moved to their names; the rest goes."""
        self.collect()
        for path in self._unfinished.glob("*"):
            if OURS.fullmatch(path.name):
                path.unlink()
        with suppress(OSError):  # it is not there, or holds something else
            self._unfinished.rmdir()


class Helper(Ledger):
    """The same folder, while another process holds it: its ``collect`` finds what is made here.

    Raises:
        InputError: the folder is not there, or cannot be read.
    """

    def __init__(self, folder: Path):
        self.folder, self._unfinished = folder, folder / UNFINISHED
        self.made, self._last = {}, None
        try:
            with (folder / RESULTS).open("rb") as file:
                for line in file:
                    if (entry := _parsed(line)) is not None:
                        self._note(entry)
        except OSError as error:
            raise InputError(f"The folder {folder!s} cannot be read: {error}.") from error

    def __exit__(self, *exc: object) -> None:
        pass

    def collect(self) -> list[Entry]:
        """Nothing: that is for the one that holds the folder."""
        return []

    def keep(self, entry: Entry, wave: np.ndarray, sample_rate: int) -> None:
        self._put(entry, wave, sample_rate)

    def append(self, entry: Entry) -> None:
        """Leave an entry without a sound."""
        name = entry["output"]
        partial = self._unfinished / f".part.{name}"
        partial.write_bytes(_line(entry))
        sync(partial)
        os.replace(partial, self._unfinished / f"{name}.json")
        sync(self._unfinished)


def shared_ledger(folder: Path, ranks: Ranks) -> AbstractContextManager[Ledger]:
    """The folder held by rank 0, with the others as helpers.

    Raises:
        InputError: as ``Ledger``, or a folder that not all ranks see.
    """
    return ranks.holding(folder, lambda: Ledger(folder), lambda: nullcontext(Helper(folder)))


def _line(entry: Entry) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def _parsed(line: bytes) -> Entry | None:
    """None for what is no entry: a line cut off, or somebody else's."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_ours(entry: Entry) -> bool:
    return isinstance(entry.get("output"), str) and isinstance(entry.get("hash"), str)


def _is_cut_off(line: bytes) -> bool:
    """Whether it is the beginning of an entry, or the zeros of one that never reached the disk."""
    written = line.rstrip(b"\0")
    begun = written.startswith(BEGINNING) or BEGINNING.startswith(written)
    return begun and not line.endswith(b"\n") and _parsed(line) is None
