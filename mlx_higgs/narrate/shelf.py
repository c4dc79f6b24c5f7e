"""Pieces kept in a folder while a book is made: each whole or not at all, named by what made it.

A kill or a power cut loses no more than the piece under way.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..disk import lock, sync
from ..ranks import Ranks
from ..takes import FAULTS, Take
from ..types import InputError, StopReason

LOCK = "lock"
BOOK = "book.json"
OURS = re.compile(rf"\..*|[0-9a-f]{{64}}\.npz|{re.escape(BOOK)}|{LOCK}")
PEAK = 32767  # of 16 bits


@dataclass(frozen=True)
class Kept:
    """What is known of a piece without its samples.

    Attributes:
        samples: how many.
        stop_reason, seed, attempts, error: as ``takes.Take`` has them.
    """

    samples: int
    sampling_rate: int
    stop_reason: StopReason | None
    seed: int
    attempts: int
    error: str = ""

    @property
    def good(self) -> bool:
        return self.stop_reason == "eos"

    @property
    def fault(self) -> str:
        """What is wrong with it; "" if nothing is."""
        return FAULTS[self.stop_reason]


class Shelf:
    """A folder of pieces, held against other runs while it is open (a context manager).

    Args:
        path: made when it is missing; its parent must be there.
        guest: another rank of this run holds it.

    Raises:
        InputError: it cannot be written, another run holds it, or it holds something else.
    """

    def __init__(self, path: Path, *, guest: bool = False):
        self.path = path
        try:
            path.mkdir(exist_ok=True)
            strange = [entry.name for entry in path.iterdir() if not OURS.fullmatch(entry.name)]
            if strange:
                raise InputError(f"The folder {path} holds {strange[0]}, which is not ours.")
            self._lock = (path / LOCK).open("ab")
        except OSError as error:
            raise InputError(f"The folder {path} cannot be written: {error}.") from error
        if guest:
            return
        try:
            lock(self._lock, path)
            for partial in path.glob(".*"):
                partial.unlink()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.close()

    def about(self) -> dict:
        """What was noted of the book; empty if nothing was."""
        try:
            found = json.loads((self.path / BOOK).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def note(self, about: dict) -> None:
        """Note something of the book."""
        self._write(BOOK, json.dumps(about).encode())

    def find(self, key: str) -> Kept | None:
        """What is kept under ``key`` (64 hex digits); None if nothing is, or it is damaged."""
        try:
            with np.load(self._file(key), allow_pickle=False) as arrays:
                kept = Kept(**json.loads(arrays["about"].tobytes()))
                return kept if kept.stop_reason in FAULTS else None
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def wave(self, key: str) -> np.ndarray:
        """The samples ``[N]`` of a piece, mono float32.

        Raises:
            OSError: it was damaged after it was found.
        """
        return self._array(key, "pcm").astype(np.float32) / PEAK

    def codes(self, key: str) -> np.ndarray:
        """The codes ``[T, K]`` of a piece, int32. Raises OSError as `wave`."""
        return self._array(key, "codes").astype(np.int32)

    def keep(self, key: str, take: Take) -> Kept:
        """Put a piece on the disk, in 16 bits a sample, as sound files have them.

        Raises:
            OSError: a full disk; the piece is then not there.
        """
        kept = Kept(
            len(take.pcm),
            take.sampling_rate,
            take.stop_reason,
            take.seed,
            take.attempts,
            take.error,
        )
        content = io.BytesIO()
        np.savez(
            content,
            about=np.frombuffer(json.dumps(asdict(kept)).encode(), np.uint8),
            codes=take.codes.astype(np.int16),
            pcm=np.rint(np.clip(take.pcm, -1.0, 1.0) * PEAK).astype(np.int16),
        )
        self._write(self._file(key).name, content.getvalue())
        return kept

    def remove(self) -> None:
        """All of it, when the book is done."""
        shutil.rmtree(self.path)

    def remove_if_empty(self) -> None:
        """Leave nothing behind of a run that made nothing."""
        if self.path.is_dir() and not any(self.path.glob("*.npz")):
            self.remove()

    def _array(self, key: str, name: str) -> np.ndarray:
        try:
            with np.load(self._file(key), allow_pickle=False) as arrays:
                return arrays[name]
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise OSError(
                f"{self._file(key)} is damaged: remove it and run the same command again."
            ) from error

    def _file(self, key: str) -> Path:
        return self.path / f"{key}.npz"

    def _write(self, name: str, content: bytes) -> None:
        partial = self.path / f".{secrets.token_hex(4)}.{name}"  # ranks may write the same at once
        try:
            partial.write_bytes(content)
            sync(partial)
            os.replace(partial, self.path / name)
            sync(self.path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise


def shared_shelf(path: Path, ranks: Ranks) -> AbstractContextManager[Shelf]:
    """A shelf held by rank 0, with the others as guests; none is left by a run that made nothing.

    Raises:
        InputError: as ``Shelf``, or a folder that not all ranks see.
    """
    return ranks.holding(path, lambda: _held(path), lambda: Shelf(path, guest=True))


@contextmanager
def _held(path: Path) -> Iterator[Shelf]:
    with Shelf(path) as shelf:
        try:
            yield shelf
        finally:
            shelf.remove_if_empty()
