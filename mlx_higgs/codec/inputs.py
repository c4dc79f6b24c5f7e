"""What the codec accepts: checked on the host, for MLX reads on past the end of an array."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..types import InputError
from .config import CodecConfig

MAX_SECONDS = 60  # HuBERT's attention grows with the square of the clip


def checked_wave(wave: np.ndarray | mx.array, config: CodecConfig) -> np.ndarray:
    """Mono samples as float32 ``[N]``, at least a frame and at most 60 s of them.

    Raises:
        InputError: anything else, NaN and infinite samples included.
    """
    array = _on_host(wave)
    if array.ndim != 1 or array.dtype.kind != "f":
        raise InputError(
            f"The codec encodes mono float samples [N], not {array.dtype} {list(array.shape)}."
        )
    if len(array) < config.hop:
        raise InputError(
            f"The clip has {len(array)} samples; the codec needs at least {config.hop} "
            f"({config.hop / config.sample_rate:.2f} s)."
        )
    seconds = len(array) / config.sample_rate
    if seconds > MAX_SECONDS:
        raise InputError(
            f"The clip lasts {seconds:.1f} s; the codec encodes up to {MAX_SECONDS} s. Cut it."
        )
    with np.errstate(over="ignore"):  # too large for float32 is reported as infinite
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError("The clip holds NaN or infinite samples.")
    return array


def checked_codes(codes: np.ndarray | mx.array, config: CodecConfig) -> mx.array:
    """Codes as int32 ``[T, k]`` of the first ``k <= K`` codebooks.

    Raises:
        InputError: another shape or dtype, or a code that is not in its codebook.
    """
    array = _on_host(codes)
    if array.ndim != 2 or not 1 <= array.shape[1] <= config.num_codebooks:
        raise InputError(
            f"Codes are [T, K] with K from 1 to {config.num_codebooks}, not shape "
            f"{list(array.shape)}."
        )
    if array.dtype.kind not in "iu":
        raise InputError(f"Codes are whole numbers, not {array.dtype}.")
    if array.size and not (array.min() >= 0 and array.max() < config.codebook_size):
        raise InputError(
            f"Codes run from 0 to {config.codebook_size - 1}; these run from {array.min()} "
            f"to {array.max()}. BOS and EOS are not codes: remove them first."
        )
    return mx.array(array.astype(np.int32))


def _on_host(array: np.ndarray | mx.array) -> np.ndarray:
    if isinstance(array, mx.array) and array.dtype == mx.bfloat16:
        array = array.astype(mx.float32)  # numpy has no bfloat16
    return np.asarray(array)
