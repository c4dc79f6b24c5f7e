"""Fundamental frequency: Boersma's autocorrelation track (1993), and its median."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..resample import resample

RATE = 16_000  # Hz; all that is analysed here
WINDOW = round(0.05 * RATE)  # three periods of the lowest pitch
STEP = round(0.01 * RATE)
LOWEST, HIGHEST = 60, 400  # Hz: men's to women's voices; a child's may be higher
VOICED = 0.5  # least autocorrelation at the period
OCTAVE_COST = 0.02  # per octave of a longer period: a multiple of the period fits as well
FLOOR = 1e-3  # -30 dB of the loudest frame: quieter ones are pauses


@dataclass(frozen=True)
class Pitch:
    """A track ``[F]`` over frames of 50 ms every 10 ms: Hz, and where there is a voice."""

    hertz: np.ndarray
    voiced: np.ndarray


def frames(wave: np.ndarray) -> np.ndarray:
    """``[N]`` at 16 kHz -> overlapping frames ``[F, WINDOW]``; a short wave is padded to one."""
    wave = np.pad(wave, (0, max(0, WINDOW - len(wave))))
    return sliding_window_view(wave, WINDOW)[::STEP].astype(np.float64)


def track(wave: np.ndarray) -> Pitch:
    """The pitch of a wave ``[N]`` at 16 kHz."""
    framed = frames(wave)
    framed -= framed.mean(axis=1, keepdims=True)
    energy = np.square(framed).sum(axis=1)
    similarity = _autocorrelation(framed)
    lags = np.arange(RATE // HIGHEST, RATE // LOWEST + 1)
    cost = OCTAVE_COST * np.log2(lags / lags[0])
    best = lags[(similarity[:, lags] - cost).argmax(axis=1)]
    voiced = similarity[np.arange(len(best)), best] > VOICED
    loud = energy > energy.max() * FLOOR
    return Pitch(RATE / _refined(similarity, best), voiced & loud)


def _autocorrelation(framed: np.ndarray) -> np.ndarray:
    """``[F, WINDOW]``, 1 at lag 0, divided by the window's own so that long lags count fully."""
    window, size = np.hanning(WINDOW), 2 ** int(np.ceil(np.log2(2 * WINDOW)))

    def correlate(signal: np.ndarray) -> np.ndarray:
        power = np.square(np.abs(np.fft.rfft(signal, size)))
        lags = np.fft.irfft(power, size)[..., :WINDOW]
        return lags / np.maximum(lags[..., :1], 1e-12)

    return correlate(framed * window) / np.maximum(correlate(window), 1e-6)


def _refined(similarity: np.ndarray, best: np.ndarray) -> np.ndarray:
    """The period between samples: the top of a parabola through three lags."""
    row = np.arange(len(best))
    left, middle, right = (similarity[row, best + shift] for shift in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = np.where(bend < -1e-9, (left - right) / np.where(bend == 0, 1, bend) / 2, 0)
    return best + np.clip(shift, -0.5, 0.5)


def median_f0(pcm: np.ndarray, rate: int) -> float | None:
    """Median pitch in Hz over the voiced frames of ``[N]``; None where nothing is voiced."""
    pitch = track(resample(pcm, rate, RATE))
    return float(np.median(pitch.hertz[pitch.voiced])) if pitch.voiced.any() else None


def semitones(hertz: float, reference: float) -> float:
    """How far ``hertz`` is above ``reference``."""
    return float(12 * np.log2(hertz / reference))
