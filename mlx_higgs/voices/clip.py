"""A recording somebody sent -> mono samples, within bounds that its header cannot move.

What a file is, its first bytes decide. Samples are counted while they are decoded, whatever the
header promises.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..audio import MAX_CHANNELS, MAX_RATE, MAX_REFERENCE_SECONDS, MIN_RATE, SILENCE
from ..types import InputError

if TYPE_CHECKING:
    from soundfile import SoundFile

MAX_BYTES = 64 << 20  # a minute of 24 bits at 96 kHz in stereo takes 35 MB
MAX_SAMPLES = 1 << 24  # of all channels together: a minute of stereo at 96 kHz is 11.5 million
UNKNOWN = 1 << 62  # frames: libsndfile's answer for a FLAC that was streamed, which it cannot read
BLOCK = 1 << 16  # samples of all channels decoded at once
LOUDEST = 4.0  # 12 dB above full scale: what float files of real recorders stay below
WAV_CODECS = {1, 3, 6, 7, 0xFFFE}  # PCM, float, A-law, mu-law, and what names one of them again
FORMATS = {"WAV": "WAV", "WAVEX": "WAV", "FLAC": "FLAC", "OGG": "OGG", "MP3": "MP3", "MPEG": "MP3"}
HINT = "convert it first: ffmpeg -i CLIP clip.wav"
APPLE = "afconvert -f WAVE -d LEI16@24000 CLIP clip.wav (macOS), or ffmpeg -i CLIP clip.wav"


def read_clip(
    source: Path | bytes,
    *,
    max_seconds: float = MAX_REFERENCE_SECONDS,
    max_samples: int = MAX_SAMPLES,
    max_bytes: int = MAX_BYTES,
) -> tuple[np.ndarray, int]:
    """A WAV, FLAC, MP3 or OGG (Vorbis, Opus) file as mono float32 ``[N]``, and its rate in Hz.

    Args:
        source: a file, or what one holds.
        max_seconds, max_samples: of sound; samples of all channels together.
        max_bytes: of the file.

    Raises:
        InputError: none of these formats, damaged, silent, or beyond a bound.
    """
    name = "The clip" if isinstance(source, bytes) else f"The clip {source}"
    data = read_bytes(source, max_bytes)
    kind = _kind(name, data)
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_header(name, kind, file, max_seconds)
            wave = _decode(name, file, max_seconds, max_samples)
            rate = file.samplerate
    except InputError:
        raise
    except (soundfile.SoundFileError, OSError, ValueError, RuntimeError, MemoryError) as error:
        said = str(getattr(error, "error_string", error))  # without the name of what was opened
        why = said.strip(" .") or type(error).__name__
        raise InputError(f"{name} cannot be read as {kind} ({why:.200}): {HINT}") from error
    _check_samples(name, wave)
    return wave, rate


def read_bytes(source: Path | bytes, limit: int = MAX_BYTES) -> bytes:
    """What a file holds, within a limit.

    Raises:
        InputError: it is missing, no file, or holds more.
    """
    name = "The clip" if isinstance(source, bytes) else f"The clip {source}"
    try:
        if isinstance(source, bytes):
            data = source
        elif not Path(source).is_file():  # a pipe or a device would never end
            raise InputError(f"{name} does not exist, or is no file.")
        else:
            with Path(source).open("rb") as file:
                data = file.read(limit + 1)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a NUL in a name is a ValueError
        raise InputError(f"{name} cannot be read: {error}.") from error
    if len(data) > limit:
        raise InputError(f"{name} has more than {limit:,} bytes: cut it to 5 to 12 s of speech.")
    return data


def _kind(name: str, data: bytes) -> str:
    """The format by the first bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        _check_wav_codec(name, data)
        return "WAV"
    if data[:4] == b"fLaC":
        return "FLAC"
    if data[:4] == b"OggS":
        return "OGG"
    if data[:3] == b"ID3" or _is_mpeg_frame(data):
        return "MP3"
    if not data:
        raise InputError(f"{name} is empty.")
    if data[4:8] == b"ftyp":
        raise InputError(f"{name} is an MPEG-4 file (m4a), which cannot be read: {APPLE}")
    raise InputError(f"{name} is no WAV, FLAC, MP3 or OGG file by its first bytes: {HINT}")


def _is_mpeg_frame(data: bytes) -> bool:
    """Whether a header of MPEG audio, layer III, comes first."""
    if len(data) < 4 or data[0] != 0xFF or data[1] & 0xE0 != 0xE0:
        return False
    version, layer = data[1] >> 3 & 3, data[1] >> 1 & 3
    bitrate, rate = data[2] >> 4, data[2] >> 2 & 3
    return version != 1 and layer == 1 and 0 < bitrate < 15 and rate != 3


def _check_wav_codec(name: str, data: bytes) -> None:
    """Keep what nobody records speech with away from its decoders."""
    place = 12
    while place + 10 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        if data[place : place + 4] == b"fmt ":
            codec = int.from_bytes(data[place + 8 : place + 10], "little")
            if codec not in WAV_CODECS:
                raise InputError(f"{name} is a WAV file of an unusual codec ({codec:#x}): {HINT}")
            return
        place += 8 + size + size % 2
    raise InputError(f"{name} is a WAV file without a format: {HINT}")


def _check_header(name: str, kind: str, file: SoundFile, max_seconds: float) -> None:
    if FORMATS.get(file.format) != kind:
        raise InputError(f"{name} begins as {kind} but is {file.format}: {HINT}")
    if not MIN_RATE <= file.samplerate <= MAX_RATE or not 1 <= file.channels <= MAX_CHANNELS:
        raise InputError(
            f"{name} has {file.channels} channels at {file.samplerate} Hz: at most "
            f"{MAX_CHANNELS}, at {MIN_RATE} to {MAX_RATE} Hz, can be used."
        )
    if file.frames > UNKNOWN:
        raise InputError(f"{name} does not say how long it is: {HINT}")
    if file.frames > max_seconds * file.samplerate:
        _too_long(name, file.frames / file.samplerate, max_seconds)


def _decode(name: str, file: SoundFile, max_seconds: float, max_samples: int) -> np.ndarray:
    """Block by block, so that memory follows what is there and not what is promised."""
    longest = math.floor(max_seconds * file.samplerate)
    blocks, frames = [], 0
    while True:
        block = file.read(BLOCK // file.channels, dtype="float32", always_2d=True)
        if not len(block):
            break
        frames += len(block)
        if frames > longest:
            _too_long(name, frames / file.samplerate, max_seconds)
        if frames * file.channels > max_samples:
            raise InputError(
                f"{name} holds more than {max_samples:,} samples: cut it, or convert it to 24 kHz."
            )
        with np.errstate(all="ignore"):  # what is no number is refused in the end
            blocks.append(block.mean(axis=1))
    if not blocks:
        raise InputError(f"{name} holds no sound.")
    return np.concatenate(blocks)


def _too_long(name: str, seconds: float, most: float) -> None:
    raise InputError(
        f"{name} lasts {seconds:.4g} s or more: at most {most:g} s can be used, 5 to 12 s are "
        "best. Cut it first."
    )


def _check_samples(name: str, wave: np.ndarray) -> None:
    if not np.all(np.isfinite(wave)):
        raise InputError(f"{name} holds samples that are not numbers.")
    peak = np.max(np.abs(wave))
    if peak < SILENCE:
        raise InputError(f"{name} is silent.")
    if peak > LOUDEST:
        raise InputError(f"{name} reaches {peak:.3g} where 1.0 is full scale: make it quieter.")
