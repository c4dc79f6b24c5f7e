"""Golden files: named arrays the reference made, and how far ours are from them."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np

from ..types import InputError
from ..weights import read_header

Golden = dict[str, np.ndarray]


def read_golden(path: Path, required: tuple[str, ...]) -> tuple[Golden, dict[str, str]]:
    """Arrays and string metadata of a golden file; bfloat16, which numpy lacks, as float32.

    Raises:
        InputError: missing, unreadable, or without a required array.
    """
    if not path.is_file():
        raise InputError(f"There is no golden file {path}.")
    header = read_header(path)
    missing = [name for name in required if name not in header]
    if missing:
        raise InputError(f"{path} is not such a golden file: it lacks {', '.join(missing)}.")
    arrays, metadata = mx.load(str(path), return_metadata=True)
    assert isinstance(arrays, dict)
    assert isinstance(metadata, dict)
    return {name: np.array(_wide(array)) for name, array in arrays.items()}, metadata


def _wide(array: mx.array) -> mx.array:
    return array.astype(mx.float32) if array.dtype == mx.bfloat16 else array
