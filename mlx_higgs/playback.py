"""Samples to the loudspeaker, whole or while they are made."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from .types import SAMPLE_RATE, InputError

if TYPE_CHECKING:
    from types import ModuleType

RESERVE = 0.5  # seconds collected after the first time there was nothing to play
POLL = 0.1  # seconds between looks at whether the device still plays


def player() -> ModuleType:
    """The playback library.

    Raises:
        InputError: it, or PortAudio, is not installed.
    """
    try:
        import sounddevice
    except ImportError as error:
        raise InputError("Cannot play: pip install 'mlx_higgs[play]' first.") from error
    except OSError as error:  # the wheel for Linux holds no PortAudio
        raise InputError("Cannot play without PortAudio: apt install libportaudio2.") from error
    return sounddevice


def play(wave: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Play on the default device and wait.

    Raises:
        InputError: no playback library or no device.
    """
    sounddevice = player()
    try:
        sounddevice.play(wave, sample_rate, blocking=True)
    except sounddevice.PortAudioError as error:
        raise InputError(f"Cannot play: {error}.") from error


class PlayBuffer:
    """Samples between the thread that makes them and the one that plays them.

    Speech made slower than it is spoken runs dry. Then nothing is played until a reserve is there,
    twice as long each time: a few pauses rather than a stutter.

    Attributes:
        pauses: how often it ran dry so far.
    """

    def __init__(self, sample_rate: int):
        self._lock = threading.Lock()
        self._waves: deque[np.ndarray] = deque()
        self._samples = self._needed = 0  # there are; there must be before playing goes on
        self._reserve = round(RESERVE * sample_rate)
        self._begun = self._finished = False
        self.pauses = 0

    def push(self, wave: np.ndarray) -> None:
        """Mono float32 ``[N]``, played after what was pushed before."""
        with self._lock:
            self._waves.append(np.clip(wave, -1.0, 1.0))
            self._samples += len(wave)

    def finish(self) -> None:
        """Nothing more will come: what is there is played to its end."""
        with self._lock:
            self._finished = True

    @property
    def over(self) -> bool:
        """Whether all has been pulled."""
        with self._lock:
            return self._finished and not self._samples

    def pull(self, count: int) -> np.ndarray:
        """The next ``[count]`` samples, zeros where there is nothing to play."""
        out = np.zeros(count, np.float32)
        with self._lock:
            if self._samples >= self._needed or self._finished:
                filled = self._take(out)
                self._begun |= filled > 0
                self._needed = 0
                if filled < count and self._begun and not self._finished:
                    self._needed = self._reserve << self.pauses
                    self.pauses += 1
        return out

    def _take(self, out: np.ndarray) -> int:
        filled = 0
        while self._waves and filled < len(out):
            wave = self._waves.popleft()
            part = wave[: len(out) - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
            if len(part) < len(wave):
                self._waves.appendleft(wave[len(part) :])
        self._samples -= filled
        return filled


class Player:
    """Plays what is pushed, from the first push on; leaving the ``with`` waits for the end.

    Leaving it by an exception stops at once.

    Raises:
        InputError: no playback library or no device.
    """

    def __init__(self, sample_rate: int = SAMPLE_RATE):
        self._sounddevice = player()
        self._done, self._playing = threading.Event(), False
        self.buffer = PlayBuffer(sample_rate)
        try:
            self._stream = self._sounddevice.OutputStream(
                samplerate=sample_rate,
                channels=1,
                dtype="float32",
                callback=self._fill,
                finished_callback=self._done.set,
            )
        except self._sounddevice.PortAudioError as error:
            raise InputError(f"Cannot play: {error}.") from error

    def push(self, wave: np.ndarray) -> None:
        """Mono float32 ``[N]``."""
        self.buffer.push(wave)
        if not self._playing:
            self._playing = True
            self._stream.start()

    def _fill(self, out: np.ndarray, count: int, time: object, status: object) -> None:
        """Called by the device, in a thread of its own."""
        out[:, 0] = self.buffer.pull(count)
        if self.buffer.over:
            raise self._sounddevice.CallbackStop  # after what is under way was heard

    def __enter__(self) -> Player:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.buffer.finish()
        try:
            while kind is None and self._playing and not self._done.wait(POLL):
                if not self._stream.active:  # unplugged, for instance
                    break
            if kind is not None:
                self._stream.abort()
        finally:
            self._stream.close()
