"""Whose voice came out: each clone against the clips of all voices, with a confusion table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..types import InputError
from .outcomes import Clip, Outcome, measure_clip
from .similarity import nearest
from .texts import Recording, read_recordings

NOBODY = "(no voice)"
Z = 1.96  # 95 %


@dataclass(frozen=True)
class CloningReport:
    """Nearest-voice trials.

    Attributes:
        accuracy: share of runs nearest to their own voice; a run without a voice counts as wrong.
        low, high: 95 % Wilson interval.
        chance: what guessing gets.
        confusion: voice asked for -> voice heard -> runs.
        clips, clips_accuracy: the same for the clips themselves, each against the others; None
            when a voice has only one.
    """

    voices: int
    runs: int
    correct: int
    accuracy: float
    low: float
    high: float
    chance: float
    confusion: dict[str, dict[str, int]]
    clips: int
    clips_accuracy: float | None


class Voices:
    """The clips of some voices, measured; what a clone is compared with.

    Raises:
        InputError: fewer than two voices, or a clip without a voice in it.
    """

    def __init__(self, folder: Path):
        self.clips: dict[str, list[Recording]] = {}
        for clip in read_recordings(folder):
            self.clips.setdefault(clip.voice, []).append(clip)
        if len(self.clips) < 2:
            raise InputError(
                f"{folder} holds one voice, {next(iter(self.clips))}: nearest of several needs "
                "at least two (NAME.wav, or NAME_1.wav, NAME_2.wav, ...)."
            )
        self.measured = {clip.path: _measure(clip) for c in self.clips.values() for clip in c}

    def means(self, without: Path | None = None) -> dict[str, np.ndarray]:
        """Each voice's mean embedding; the clip ``without`` is left out if its voice has others."""
        found = {}
        for voice, clips in self.clips.items():
            others = [clip for clip in clips if clip.path != without] or clips
            found[voice] = np.mean([self.measured[c.path].embedding for c in others], axis=0)
        return found

    def own_accuracy(self) -> float | None:
        """How well the clips themselves are told apart, each left out of its voice's mean."""
        if min(map(len, self.clips.values())) < 2:
            return None
        right = [
            nearest(self.measured[clip.path].embedding, self.means(clip.path)) == voice
            for voice, clips in self.clips.items()
            for clip in clips
        ]
        return sum(right) / len(right)


def _measure(clip: Recording) -> Clip:
    found = measure_clip(clip.read(), 24_000)
    if found is None:
        raise InputError(f"No voice can be heard in the clip {clip.path}.")
    return found


def cloning_report(outcomes: Sequence[Outcome], voices: Voices) -> CloningReport:
    """Compare every run with the voices.

    Raises:
        InputError: a run of a voice that has no clip.
    """
    confusion = {voice: dict.fromkeys([*voices.clips, NOBODY], 0) for voice in voices.clips}
    for outcome in outcomes:
        if outcome.take.voice not in confusion:
            known = ", ".join(voices.clips)
            raise InputError(f"A recording is of {outcome.take.voice!r}; the references: {known}.")
        confusion[outcome.take.voice][heard_voice(outcome, voices)] += 1
    correct = sum(row[voice] for voice, row in confusion.items())
    low, high = wilson(correct, len(outcomes))
    return CloningReport(
        voices=len(voices.clips),
        runs=len(outcomes),
        correct=correct,
        accuracy=correct / len(outcomes),
        low=low,
        high=high,
        chance=1 / len(voices.clips),
        confusion=confusion,
        clips=len(voices.measured),
        clips_accuracy=voices.own_accuracy(),
    )


def heard_voice(outcome: Outcome, voices: Voices) -> str:
    """The nearest voice; the clip that was cloned counts only if its voice has no other."""
    if outcome.measured is None:
        return NOBODY
    clip = outcome.take.clip.path if outcome.take.clip else None
    return nearest(outcome.measured.embedding, voices.means(without=clip))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share; has a width even where none or all succeed."""
    share, weight = successes / trials, Z**2 / trials
    centre = (share + weight / 2) / (1 + weight)
    spread = Z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    low, high = centre - spread, centre + spread
    return max(0.0, min(share, low)), min(1.0, max(share, high))  # rounding
