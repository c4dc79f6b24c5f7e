"""Clips of a data set -> samples, read as references are read for generation."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...audio import (
    MAX_CHANNELS,
    MAX_RATE,
    MAX_REFERENCE_SECONDS,
    MIN_RATE,
    MIN_REFERENCE_SECONDS,
    SILENCE,
    to_rate,
)
from ...types import SAMPLE_RATE, InputError
from .conversation import Clip

if TYPE_CHECKING:
    from soundfile import SoundFile


def read_clip(clip: Clip, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """A clip as mono float32 ``[N]``: cut, channels averaged, resampled.

    A whole file gives exactly what ``audio.read_reference`` gives.

    Raises:
        InputError: missing, unreadable, shorter than 0.2 s, longer than 60 s, silent, or a piece
            that is not within its file.
    """
    return to_rate(*decode(clip), sample_rate)


def decode(clip: Clip) -> tuple[np.ndarray, int]:
    """Mono float32 ``[N]`` as recorded, and the samples in a second. Raises as ``read_clip``."""
    with opened(clip) as file:
        start, frames = _extent(clip, file)
        file.seek(start)
        wave = file.read(frames, dtype="float32", always_2d=True).mean(axis=1)
        rate = file.samplerate
    if not np.all(np.isfinite(wave)):
        raise InputError(f"The clip {clip} holds samples that are not numbers.")
    if np.max(np.abs(wave), initial=0.0) < SILENCE:
        raise InputError(f"The clip {clip} is silent.")
    return wave, rate


def duration(clip: Clip) -> float:
    """Seconds, from the file's header alone. Raises as ``read_clip``, but for what is heard."""
    with opened(clip) as file:
        return _extent(clip, file)[1] / file.samplerate


def extract(clip: Clip, target: Path) -> None:
    """Write a clip as a WAV of its own that reads as the same samples: rate and channels stay."""
    import soundfile

    with opened(clip) as file:
        start, frames = _extent(clip, file)
        file.seek(start)
        exact = file.subtype == "PCM_16"
        data = file.read(frames, dtype="int16" if exact else "float32", always_2d=True)
        subtype = "PCM_16" if exact else "FLOAT"
        soundfile.write(target, data, file.samplerate, subtype=subtype, format="WAV")


@contextmanager
def opened(clip: Clip) -> Iterator[SoundFile]:
    """The clip's file, whose errors say which it is."""
    import soundfile

    if clip.path is not None and not clip.path.is_file():
        raise InputError(f"The clip {clip.path} does not exist.")
    source = io.BytesIO(clip.data or b"") if clip.path is None else clip.path
    try:
        with soundfile.SoundFile(source) as file:
            yield file
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(
            f"The clip {clip} cannot be read as audio ({error}). "
            "Convert it first, for instance: ffmpeg -i CLIP clip.wav"
        ) from error


def _extent(clip: Clip, file: SoundFile) -> tuple[int, int]:
    """First frame and number of frames, checked before anything is decoded."""
    if not MIN_RATE <= file.samplerate <= MAX_RATE or file.channels > MAX_CHANNELS:
        raise InputError(
            f"The clip {clip} has {file.channels} channels at {file.samplerate} Hz: at most "
            f"{MAX_CHANNELS}, at {MIN_RATE} to {MAX_RATE} Hz, can be used."
        )
    start = round(clip.offset * file.samplerate)
    left = file.frames - start
    frames = left if clip.duration is None else round(clip.duration * file.samplerate)
    if frames > left:
        raise InputError(
            f"The clip {clip} ends after its file, which lasts "
            f"{file.frames / file.samplerate:.2f} s: shorten duration or offset."
        )
    seconds = frames / file.samplerate
    if not MIN_REFERENCE_SECONDS <= seconds <= MAX_REFERENCE_SECONDS:
        raise InputError(
            f"The clip {clip} lasts {seconds:.2f} s: {MIN_REFERENCE_SECONDS} to "
            f"{MAX_REFERENCE_SECONDS:.0f} s can be used. Cut it, or leave it out."
        )
    return start, frames
