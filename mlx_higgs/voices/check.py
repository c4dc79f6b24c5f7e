"""What a clip is worth as a reference: measured, judged, and what to do about it."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..audio import to_rate
from ..types import SAMPLE_RATE
from .clip import read_clip
from .prepare import frame_levels, sound

FLOOR = -120.0  # dBFS: what digital silence is written as
STEP = 0.6 / 32768  # samples this near to the peak have its value in 16 bits
FLAT = 3  # samples in a row at the peak: no microphone makes them
LAST = 0.05  # seconds: the clip's end
NOISE_SHARE = 0.05  # of the frames: pauses are at least that much of speech
SHORTEST, SHORT, LONG = 1.0, 3.0, 30.0  # seconds
BAD_SNR, POOR_SNR = 15.0, 25.0  # dB
BAD_ENDING, POOR_ENDING = -40.0, -60.0  # dBFS
SLOWEST, SLOW, FAST, FASTEST = 4.0, 8.0, 25.0, 32.0  # letters a second; people speak 8 to 25
BAD_CLIPPING = 1e-3  # share of the samples
QUIET = -30.0  # dBFS of the peak
MEND = "python -m mlx_higgs.voices add does that"

Level = Literal["good", "poor", "bad"]


@dataclass(frozen=True)
class Measures:
    """Levels in dBFS, no lower than -120; lengths in seconds.

    Attributes:
        sound: from the first to the last sound.
        clipped: share of the samples that are cut off at the peak.
        noise: level of the quietest twentieth, digital silence aside: an estimate, and one of the
            quietest speech where there is no pause.
        snr: dB between the speech and that.
        ending: level of the last 50 ms.
        letters_per_second: of the transcript, over ``sound``; a character that is written wide or
            a digit counts as several.
    """

    seconds: float
    sound: float
    peak: float
    clipped: float
    noise: float
    snr: float
    ending: float
    letters_per_second: float


@dataclass(frozen=True)
class Verdict:
    """One judgement: what was found and, where it is not good, the way out."""

    level: Level
    about: str
    message: str


def check_clip(source: Path | bytes, transcript: str) -> tuple[Measures, list[Verdict]]:
    """Measure a clip as it is and judge it.

    Raises:
        InputError: it cannot be read at all.
    """
    measures = measure(*read_clip(source), transcript)
    return measures, list(judge(measures))


def measure(wave: np.ndarray, rate: int, transcript: str) -> Measures:
    """Of mono samples ``[N]`` at ``rate`` Hz, not silent."""
    clipped = clipped_share(wave)
    wave = to_rate(wave, rate, SAMPLE_RATE)
    first, last = sound(wave)
    spoken = (last - first) / SAMPLE_RATE
    levels = frame_levels(wave[first:last])
    speech = decibels(math.sqrt(np.mean(np.square(levels)))) if len(levels) else FLOOR
    noise = noise_level(wave)
    return Measures(
        seconds=len(wave) / SAMPLE_RATE,
        sound=spoken,
        peak=decibels(float(np.max(np.abs(wave), initial=0.0))),
        clipped=clipped,
        noise=noise,
        snr=speech - noise,
        ending=decibels(float(frame_levels(wave[-round(LAST * SAMPLE_RATE) :]).max(initial=0.0))),
        letters_per_second=letters(transcript) / spoken if spoken else 0.0,
    )


def clipped_share(wave: np.ndarray) -> float:
    """Share of the samples in runs of three or more at the peak, above or below."""
    total = 0
    for side in (wave, -wave):
        at_peak = side >= max(float(np.max(side)) - STEP, STEP)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], at_peak.astype(np.int8), [0]])))
        runs = edges[1::2] - edges[::2]
        total += int(runs[runs >= FLAT].sum())
    return total / len(wave)


def noise_level(wave: np.ndarray) -> float:
    """dBFS of the quietest twentieth of 20 ms pieces that are not digitally silent."""
    levels = frame_levels(wave)
    pairs = np.sqrt((levels[:-1:2] ** 2 + levels[1::2] ** 2) / 2)
    heard = np.sort(pairs[pairs > 10 ** (-90 / 20)])
    return decibels(float(heard[int(NOISE_SHARE * len(heard))])) if len(heard) else FLOOR


def letters(transcript: str) -> float:
    """Characters, counted as letters of an alphabet: how long a text is to speak."""
    return float(sum(map(_letters, " ".join(transcript.split()))))


def _letters(char: str) -> float:
    if unicodedata.category(char).startswith("N"):
        return 4.0  # "seven"
    if unicodedata.east_asian_width(char) == "W" and char.isalnum():
        return 3.0  # a syllable
    return 0.0 if unicodedata.combining(char) else 1.0


def decibels(value: float) -> float:
    return max(FLOOR, 20 * math.log10(value)) if value > 0 else FLOOR


def judge(m: Measures) -> Iterator[Verdict]:
    """One verdict each about length, level, clipping, noise, ending and transcript."""
    yield _length(m)
    yield _level(m)
    yield _clipping(m)
    yield _noise(m)
    yield _ending(m)
    yield _words(m)


def _length(m: Measures) -> Verdict:
    said = f"{m.seconds:.1f} s, {m.sound:.1f} s of them with sound"
    if m.sound < SHORTEST:
        return Verdict("bad", "length", f"{said}: too little of a voice; record 5 to 12 s")
    if m.sound < SHORT or m.seconds > LONG:
        return Verdict("poor", "length", f"{said}: 5 to 12 s are best")
    return Verdict("good", "length", said)


def _level(m: Measures) -> Verdict:
    said = f"the peak is {m.peak:.1f} dBFS"
    if m.peak < QUIET:
        return Verdict("poor", "level", f"{said}: quiet; record closer to the microphone")
    return Verdict("good", "level", said)


def _clipping(m: Measures) -> Verdict:
    if not m.clipped:
        return Verdict("good", "clipping", "none")
    level: Level = "bad" if m.clipped > BAD_CLIPPING else "poor"
    said = f"{m.clipped:.2%} of the samples are cut off at the peak"
    return Verdict(level, "clipping", f"{said}: record again with less gain")


def _noise(m: Measures) -> Verdict:
    said = f"about {m.noise:.0f} dBFS, {m.snr:.0f} dB below the speech"
    if m.snr >= POOR_SNR:
        return Verdict("good", "noise", said)
    level: Level = "bad" if m.snr < BAD_SNR else "poor"
    return Verdict(level, "noise", f"{said}: the clone will have it too; record in a quiet room")


def _ending(m: Measures) -> Verdict:
    said = f"the last {LAST * 1000:.0f} ms are at {m.ending:.0f} dBFS"
    if m.ending <= POOR_ENDING:
        return Verdict("good", "ending", said)
    level: Level = "bad" if m.ending > BAD_ENDING else "poor"
    why = "clones hiss or run on after such an end; fade it and put 0.3 s of silence after it"
    return Verdict(level, "ending", f"{said}: {why} ({MEND})")


def _words(m: Measures) -> Verdict:
    rate = m.letters_per_second
    said = f"{rate:.1f} letters a second"
    if SLOW <= rate <= FAST:
        return Verdict("good", "words", said)
    level: Level = "poor" if SLOWEST <= rate <= FASTEST else "bad"
    if rate < SLOW:
        why = "too few for this clip: words are missing, or cut its pauses"
    else:
        why = "more than anybody says in it: the clip lacks some of these words"
    return Verdict(level, "words", f"{said}, {why}; give its exact words")
