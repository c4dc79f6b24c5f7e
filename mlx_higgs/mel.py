"""Log-mel spectrograms as Whisper hears them: 16 kHz, 100 frames a second, 30 s at a time.

Number for number those of transformers' ``WhisperFeatureExtractor``.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .types import HEARING_RATE, STRETCH, InputError

WINDOW = 400  # samples in one transform: 25 ms
HOP = 160  # samples from one mel frame to the next: 10 ms
MEL_FRAMES = STRETCH // HOP  # 3000 in 30 s
FLOOR = 1e-10  # of power: digital silence
RANGE = 8.0  # decades below the loudest place that are kept

# The Slaney scale: even steps of 200/3 Hz up to 1 kHz, logarithmic ones above
LINEAR_STEP, BEND, LOG_STEP = 200.0 / 3, 1000.0, np.log(6.4) / 27


def mel_frames(samples: int) -> int:
    """Mel frames that begin within so many samples."""
    return -(-samples // HOP)


def log_mel(wave: np.ndarray, bins: int, frames: int = MEL_FRAMES) -> np.ndarray:
    """At most 30 s of mono ``[N]`` at 16 kHz -> float32 ``[frames, bins]``, its loudest at most 2.

    The wave counts as followed by silence up to 30 s.

    Args:
        frames: of the 3000, those wanted: the first.

    Raises:
        InputError: no wave, or more than 30 s.
    """
    wave = np.asarray(wave, dtype=np.float32)
    if wave.ndim != 1 or not 0 < len(wave) <= STRETCH:
        raise InputError(
            f"Mel frames are made of 1 to {STRETCH} samples [N], not of shape {list(wave.shape)}."
        )
    # what lies beyond the wave and half a window is silence, whose frames are all alike
    heard = min(MEL_FRAMES, mel_frames(len(wave) + WINDOW // 2))
    power = _power(wave, heard) @ mel_filters(bins)
    decades = np.log10(np.maximum(power, FLOOR))
    silence = np.full((max(0, frames - heard), bins), np.log10(FLOOR))
    least = decades.max() - RANGE  # of all there is, wanted or not
    whole = np.concatenate([decades[:frames], silence])
    return ((np.maximum(whole, least) + 4.0) / 4.0).astype(np.float32)


def _power(wave: np.ndarray, frames: int) -> np.ndarray:
    """``[frames, WINDOW // 2 + 1]``; frame t is centred on sample ``t * HOP``."""
    half = WINDOW // 2
    padded = np.pad(wave.astype(np.float64), (0, min(STRETCH - len(wave), WINDOW)))
    padded = np.pad(padded, half, mode="reflect")  # its end matters where 30 s are full alone
    padded = np.pad(padded, (0, max(0, (frames - 1) * HOP + WINDOW - len(padded))))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)  # a periodic Hann
    pieces = sliding_window_view(padded, WINDOW)[::HOP][:frames]
    return np.abs(np.fft.rfft(pieces * window)) ** 2


@lru_cache(maxsize=4)
def mel_filters(bins: int) -> np.ndarray:
    """Triangles of equal area ``[WINDOW // 2 + 1, bins]``, even on Slaney's scale up to 8 kHz."""
    corners = _hertz(np.linspace(0.0, _mel(HEARING_RATE / 2), bins + 2))
    places = np.linspace(0.0, HEARING_RATE / 2, WINDOW // 2 + 1)[:, None]
    low, centre, high = corners[:-2], corners[1:-1], corners[2:]
    rise, fall = (places - low) / (centre - low), (high - places) / (high - centre)
    return np.maximum(0.0, np.minimum(rise, fall)) * (2.0 / (high - low))


def _mel(hertz: float) -> float:
    return BEND / LINEAR_STEP + float(np.log(hertz / BEND)) / LOG_STEP


def _hertz(mels: np.ndarray) -> np.ndarray:
    above = np.maximum(0.0, mels - BEND / LINEAR_STEP)
    return np.where(above > 0, BEND * np.exp(above * LOG_STEP), mels * LINEAR_STEP)
