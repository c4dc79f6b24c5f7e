"""Arrays kept by key: the last used in memory, more of them in a folder that processes share.

What is kept can always be made again. So whatever cannot be read is a miss, what cannot be written
is left out, and every size is bounded.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .weights import read_header

Tensors = dict[str, mx.array]

FORMAT = "mlx_higgs kept arrays, version 1"
NAME = re.compile(r"[0-9a-f]{64}\.safetensors")  # what may be deleted
PARTIAL = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{8}\.safetensors")
refused: set[Path] = set()  # folders that took no file, as was said
ABANDONED = 3600.0  # seconds: whoever wrote a partial file for so long was killed


def user_folder() -> Path | None:
    """Where this user's caches go: ``$MLX_HIGGS_CACHE``, or where the system has them.

    None for a user without a home.
    """
    if named := os.environ.get("MLX_HIGGS_CACHE"):
        return Path(named)
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if sys.platform == "darwin":
        shared = Path("~/Library/Caches")
    elif not shared.is_absolute():
        shared = Path("~/.cache")
    try:
        return shared.expanduser() / "mlx_higgs"
    except RuntimeError:  # pathlib's word for it
        return None


class Folder:
    """One safetensors file per key, there whole or not at all.

    Args:
        path: made when first written to, for its owner alone.
        max_bytes: beyond it the files used longest ago go; no other file is ever touched.
    """

    def __init__(self, path: Path, max_bytes: int):
        self.path, self.max_bytes = path, max_bytes

    def read(self, key: str) -> Tensors | None:
        """What was written under ``key`` (64 hex digits); None if it is not there or damaged."""
        path = self._file(key)
        try:
            read_header(path)
            tensors, facts = _load(path)
            if facts != _facts(key, tensors):
                return None
        except (OSError, RuntimeError, ValueError):  # MLX has no error of its own for a bad file
            return None
        with suppress(OSError):
            os.utime(path)
        return tensors

    def write(self, key: str, tensors: Tensors) -> None:
        """Keep ``tensors``; a folder that takes none is told once and goes without."""
        if nbytes(tensors) > self.max_bytes:
            return
        partial = self.path / f".{key}.{secrets.token_hex(4)}.safetensors"
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            mx.save_safetensors(str(partial), tensors, _facts(key, tensors))
            partial.replace(self._file(key))
            self._make_room(key)
        except (OSError, RuntimeError) as error:  # MLX reports a full disk as the second
            self._warn(error)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self.path / f"{key}.safetensors"

    def _make_room(self, newest: str) -> None:
        files = []
        for path in self.path.iterdir():
            with suppress(OSError):  # another process makes room as well
                about = path.stat()
                if NAME.fullmatch(path.name):
                    files.append((path.stem == newest, about.st_mtime_ns, about.st_size, path))
                elif PARTIAL.fullmatch(path.name) and about.st_mtime < time.time() - ABANDONED:
                    path.unlink()
        excess = sum(size for _, _, size, _ in files) - self.max_bytes
        for is_newest, _, size, path in sorted(files):
            if excess <= 0 or is_newest:
                return
            with suppress(OSError):
                path.unlink()
            excess -= size

    def _warn(self, error: Exception) -> None:
        if self.path not in refused:
            message = f"Nothing can be kept in {self.path} ({error}): it is computed every time."
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        refused.add(self.path)


class Store:
    """Arrays in memory, in a folder behind it, or made now.

    Args:
        max_bytes: what memory may hold; the arrays used longest ago go first, and what is larger
            alone is not kept.
    """

    def __init__(self, max_bytes: int, folder: Folder | None = None):
        self.max_bytes, self.folder = max_bytes, folder
        self._kept: dict[str, Tensors] = {}  # the last used comes last

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(map(nbytes, self._kept.values()))

    def get(
        self, key: str, make: Callable[[], Tensors], fits: Callable[[Tensors], bool]
    ) -> Tensors:
        """The arrays of ``key``.

        Args:
            make: makes them, evaluated.
            fits: whether a file's arrays have the names, shapes and dtypes that they must have.
        """
        tensors = self._kept.pop(key, None)
        if tensors is None and self.folder is not None:
            tensors = self.folder.read(key)
            tensors = tensors if tensors is not None and fits(tensors) else None
        if tensors is None:
            tensors = make()
            if self.folder is not None:
                self.folder.write(key, tensors)
        self._keep(key, tensors)
        return tensors

    def clear(self) -> None:
        """Forget what is in memory."""
        self._kept.clear()

    def _keep(self, key: str, tensors: Tensors) -> None:
        if nbytes(tensors) > self.max_bytes:
            return
        self._kept[key] = tensors
        excess = self.nbytes - self.max_bytes
        for oldest in list(self._kept):
            if excess <= 0:
                return
            excess -= nbytes(self._kept.pop(oldest))


def nbytes(tensors: Tensors) -> int:
    return sum(array.nbytes for array in tensors.values())


def _facts(key: str, tensors: Tensors) -> dict[str, str]:
    """What a file says of itself. Reads all of it: half a voice would sound like one."""
    return {"format": FORMAT, "key": key, "crc32": f"{_checksum(tensors):08x}"}


def _load(path: Path) -> tuple[Tensors, dict[str, str]]:
    loaded: Any = mx.load(str(path), return_metadata=True)
    return loaded


def _checksum(tensors: Tensors) -> int:
    total = 0
    for name, array in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), total)
        data: Any = np.array(array.reshape(-1).view(mx.uint8), copy=False)
        total = zlib.crc32(data, total)
    return total
