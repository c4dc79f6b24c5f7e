"""Codes of a data set's clips, encoded once and kept: a file that many runs share.

A clip is known by the content of its samples and by the codec, so moved or renamed files are never
encoded again, and changed ones always are. An index from path, size and time of change to the
content saves even the decoding of a file that has not been touched.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...types import SAMPLE_RATE, CheckpointError, InputError
from .clips import read_clip
from .conversation import Clip

if TYPE_CHECKING:
    from ...codec import HiggsCodec

FILE = "codes.sqlite"
VERSION = 1  # of how samples are read and encoded: raise it when that changes
WAIT = 60.0  # seconds for another process to finish its entry
TABLES = """
create table if not exists clips (seen text primary key, key text not null) without rowid;
create table if not exists codes (
    key text primary key, books integer not null, data blob not null, crc integer not null
) without rowid;
"""


def codec_fingerprint(folder: Path) -> str:
    """A digest of everything in a codec's folder that decides about its codes.

    Raises:
        CheckpointError: it holds no weights.
    """
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.pth")])
    if not weights:
        raise CheckpointError(f"{folder} holds no codec: neither safetensors nor model.pth.")
    total = hashlib.sha256(f"mlx_higgs codes {VERSION}".encode())
    for path in [folder / "config.json", *weights]:
        if path.is_file():
            with path.open("rb") as file:
                total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


class CodesCache:
    """Clip -> codes, encoded at most once. Safe with several threads and processes."""

    def __init__(
        self,
        folder: Path | None,
        codec_factory: Callable[[], HiggsCodec],
        fingerprint: str,
        *,
        sample_rate: int = SAMPLE_RATE,
    ):
        """Open or make the cache.

        Args:
            folder: where it lives; None keeps it in memory.
            codec_factory: builds the codec, called at the first clip that is not known.
            fingerprint: which codec that is (``codec_fingerprint``).
        """
        self._factory, self._fingerprint, self._rate = codec_factory, fingerprint, sample_rate
        self._codec: HiggsCodec | None = None
        self._lock = threading.RLock()
        self._folder, self._database = folder, _open(folder)

    def codes(self, clip: Clip) -> np.ndarray:
        """Codes int16 ``[T, K]`` of a clip, exactly those of the same clip as a reference.

        Raises:
            InputError: the clip cannot be read or encoded.
        """
        seen = self._seen(clip)
        with self._lock:
            codes = self._known(seen)
            if codes is None:
                samples = read_clip(clip, self._rate)
                key = self.key(samples)
                codes = self.get(key)
                if codes is None:
                    codes = self._encode(samples)
                    self.put(key, codes)
                self._write("replace into clips values (?, ?)", (seen, key))
            return codes

    def key(self, samples: np.ndarray) -> str:
        """What samples float32 ``[N]`` are filed under for this codec."""
        content = hashlib.sha256(np.asarray(samples, np.float32).tobytes()).hexdigest()
        return f"{self._fingerprint[:16]}-{content}"

    def get(self, key: str) -> np.ndarray | None:
        """Codes int16 ``[T, K]`` filed under a key; None when there are none, or damaged ones."""
        rows = self._read("select books, data, crc from codes where key = ?", key)
        if not rows:
            return None
        books, data, crc = rows[0]
        if zlib.crc32(data) != crc or not books or len(data) % (2 * books):
            return None
        return np.frombuffer(data, "<i2").reshape(-1, books)

    def put(self, key: str, codes: np.ndarray) -> None:
        """File codes ``[T, K]`` under a key; whole or not at all."""
        data = np.ascontiguousarray(codes, "<i2").tobytes()
        entry = (key, codes.shape[1], data, zlib.crc32(data))
        self._write("replace into codes values (?, ?, ?, ?)", entry)

    def close(self) -> None:
        """Let go of the file and the codec."""
        self._database.close()
        self._codec = None

    def release_codec(self) -> None:
        """Free the codec's memory; the next unknown clip builds it again."""
        self._codec = None

    def _known(self, seen: str) -> np.ndarray | None:
        rows = self._read("select key from clips where seen = ?", seen)
        return self.get(rows[0][0]) if rows else None

    def _seen(self, clip: Clip) -> str:
        """What tells two clips apart without decoding them."""
        if clip.path is None:
            origin = hashlib.sha256(clip.data or b"").hexdigest()
        else:
            try:
                state = clip.path.stat()
            except (OSError, ValueError) as error:  # a NUL in a name is a ValueError
                raise InputError(f"The clip {clip.path} does not exist.") from error
            origin = f"{clip.path.absolute()}|{state.st_size}|{state.st_mtime_ns}"
        return f"{self._fingerprint[:16]}|{origin}|{clip.offset!r}|{clip.duration!r}|{self._rate}"

    def _encode(self, samples: np.ndarray) -> np.ndarray:
        if self._codec is None:
            self._codec = self._factory()
        return np.array(self._codec.encode(samples)).astype(np.int16)

    def _read(self, query: str, key: str) -> list:
        return self._execute(query, (key,))

    def _write(self, statement: str, values: tuple) -> None:
        self._execute(statement, values)

    def _execute(self, statement: str, values: tuple) -> list:
        with self._lock:
            try:
                with self._database:  # commits, or rolls back
                    return self._database.execute(statement, values).fetchall()
            except sqlite3.OperationalError as error:  # no place, no permission, or locked
                raise InputError(f"The codes in {self._folder} cannot be used: {error}.") from error
            except sqlite3.DatabaseError:  # damaged: begin again
                self._database.close()
                self._database = _renewed(self._folder)
                return self._database.execute(statement, values).fetchall()


def _open(folder: Path | None) -> sqlite3.Connection:
    """The database; a file that is none any more is put aside."""
    if folder is None:
        return _connect(":memory:")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _connect(str(folder / FILE))
    except (OSError, sqlite3.OperationalError) as error:  # no place, no permission, or locked
        raise InputError(f"The codes cannot be kept in {folder}: {error}.") from error
    except sqlite3.DatabaseError:
        return _renewed(folder)


def _renewed(folder: Path | None) -> sqlite3.Connection:
    """An empty database in place of a damaged one, which stays beside it."""
    if folder is not None:
        (folder / FILE).replace(folder / f"{FILE}.damaged")
    return _open(folder)


def _connect(name: str) -> sqlite3.Connection:
    database = sqlite3.connect(name, timeout=WAIT, check_same_thread=False)
    # A lost entry is encoded again, so no waiting for the disk after each.
    database.execute("pragma synchronous = off")
    database.executescript(TABLES)
    return database
