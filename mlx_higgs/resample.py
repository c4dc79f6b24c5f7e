"""Sample-rate conversion: a Hann-windowed sinc, sample for sample that of torchaudio."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .types import InputError

LOBES = 6  # torchaudio's lowpass_filter_width: zero crossings on either side
ROLLOFF = 0.99  # cutoff as a share of the lower Nyquist frequency


@lru_cache(maxsize=16)
def sinc_kernel(step: int, phases: int) -> np.ndarray:
    """The filters of ``step`` input samples to ``phases`` output samples, as float32.

    Returns ``[phases, taps]``; tap ``taps // 2 - 1`` of phase ``p`` belongs to input sample
    ``p * step // phases``. Source: ``torchaudio.functional.resample`` (sinc_interp_hann),
    computed in float64. ``step`` and ``phases`` have no common divisor.
    """
    cutoff = min(step, phases) * ROLLOFF
    width = math.ceil(LOBES * step / cutoff)
    phase = np.arange(phases)[:, None]
    sample = phase * step // phases + np.arange(-width, width + 2)
    time = np.clip((sample / step - phase / phases) * cutoff, -LOBES, LOBES)
    window = np.cos(time * np.pi / LOBES / 2) ** 2
    return (np.sinc(time) * window * cutoff / step).astype(np.float32)


def resample(wave: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Mono float ``[N]`` at ``from_rate`` Hz -> float32 ``[ceil(N * to_rate / from_rate)]``.

    Beyond its ends the wave counts as silence.

    Raises:
        InputError: a rate that is not a positive whole number, or a wave that is not ``[N]``.
    """
    for rate in (from_rate, to_rate):
        if not rate > 0 or rate % 1:
            raise InputError(f"A sample rate must be a positive whole number of Hz, not {rate}.")
    wave = np.asarray(wave, dtype=np.float32)
    if wave.ndim != 1:
        raise InputError(f"resample needs a mono wave [N], not shape {list(wave.shape)}.")
    divisor = math.gcd(int(from_rate), int(to_rate))
    step, phases = int(from_rate) // divisor, int(to_rate) // divisor
    if step == phases or not len(wave):
        return wave.copy()
    return _polyphase(wave, step, phases)


def _polyphase(wave: np.ndarray, step: int, phases: int) -> np.ndarray:
    """One strided product per phase: output ``q * phases + p`` starts at input ``q * step``."""
    kernel = sinc_kernel(step, phases)
    taps = kernel.shape[1]
    length = -(-len(wave) * phases // step)
    padded = np.pad(wave, (taps // 2 - 1, step + taps))
    windows = sliding_window_view(padded, taps)
    out = np.empty(length, dtype=np.float32)
    for phase in range(min(phases, length)):
        count = len(out[phase::phases])
        first = phase * step // phases
        out[phase::phases] = windows[first::step][:count] @ kernel[phase]
    return out
