"""What is measured of one take: what was heard, how long, how high, in whose voice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .controls import envelope_noise
from .pitch import median_f0
from .recogniser import Recogniser
from .similarity import embed
from .texts import Recording
from .trials import Take
from .words import spoken_words


@dataclass(frozen=True)
class Clip:
    """A clip measured once: embedding ``[39]``, median pitch in Hz, seconds of it."""

    embedding: np.ndarray
    f0_hz: float
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """One take, measured.

    Attributes:
        take: without its samples, which would add up.
        heard: what the recogniser wrote; "" when the run failed.
        noise_heard: what it wrote for noise with the same envelope; None when not asked.
        measured: None when there is no voice in it.
        original: the recording that says the same.
    """

    take: Take
    heard: str
    seconds: float
    measured: Clip | None
    noise_heard: str | None = None
    original: Recording | None = None


class Originals:
    """Recordings of the same texts, found by their words; each is measured once."""

    def __init__(self, recordings: Sequence[Recording]):
        self._by_text: dict[tuple[str, ...], list[Recording]] = {}
        for recording in recordings:
            self._by_text.setdefault(tuple(spoken_words(recording.text)), []).append(recording)

    def of(self, text: str, voice: str) -> Recording | None:
        """The recording of a text, of that voice if there are several."""
        found = self._by_text.get(tuple(spoken_words(text)), [])
        return next((clip for clip in found if clip.voice == voice), found[0] if found else None)


def measure_clip(pcm: np.ndarray, rate: int) -> Clip | None:
    """None where nothing is voiced."""
    f0 = median_f0(pcm, rate)
    return Clip(embed(pcm, rate), f0, sounding_seconds(pcm, rate)) if f0 else None


def sounding_seconds(pcm: np.ndarray, rate: int) -> float:
    """From the first to the last 10 ms within 40 dB of the loudest: pauses at the ends differ."""
    step = max(1, rate // 100)
    count = len(pcm) // step
    if not count:
        return 0.0
    power = np.square(pcm[: count * step].reshape(count, step), dtype=np.float64).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 1e-4)
    return float(loud[-1] - loud[0] + 1) * step / rate if len(loud) else 0.0


def judge(
    take: Take, recogniser: Recogniser, originals: Originals, *, noise: bool = True
) -> Outcome:
    """Measure a take; ``noise`` also listens to noise with its envelope."""
    pcm, rate, original = take.pcm, take.rate, originals.of(take.text, take.voice)
    light = replace(take, pcm=np.zeros(0, np.float32))
    if take.failure is not None:
        return Outcome(light, "", 0.0, None, original=original)
    return Outcome(
        light,
        heard=recogniser.transcribe(pcm, rate),
        seconds=len(pcm) / rate,
        measured=measure_clip(pcm, rate),
        noise_heard=recogniser.transcribe(envelope_noise(pcm, rate), rate) if noise else None,
        original=original,
    )
