"""Where two pieces meet: fades, so that nothing clicks, while the samples still come."""

from __future__ import annotations

import numpy as np


class Joint:
    """The fades at both ends of a piece: `push` its samples as they come, then `finish`.

    Args:
        fade_in, fade_out: samples.
    """

    def __init__(self, fade_in: int, fade_out: int):
        self._rise = np.linspace(0.0, 1.0, fade_in, endpoint=False, dtype=np.float32)
        self._fall = np.linspace(1.0, 0.0, fade_out, dtype=np.float32)
        self._held = np.zeros(0, np.float32)

    def push(self, wave: np.ndarray) -> np.ndarray:
        """The samples ``[N]`` that are final."""
        count = min(len(wave), len(self._rise))
        if count:
            wave = np.concatenate([wave[:count] * self._rise[:count], wave[count:]])
            self._rise = self._rise[count:]
        if not len(self._fall):
            return wave
        wave = np.concatenate([self._held, wave])
        final = max(0, len(wave) - len(self._fall))
        self._held = wave[final:]
        return wave[:final]

    @property
    def holds(self) -> bool:
        """Whether samples wait for what comes after them."""
        return len(self._held) > 0

    def finish(self) -> np.ndarray:
        """The samples held back, faded out."""
        return self._held * self._fall[len(self._fall) - len(self._held) :]


def faded(wave: np.ndarray, fade_in: int, fade_out: int) -> np.ndarray:
    """A whole piece ``[N]`` with its fades, as `Joint` makes them of its parts."""
    joint = Joint(fade_in, fade_out)
    return np.concatenate([joint.push(wave), joint.finish()])
