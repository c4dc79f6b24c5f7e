"""Weight files <-> named tensors: headers first, data only when somebody asks for it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from .types import CheckpointError

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


def read_json(path: Path, *, required: bool = True) -> dict:
    """A JSON object from a checkpoint folder; ``{}`` when it may be missing and is."""
    if not path.is_file():
        if required:
            raise CheckpointError(f"{path.parent} holds no {path.name}: it is not a checkpoint.")
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.")
    return value


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Names, dtypes and shapes of a safetensors file, without reading its data.

    Raises:
        CheckpointError: not a safetensors file, or shorter than its header promises.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            raise CheckpointError(f"{path} is not a safetensors file, or its download broke off.")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            ends = [entry["data_offsets"][1] for entry in header.values()]
            infos = {k: TensorInfo(v["dtype"], tuple(v["shape"])) for k, v in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is not a safetensors file.") from error
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise CheckpointError(
            f"{path} is truncated: {size:,} bytes of {expected:,}. Download it again."
        )
    return infos


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder: those of its index when all are there.

    An index whose shards are missing gives way to ``model.safetensors`` (the hub's v2
    repository once held both); two sets of weights are never merged.
    """
    single = folder / "model.safetensors"
    index = folder / INDEX
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} is not a weight index.") from error
        paths = [folder / name for name in shards]
        missing = [p.name for p in paths if not p.is_file()]
        if paths and not missing:
            return paths
        if not single.is_file():
            raise CheckpointError(
                f"{folder} lacks the weight files {', '.join(missing)}. Download them again."
            )
    if single.is_file():
        return [single]
    raise CheckpointError(f"{folder} holds no weights: no {INDEX} and no model.safetensors.")


def named_arrays(module: Any) -> dict[str, mx.array]:
    """Every parameter of an ``nn.Module`` by its path."""
    return dict(tree_flatten(module.parameters()))


def nbytes(module: Any) -> int:
    """Bytes of all parameters of an ``nn.Module``."""
    return sum(array.nbytes for array in named_arrays(module).values())


def num_weights(module: Any) -> int:
    """Weights that a module without children stands for, however it stores them."""
    if "scales" in module:
        return 32 * module.weight.size // module.bits  # packed into words of 32 bits
    return sum(array.size for array in named_arrays(module).values())


def load_tensors(
    paths: Iterable[Path], wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, mx.array]:
    """Lazy arrays of every wanted tensor: nothing is read until it is evaluated."""
    tensors: dict[str, mx.array] = {}
    for path in paths:
        read_header(path)
        loaded = mx.load(str(path))
        assert isinstance(loaded, dict)
        for name, array in loaded.items():
            if name in tensors:
                raise CheckpointError(f"{path} holds {name} a second time.")
            if wanted(name):
                tensors[name] = array
    return tensors
