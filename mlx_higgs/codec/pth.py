"""Torch checkpoints (``.pth``) read without torch, and without running what they contain."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..types import CheckpointError

STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype("<u2"),  # numpy has no bfloat16; widened by a shift
    "DoubleStorage": np.dtype("<f8"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class Storage(NamedTuple):
    """A flat buffer inside the archive. (Tuples: a pickle cannot change them afterwards.)"""

    kind: str
    numel: int
    load: Callable[[], bytes]


class PthTensor(NamedTuple):
    """A strided view that lies inside its storage; read on demand."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def numpy(self) -> np.ndarray:
        """The values, contiguous; bfloat16 comes as float32."""
        dtype = STORAGES[self.storage.kind]
        data = self.storage.load()
        if len(data) < self.storage.numel * dtype.itemsize:
            raise CheckpointError(f"A storage holds {len(data)} bytes, fewer than it promises.")
        if 0 in self.shape:
            return np.zeros(self.shape, dtype)
        flat = np.frombuffer(data, dtype)[self.offset : self.storage.numel]
        steps = [stride * dtype.itemsize for stride in self.strides]
        values = np.array(as_strided(flat, self.shape, steps))
        if self.storage.kind == "BFloat16Storage":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values


def read_pth(path: Path) -> dict[str, PthTensor]:
    """The tensors of a torch state dict by name; their data is not read yet.

    Entries that are file objects (``io.BytesIO``, found in public codec files) are left out.

    Raises:
        CheckpointError: not a whole torch zip archive, or a pickle that asks for anything but
            tensors in dictionaries.
    """
    try:
        content = _unpickle(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    # A damaged or hostile pickle may raise anything; none of it may pass for a bug of ours.
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable torch checkpoint: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict.")
    tensors = {name: value for name, value in content.items() if type(value) is not _FileObject}
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, PthTensor):
            raise CheckpointError(f"{path}: entry {name!r} is not a tensor.")
    return tensors


def _unpickle(path: Path) -> object:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        roots = [n.removesuffix("data.pkl") for n in names if n.split("/")[1:] == ["data.pkl"]]
        if len(roots) != 1:
            raise CheckpointError("no data.pkl inside; save it with torch 1.6 or newer.")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise CheckpointError("its entries are compressed; torch never writes such files.")
        order = roots[0] + "byteorder"
        if order in names and archive.read(order) != b"little":
            raise CheckpointError("it is not little-endian.")
        return _Unpickler(path, archive, roots[0]).load()


class _Unpickler(pickle.Unpickler):
    """Knows a handful of names; every other global is refused before anything is called."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self.path, self.root = path, root

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return name
        if (module, name) not in GLOBALS:
            raise CheckpointError(f"it asks for {module}.{name}, which is no tensor; refused.")
        return GLOBALS[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        match pid:
            case ("storage", str(kind), str(key), str(), int(numel)) if kind in STORAGES:
                return Storage(kind, numel, lambda: self._bytes(key))
        raise CheckpointError(f"storage {pid!r} is not understood.")

    def _bytes(self, key: str) -> bytes:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(f"{self.root}data/{key}")
        except (KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{self.path} is damaged: {error}") from error


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: object) -> PthTensor:
    """A view, refused unless every element of it lies inside the storage."""
    shape, strides = tuple(shape), tuple(strides)
    named = f"a tensor of shape {shape} and strides {strides} at {offset}"
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise CheckpointError(f"{named} is not understood.")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise CheckpointError(f"{named} is not understood.")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.numel:
        raise CheckpointError(f"{named} leaves its storage of {storage.numel} numbers.")
    return PthTensor(storage, offset, shape, strides)


def _rebuild_parameter(data: object, *_: object) -> object:
    return data


class _FileObject:
    """What an ``io.BytesIO`` entry becomes; its content is ignored."""

    def __setstate__(self, state: object) -> None:
        """Drop the content."""


def _ignore_bytes(*_: object) -> bytes:
    return b""


GLOBALS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_io", "BytesIO"): _FileObject,
    ("_codecs", "encode"): _ignore_bytes,  # how a pickle spells the content of a BytesIO
}
