"""A recording -> a clip that a model clones well: trimmed, ending in silence, mono, 24 kHz.

A talker also copies how its reference ends: after a clip that stops in hiss or inside a word it
hisses or goes on. Silence is told by the loudest 10 ms, 40 dB below it, because a threshold in dBFS
cuts the last words of quiet recordings. What is right already is left alone, to the last bit.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from ..audio import fade, to_rate
from ..types import SAMPLE_RATE, InputError

FRAME = SAMPLE_RATE // 100  # samples: 10 ms
QUIET = -40.0  # dB against the loudest frame: what is trimmed
LEAD = 0.1  # seconds kept before the first sound: soft onsets lie below the threshold
TAIL = 0.1  # seconds kept after the last
ENDING = 0.3  # seconds of silence put after that
LEAST_ENDING, MOST_ENDING = 0.2, 0.7  # seconds of silence that an end may have and be left alone
SILENT = 10 ** (-60 / 20)  # no sample of such an end is above
FADE_IN, FADE_OUT = 5.0, 50.0  # ms
SHORTEST = 1.0  # seconds of a clip: the codec's two encoders disagree about less
LEAST_SOUND = 0.1  # seconds from first to last sound


@dataclass(frozen=True)
class Clip:
    """What a voice stores: samples float32 ``[N]`` at 24 kHz of 16 bits, and what was done."""

    wave: np.ndarray
    done: list[str]

    @property
    def seconds(self) -> float:
        return len(self.wave) / SAMPLE_RATE

    def wav(self) -> bytes:
        """A mono WAV file of 16 bits."""
        import soundfile

        buffer = io.BytesIO()
        soundfile.write(buffer, self.wave, SAMPLE_RATE, format="WAV", subtype="PCM_16")
        return buffer.getvalue()


def prepare(wave: np.ndarray, rate: int) -> Clip:
    """Mono samples ``[N]`` at ``rate`` Hz as a reference clip.

    Raises:
        InputError: less than 0.1 s of sound.
    """
    done = []
    if rate != SAMPLE_RATE:
        done.append(f"converted from {rate} to {SAMPLE_RATE} Hz")
        wave = to_rate(wave, rate, SAMPLE_RATE)
    peak = float(np.max(np.abs(wave), initial=0.0))
    if peak > 1.0:
        done.append(f"made {20 * np.log10(peak):.1f} dB quieter: it went above full scale")
        wave = wave / peak
    first, last = sound(wave)
    if last - first < LEAST_SOUND * SAMPLE_RATE:
        raise InputError(
            f"The clip holds {(last - first) / SAMPLE_RATE:.2f} s of sound: at least "
            f"{LEAST_SOUND} s are needed, 5 to 12 s are best."
        )
    wave = _begin(_end(wave, last, done), first, done)
    missing = round(SHORTEST * SAMPLE_RATE) - len(wave)
    if missing > 0:
        done.append(f"padded with {missing / SAMPLE_RATE:.2f} s of silence to {SHORTEST:g} s")
        wave = np.pad(wave, (0, missing))
    return Clip(as_stored(wave), done)


def as_stored(wave: np.ndarray) -> np.ndarray:
    """Rounded to the 16 bits of a file, so that what is prepared is what will be read."""
    steps = np.clip(np.round(np.asarray(wave, np.float64) * 32768), -32768, 32767)
    return (steps / 32768).astype(np.float32)


def sound(wave: np.ndarray) -> tuple[int, int]:
    """Samples from the first to behind the last frame that is not quiet."""
    levels = frame_levels(wave)
    heard = np.flatnonzero(levels > np.max(levels, initial=0.0) * 10 ** (QUIET / 20))
    if not len(heard):
        return 0, 0
    return int(heard[0]) * FRAME, min(len(wave), (int(heard[-1]) + 1) * FRAME)


def frame_levels(wave: np.ndarray) -> np.ndarray:
    """Root mean square of each 10 ms; the last may be shorter."""
    squares = np.square(np.asarray(wave, np.float64))
    starts = np.arange(0, len(wave), FRAME)
    if not len(starts):
        return np.zeros(0)
    lengths = np.minimum(FRAME, len(wave) - starts)
    return np.sqrt(np.add.reduceat(squares, starts) / lengths)


def ends_well(wave: np.ndarray, last: int) -> bool:
    """Whether it ends in silence that is neither too short nor too long."""
    least = round(LEAST_ENDING * SAMPLE_RATE)
    after = len(wave) - last
    short = len(wave) <= round(SHORTEST * SAMPLE_RATE)  # padded, perhaps by us
    fits = least <= after and (short or after <= MOST_ENDING * SAMPLE_RATE)
    return fits and bool(np.max(np.abs(wave[-least:])) <= SILENT)


def _end(wave: np.ndarray, last: int, done: list[str]) -> np.ndarray:
    if ends_well(wave, last):
        return wave
    end = min(len(wave), last + round(TAIL * SAMPLE_RATE))
    cut = (len(wave) - end) / SAMPLE_RATE
    if cut >= 0.01:
        done.append(f"{cut:.2f} s trimmed from the end")
    wave = fade(wave[:end], SAMPLE_RATE, out_ms=FADE_OUT)
    done.append(f"faded out over {FADE_OUT:.0f} ms, {ENDING} s of silence put after it")
    return np.pad(wave, (0, round(ENDING * SAMPLE_RATE)))


def _begin(wave: np.ndarray, first: int, done: list[str]) -> np.ndarray:
    start = first - round(LEAD * SAMPLE_RATE)
    if start <= 0:
        return wave
    done.append(f"{start / SAMPLE_RATE:.2f} s trimmed from the start")
    return fade(wave[start:], SAMPLE_RATE, in_ms=FADE_IN)
