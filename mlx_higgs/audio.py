"""Audio files <-> mono float32 samples, and what can be said of samples alone."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .types import SAMPLE_RATE, InputError

if TYPE_CHECKING:
    from typing import BinaryIO

    from soundfile import SoundFile

# suffix -> (container, codec) of libsndfile
FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".opus": ("OGG", "OPUS"),
    ".ogg": ("OGG", "OPUS"),
}
MIN_REFERENCE_SECONDS = 0.2
MAX_REFERENCE_SECONDS = 60.0
MIN_RATE, MAX_RATE, MAX_CHANNELS = 4_000, 192_000, 8  # what recorders write
SILENCE = 1e-4  # -80 dBFS: no sample of speech stays below it for long


def read_reference(path: str | os.PathLike, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """A reference clip as mono float32 ``[N]``: channels averaged, resampled. Read-only.

    The last few are kept: a clip is checked before a model is loaded, and encoded after.

    Raises:
        InputError: missing, unreadable, shorter than 0.2 s, longer than 60 s, or silent.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"The reference {path} does not exist.")
    written = path.stat()
    stamp = written.st_mtime_ns, written.st_size, written.st_ino
    return _read_clip(path.absolute(), stamp, sample_rate)


@lru_cache(maxsize=4)
def _read_clip(path: Path, written: tuple[int, int, int], sample_rate: int) -> np.ndarray:
    """``written``: when, how many bytes, and where. Another file of that name is another clip."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            _check_clip(path, file)
            wave = file.read(dtype="float32", always_2d=True).mean(axis=1)
            rate = file.samplerate
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(
            f"The reference {path} cannot be read as audio ({error}). "
            "Convert it first, for instance: ffmpeg -i CLIP clip.wav"
        ) from error
    if not np.all(np.isfinite(wave)):
        raise InputError(f"The reference {path} holds samples that are not numbers.")
    if np.max(np.abs(wave), initial=0.0) < SILENCE:
        raise InputError(f"The reference {path} is silent.")
    wave = to_rate(wave, rate, sample_rate)
    wave.flags.writeable = False
    return wave


def _check_clip(path: Path, file: SoundFile) -> None:
    """Before anything is decoded: a small file can hold hours of silence."""
    seconds = file.frames / file.samplerate
    if not MIN_RATE <= file.samplerate <= MAX_RATE or file.channels > MAX_CHANNELS:
        raise InputError(
            f"The reference {path} has {file.channels} channels at {file.samplerate} Hz: at most "
            f"{MAX_CHANNELS}, at {MIN_RATE} to {MAX_RATE} Hz, can be used."
        )
    if seconds < MIN_REFERENCE_SECONDS:
        raise InputError(
            f"The reference {path} lasts {seconds:.2f} s: at least {MIN_REFERENCE_SECONDS} s are "
            "needed, 5 to 12 s are best."
        )
    if seconds > MAX_REFERENCE_SECONDS:
        raise InputError(
            f"The reference {path} lasts {seconds:.0f} s: at most {MAX_REFERENCE_SECONDS:.0f} s "
            "can be used, 5 to 12 s are best. Cut it first."
        )


def to_rate(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Mono samples at ``rate`` Hz -> float32 at ``wanted`` Hz (windowed sinc)."""
    if rate == wanted:
        return np.asarray(wave, dtype=np.float32)
    from .resample import resample

    return resample(wave, rate, wanted)


def check_output(path: str | os.PathLike, *, force: bool = False) -> Path:
    """The path to write to, refused before any work is done rather than after.

    Raises:
        InputError: unknown suffix, missing or unwritable folder, or a file that exists
            (without ``force``).
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        known = ", ".join(FORMATS)
        raise InputError(f"The output {path} has no known suffix: use one of {known}, or - .")
    try:
        if path.is_dir():
            raise InputError(f"The output {path} is a folder.")
        if not path.parent.is_dir():
            raise InputError(f"The folder {path.parent} does not exist.")
        if path.exists() and not force:
            raise InputError(f"The output {path} exists. Add --force to replace it.")
        os.access(path, os.W_OK)  # raises for a NUL in the name
        with tempfile.NamedTemporaryFile(dir=path.parent):  # root may write everywhere, it says
            return path
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a NUL in a name is a ValueError
        raise InputError(f"The output {path!s} cannot be written: {error}.") from error


def write(path: str | os.PathLike, wave: np.ndarray, sample_rate: int = SAMPLE_RATE) -> Path:
    """Write mono samples by suffix; the file appears whole or not at all."""
    return write_blocks(path, [wave], sample_rate)


def write_blocks(
    path: str | os.PathLike, waves: Iterable[np.ndarray], sample_rate: int = SAMPLE_RATE
) -> Path:
    """As `write`, of samples that come block by block: hours need no more memory than a block."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    os.close(handle)
    try:
        _encode_file(path, temporary, waves, sample_rate)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_stdout(wave: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """A WAV file on standard output."""
    import io

    buffer = io.BytesIO()
    _encode(buffer, [wave], sample_rate, ".wav")
    sys.stdout.buffer.write(buffer.getvalue())
    sys.stdout.buffer.flush()


def _encode_file(path: Path, temporary: str, waves: Iterable[np.ndarray], sample_rate: int) -> None:
    import soundfile

    try:
        _encode(temporary, waves, sample_rate, path.suffix.lower())
    except soundfile.SoundFileError as error:  # says no more than "System error"
        raise OSError(f"{path} could not be written ({error}) Is the disk full?") from error


def _encode(
    target: str | BinaryIO, waves: Iterable[np.ndarray], sample_rate: int, suffix: str
) -> None:
    import soundfile

    container, subtype = FORMATS[suffix]
    # Blocks, because libsndfile 1.2.2 overruns its stack on minutes of OGG in one call.
    with soundfile.SoundFile(
        target, "w", sample_rate, channels=1, format=container, subtype=subtype
    ) as file:
        for wave in waves:
            for start in range(0, len(wave), sample_rate):
                file.write(np.clip(wave[start : start + sample_rate], -1.0, 1.0))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_fades(in_ms: float, out_ms: float) -> None:
    """Raises InputError for lengths that are none."""
    if not (0 <= in_ms < math.inf and 0 <= out_ms < math.inf):
        raise InputError(f"Fades last 0 ms or more, not {in_ms} ms in and {out_ms} ms out.")


def fade(wave: np.ndarray, sample_rate: int, in_ms: float = 0.0, out_ms: float = 0.0) -> np.ndarray:
    """Linear fades at both ends, in milliseconds."""
    check_fades(in_ms, out_ms)
    wave = np.array(wave, dtype=np.float32)
    rise = min(len(wave), round(in_ms * sample_rate / 1000))
    fall = min(len(wave), round(out_ms * sample_rate / 1000))
    wave[:rise] *= np.linspace(0.0, 1.0, rise, endpoint=False, dtype=np.float32)
    wave[len(wave) - fall :] *= np.linspace(1.0, 0.0, fall, dtype=np.float32)
    return wave
