"""A clip that is played to the model -> what its checkpoint needs of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from .audio import MAX_REFERENCE_SECONDS, to_rate
from .types import HEARING_RATE, Hearing, InputError, Recording
from .voices.clip import read_clip

if TYPE_CHECKING:
    import mlx.core as mx

MAX_SECONDS = 300.0  # of a clip whose codes nobody needs: the codec takes a clip as a whole
MAX_SAMPLES = 1 << 26  # of all its channels: five minutes of stereo at 96 kHz are 58 million

# a file, what one holds, or mono samples [N] and their rate in Hz
Clip: TypeAlias = str | os.PathLike | bytes | tuple[np.ndarray, int]


def recording(
    clip: Clip, hearing: Hearing, sample_rate: int, encode: Callable[[np.ndarray], mx.array]
) -> Recording:
    """A clip by what ``hearing`` asks for: samples at 16 kHz, codes, or both.

    Args:
        sample_rate: the codec's, in Hz.
        encode: samples at that rate -> codes ``[T, K]``; called where codes are asked for.

    Raises:
        InputError: a clip that cannot be used, or a checkpoint that hears none.
    """
    if not hearing.features and not hearing.codes:
        raise InputError("This checkpoint hears no recordings: give it text.")
    wave, rate = _samples(clip, longest(hearing))
    return Recording(
        encode(to_rate(wave, rate, sample_rate)) if hearing.codes else None,
        to_rate(wave, rate, HEARING_RATE) if hearing.features else None,
    )


def longest(hearing: Hearing) -> float:
    """Seconds of a clip, at most."""
    return MAX_REFERENCE_SECONDS if hearing.codes else MAX_SECONDS


def _samples(clip: Clip, most: float) -> tuple[np.ndarray, int]:
    if not isinstance(clip, tuple):
        source = clip if isinstance(clip, bytes) else Path(clip)
        return read_clip(source, max_seconds=most, max_samples=MAX_SAMPLES)
    wave, rate = np.asarray(clip[0], dtype=np.float32), clip[1]
    if wave.ndim != 1 or not 0 < len(wave) <= most * rate:
        raise InputError(
            f"A recording is mono, [N], of at most {most:.0f} s, not of shape "
            f"{list(wave.shape)} at {rate} Hz."
        )
    if not np.all(np.isfinite(wave)):
        raise InputError("The recording holds samples that are not numbers.")
    return wave, rate
