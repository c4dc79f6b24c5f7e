"""A stand-in for ``sounddevice``: it plays into a list."""

from __future__ import annotations

import threading
import types

import numpy as np

BLOCK = 10  # samples that the device asks for at once


class Device(types.ModuleType):
    """What ``sounddevice`` offers of which we use: a thread that pulls blocks, and keeps them."""

    class PortAudioError(Exception):
        pass

    class CallbackStop(Exception):  # noqa: N818
        pass

    def __init__(self, *, broken: bool = False, unplugged: bool = False):
        super().__init__("sounddevice")
        self.played: list[np.ndarray] = []
        self.calls: list[str] = []
        self.broken, self.unplugged, self.rate = broken, unplugged, 0

    def OutputStream(self, **options):  # noqa: N802
        if self.broken:
            raise self.PortAudioError("Error querying device -1")
        return Stream(self, **options)

    def play(self, wave, rate, blocking):
        if self.broken:
            raise self.PortAudioError("Error querying device -1")
        self.played.append(wave)

    @property
    def heard(self) -> np.ndarray:
        return np.concatenate([np.zeros(0), *self.played])


class Stream:
    def __init__(self, device: Device, samplerate, channels, dtype, callback, finished_callback):
        assert (channels, dtype) == (1, "float32")
        device.rate = samplerate
        self.device, self.callback, self.finished = device, callback, finished_callback
        self.active, self._stopped = False, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self.device.calls.append("start")
        if not self.device.unplugged:
            self.active = True
            self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(0.0001):
            out = np.full((BLOCK, 1), np.nan, np.float32)
            try:
                self.callback(out, BLOCK, None, None)
            except self.device.CallbackStop:
                self._stopped.set()
            self.device.played.append(out[:, 0])
        self.active = False
        self.finished()

    def abort(self) -> None:
        self.device.calls.append("abort")
        self._stopped.set()

    def close(self) -> None:
        self.device.calls.append("close")
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
