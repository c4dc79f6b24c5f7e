"""Samples -> the bytes of an answer: block by block while it is made, or all at once.

A stream is one container from its first byte to its last. What a format keeps back is the
encoder's own frame or page, nothing more.
"""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..audio import FORMATS
from ..types import SAMPLE_RATE, InputError

if TYPE_CHECKING:
    from soundfile import SoundFile

MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
    "opus": "audio/ogg",
    "flac": "audio/flac",
}
STREAMABLE = ("mp3", "wav", "pcm", "opus")  # a FLAC of unknown length is refused by libsndfile
BYTES = 2  # of a sample in WAV and PCM: signed 16 bit, little endian, mono
UNKNOWN = 0xFFFFFFFF  # a WAV's sizes while it is made: players read to the end
MP3_LEVEL = 0.5  # libsndfile's scale; 80 kbit/s at 24 kHz


class Encoder(Protocol):
    """One answer under way. Leave it with ``finish``, or with ``close`` when it is given up."""

    media_type: str

    def push(self, pcm: np.ndarray) -> bytes:
        """Mono float32 ``[N]``, clipped to [-1, 1] -> the bytes there are for now; b"" too."""
        ...

    def finish(self) -> bytes:
        """The last bytes."""
        ...

    def close(self) -> None:
        """Let go of what it holds, finished or not; any number of times."""
        ...


def encoder(format: str, sample_rate: int = SAMPLE_RATE) -> Encoder:
    """An encoder for a stream in ``format``.

    Raises:
        InputError: a format that is unknown, or that only whole files can have.
    """
    check_format(format, streaming=True)
    if format in ("pcm", "wav"):
        return PlainEncoder(format, sample_rate)
    return FileEncoder(format, sample_rate)


def whole(format: str, pcm: np.ndarray, sample_rate: int = SAMPLE_RATE) -> bytes:
    """Mono float32 ``[N]`` as one file, with its true sizes.

    Raises:
        InputError: an unknown format.
    """
    check_format(format)
    if format in ("pcm", "wav"):
        data = samples(pcm)
        return data if format == "pcm" else wav_header(sample_rate, len(data)) + data
    target = io.BytesIO()
    with _open(target, format, sample_rate) as file:
        for block in _blocks(pcm, sample_rate):
            file.write(block)
    return target.getvalue()


def check_format(format: str, *, streaming: bool = False) -> None:
    """Raises InputError for what cannot be written."""
    if format not in MEDIA_TYPES:
        hint = " (use mp3 instead)" if format == "aac" else ""
        raise InputError(
            f"The format {format[:20]!r} is not written here{hint}: use {_listed(MEDIA_TYPES)}."
        )
    if streaming and format not in STREAMABLE:
        raise InputError(
            f"{format} cannot be streamed, its header tells its length: use "
            f"{_listed(STREAMABLE)}, or ask for the whole."
        )


def samples(pcm: np.ndarray) -> bytes:
    """Mono float32 ``[N]`` -> signed 16 bit, little endian: to the bit what libsndfile writes."""
    fixed = np.rint(np.asarray(pcm, np.float64) * 2**31).clip(-(2**31), 2**31 - 1)
    return (fixed.astype(np.int64) >> 16).astype("<i2").tobytes()


def wav_header(sample_rate: int, size: int | None = None) -> bytes:
    """The 44 bytes before ``size`` bytes of samples; None where nobody knows yet."""
    data = UNKNOWN if size is None else size
    riff = UNKNOWN if size is None else 36 + size
    fields = (
        (b"RIFF", riff, b"WAVE"),
        (b"fmt ", 16),
        ((1).to_bytes(2, "little"), (1).to_bytes(2, "little")),  # PCM, mono
        (sample_rate, sample_rate * BYTES),
        (BYTES.to_bytes(2, "little"), (8 * BYTES).to_bytes(2, "little")),
        (b"data", data),
    )
    flat = (field for line in fields for field in line)
    return b"".join(f if isinstance(f, bytes) else f.to_bytes(4, "little") for f in flat)


class PlainEncoder:
    """Samples as they are, after a WAV's header or after none."""

    def __init__(self, format: str, sample_rate: int):
        self.media_type = MEDIA_TYPES[format]
        self._header = wav_header(sample_rate) if format == "wav" else b""

    def push(self, pcm: np.ndarray) -> bytes:
        return self._take_header() + samples(pcm)

    def finish(self) -> bytes:
        return self._take_header()

    def close(self) -> None:
        pass

    def _take_header(self) -> bytes:
        header, self._header = self._header, b""
        return header


class FileEncoder:
    """libsndfile writing to a file that nobody can go back in.

    It may be closed from another thread than the one that pushes, as a cancelled request does.
    """

    def __init__(self, format: str, sample_rate: int):
        self.media_type = MEDIA_TYPES[format]
        self._lock, self._left = threading.Lock(), False
        self._rate, self._sink = sample_rate, ForwardOnly()
        self._file: SoundFile | None = _open(self._sink, format, sample_rate, streaming=True)

    def push(self, pcm: np.ndarray) -> bytes:
        for block in _blocks(pcm, self._rate):
            with self._lock:
                if self._file is None or self._left:
                    raise ValueError("The encoder is closed.")
                self._file.write(block)
        return self._sink.take()

    def finish(self) -> bytes:
        self.close()
        return self._sink.take()

    def close(self) -> None:
        self._left = True  # whoever holds the lock would take it again before it is free
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                file.close()


class ForwardOnly:
    """A file for libsndfile whose bytes leave as they come; corrections of earlier ones are lost.

    MP3 loses the frame count of its first frame that way, which a stream cannot know.
    """

    def __init__(self):
        self._ready = bytearray()
        self._place = self._end = 0

    def take(self) -> bytes:
        """What has been written since the last time."""
        ready = bytes(self._ready)
        self._ready.clear()
        return ready

    def write(self, data) -> int:
        data = bytes(data)
        fresh = data[max(0, self._end - self._place) :]
        self._ready += fresh
        self._end += len(fresh)
        self._place += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._end}[whence]
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int = -1) -> bytes:
        return b""

    def flush(self) -> None:
        pass


def _open(target, format: str, sample_rate: int, *, streaming: bool = False) -> SoundFile:
    import soundfile

    container, codec = FORMATS[f".{format}"]
    # A stream's MP3 cannot tell its length; of a constant rate it is guessed right from the size.
    steady = {"bitrate_mode": "CONSTANT", "compression_level": MP3_LEVEL}
    options = steady if streaming and format == "mp3" else {}
    return soundfile.SoundFile(
        target, "w", sample_rate, channels=1, format=container, subtype=codec, **options
    )


def _blocks(pcm: np.ndarray, size: int):
    """A second at a time: libsndfile 1.2.2 overruns its stack on minutes of OGG in one call."""
    for start in range(0, len(pcm), size):
        yield np.clip(pcm[start : start + size], -1.0, 1.0)


def _listed(names) -> str:
    return ", ".join(names)
