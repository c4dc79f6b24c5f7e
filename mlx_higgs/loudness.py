"""How loud speech is: the gated loudness of ITU-R BS.1770-4, its true peak, and gains to match it.

Mono. The K-weighting is the recommendation's at 48 kHz and the same analogue filter at every other
rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np

from .audio import MAX_RATE, MIN_RATE
from .resample import resample, sinc_kernel
from .types import InputError

SILENT = -math.inf  # LUFS of what has no block above the gate
GATE = -70.0  # LUFS: quieter blocks never count
RELATIVE_GATE = -10.0  # LU below the mean of what passed the first gate
OFFSET = -0.691  # dB: makes a 997 Hz sine at full scale -3.01 LUFS
HOP_SECONDS = 0.1  # a block begins every 100 ms
HOPS = 4  # and lasts 400 ms
OVERSAMPLING = 4  # of the true peak

Section = tuple[float, float, float, float, float]  # b0 b1 b2 a1 a2; a0 is 1


def integrated(wave: np.ndarray, rate: int) -> float:
    """Integrated loudness of mono samples ``[N]`` at ``rate`` Hz, in LUFS.

    A clip shorter than one block (400 ms) is measured as one block of its own length, so a single
    word is neither unmeasurable nor thinned by added silence. ``-inf`` for silence.

    Raises:
        InputError: not mono, samples that are not numbers, or a rate out of 4 to 192 kHz.
    """
    return loudness_of([wave], rate)


def loudness_of(waves: Iterable[np.ndarray], rate: int) -> float:
    """Integrated loudness of clips heard one after the other, as the turns of one speaker.

    Each is ``[N]``; silence between them does not count. Raises InputError as :func:`integrated`.
    """
    powers = [_block_powers(_checked(wave, rate), rate) for wave in waves]
    blocks = np.concatenate(powers) if powers else np.empty(0)
    loud = blocks[blocks > _power(GATE)]
    if not len(loud):
        return SILENT
    gate = np.mean(loud) * 10 ** (RELATIVE_GATE / 10)
    return _lufs(float(np.mean(loud[loud > gate])))


def true_peak(wave: np.ndarray, rate: int) -> float:
    """The largest magnitude between the samples ``[N]`` as well, from 4 times the rate.

    The estimate of BS.1770-4, annex 2, with the resampler's filter: within 0.11 dB for steady
    tones. 0 for an empty wave. Raises InputError as :func:`integrated`.
    """
    levels = np.abs(_checked(wave, rate))
    if not len(levels):
        return 0.0
    kernel = sinc_kernel(1, OVERSAMPLING)
    block, context = max(rate // 10, kernel.shape[1]), kernel.shape[1]
    near = _local_peaks(levels, block)
    peak, reach = float(np.max(levels)), float(np.abs(kernel).sum(axis=1).max())
    for index in np.argsort(-near):  # loudest first, until none can hold more than was found
        if near[index] * reach <= peak:
            break
        part = wave[max(0, index * block - context) : (index + 1) * block + context]
        peak = max(peak, float(np.max(np.abs(resample(part, 1, OVERSAMPLING)))))
    return peak


def _local_peaks(levels: np.ndarray, block: int) -> np.ndarray:
    """The largest level in each block and its neighbours."""
    peaks = np.maximum.reduceat(levels, np.arange(0, len(levels), block))
    padded = np.pad(peaks, 1)
    return np.maximum(np.maximum(padded[:-2], padded[2:]), peaks)


def gain(loudness: float, peak: float, target: float, peak_db: float = -1.0) -> float:
    """The factor that brings ``loudness`` (LUFS) to ``target``, ``peak`` kept under the ceiling.

    A wave too peaky for the target stays quieter; it is not clipped or compressed. 1 for silence.

    Args:
        peak_db: the ceiling in dB below full scale (dBTP).

    Raises:
        InputError: a target that is no loudness, or a ceiling above full scale.
    """
    if not GATE < target <= 0:
        raise InputError(
            f"A loudness of {target} LUFS cannot be reached: {GATE:.0f} to 0, say -20."
        )
    if not -60 <= peak_db <= 0:
        raise InputError(f"The peak {peak_db} dB is out of range: -60 to 0 dB of full scale.")
    if loudness == SILENT or peak <= 0:
        return 1.0
    return min(10 ** ((target - loudness) / 20), 10 ** (peak_db / 20) / peak)


def matched(wave: np.ndarray, rate: int, target_lufs: float, peak_db: float = -1.0) -> np.ndarray:
    """A copy of mono ``[N]`` at ``target_lufs``, as float32; see :func:`gain` for the ceiling.

    Silence stays what it is. Raises InputError as :func:`integrated` and :func:`gain`.
    """
    factor = gain(integrated(wave, rate), true_peak(wave, rate), target_lufs, peak_db)
    return (np.asarray(wave, dtype=np.float32) * np.float32(factor)).astype(np.float32)


# -- blocks ---------------------------------------------------------------------------------------


def _checked(wave: np.ndarray, rate: int) -> np.ndarray:
    wave = np.asarray(wave)
    if not MIN_RATE <= rate <= MAX_RATE or rate % 1:
        raise InputError(
            f"A sample rate of {rate} Hz has no loudness: {MIN_RATE} to {MAX_RATE} Hz do."
        )
    if wave.ndim != 1:
        raise InputError(f"Loudness needs a mono wave [N], not shape {list(wave.shape)}.")
    if not np.all(np.isfinite(wave)):
        raise InputError("The loudness of samples that are not numbers cannot be measured.")
    return wave


def _block_powers(wave: np.ndarray, rate: int) -> np.ndarray:
    """Mean square of each 400 ms block of the weighted wave; blocks overlap by three quarters."""
    hops = int(len(wave) / (HOP_SECONDS * rate) + 1e-9)
    if hops < HOPS:
        edges = np.array([0, len(wave)])
        return _energies(wave, edges, rate) / len(wave) if len(wave) else np.empty(0)
    edges = np.round(np.arange(hops + 1) * (HOP_SECONDS * rate)).astype(np.int64)
    energies = np.convolve(_energies(wave, edges, rate), np.ones(HOPS), "valid")
    return energies / (edges[HOPS:] - edges[:-HOPS])


def _energies(wave: np.ndarray, edges: np.ndarray, rate: int) -> np.ndarray:
    """Energy of the weighted wave from each edge to the next, without keeping the weighted wave."""
    taps = k_weighting(rate)
    size = 1 << max(int(np.diff(edges).max()) + len(taps), 8 * len(taps)).bit_length()
    spectrum = np.fft.rfft(taps, size)
    out, first = [], 0
    while first < len(edges) - 1:
        room = edges[first] + size - len(taps)
        last = int(np.searchsorted(edges, room, side="right")) - 1
        part = wave[max(0, edges[first] - len(taps) + 1) : edges[last]]
        weighted = np.fft.irfft(np.fft.rfft(part, size) * spectrum, size)
        begin = len(part) - (edges[last] - edges[first])
        squares = np.square(weighted[begin : len(part)])
        out.append(np.add.reduceat(squares, edges[first:last] - edges[first]))
        first = last
    return np.concatenate(out)


def _lufs(power: float) -> float:
    return OFFSET + 10 * math.log10(power)


def _power(lufs: float) -> float:
    return 10 ** ((lufs - OFFSET) / 10)


# -- the filter -----------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def k_weighting(rate: int) -> np.ndarray:
    """The impulse response at ``rate`` Hz, ``[taps]``: 0.12 s, until -200 dB."""
    shelf, high_pass = sections(rate)
    impulse = (float(n == 0) for n in range(round(0.12 * rate)))
    return np.fromiter(_filtered(_filtered(impulse, shelf), high_pass), dtype=np.float64)


def sections(rate: int) -> tuple[Section, Section]:
    """The head's high shelf and the low cut.

    The analogue prototypes that the bilinear transform takes to the recommendation's coefficients
    at 48 kHz. The low cut there passes 1.005 of what lies above it; every rate gets that factor.
    """
    k = math.tan(math.pi * 1681.974450955533 / rate)
    high, damping = 10 ** (3.999843853973347 / 20), k / 0.7071752369554196
    middle = high**0.4996667741545416
    a0 = 1 + damping + k * k
    shelf = (
        (high + middle * damping + k * k) / a0,
        2 * (k * k - high) / a0,
        (high - middle * damping + k * k) / a0,
        2 * (k * k - 1) / a0,
        (1 - damping + k * k) / a0,
    )
    a1, a2 = _low_cut(rate)
    passed = _passed(48_000) / _passed(rate)
    return shelf, (passed, -2 * passed, passed, a1, a2)


def _low_cut(rate: int) -> tuple[float, float]:
    k = math.tan(math.pi * 38.13547087602444 / rate)
    damping = k / 0.5003270373238773
    a0 = 1 + damping + k * k
    return 2 * (k * k - 1) / a0, (1 - damping + k * k) / a0


def _passed(rate: int) -> float:
    """What the low cut with the numerator 1, -2, 1 makes of the highest frequency."""
    a1, a2 = _low_cut(rate)
    return 4 / (1 - a1 + a2)


def _filtered(wave: Iterable[float], section: Section) -> Iterator[float]:
    b0, b1, b2, a1, a2 = section
    first = second = 0.0  # transposed direct form II
    for x in wave:
        y = b0 * x + first
        first, second = b1 * x - a1 * y + second, b2 * x - a2 * y
        yield y
