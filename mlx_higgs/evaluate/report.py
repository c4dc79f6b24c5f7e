"""Many outcomes, one report: the figures of ``evaluate speech``, and how they are printed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .cloning import CloningReport
from .controls import deranged
from .outcomes import Clip, Outcome, measure_clip
from .pitch import semitones
from .recogniser import Recogniser
from .similarity import distance, similarity
from .texts import Recording
from .words import WordErrors, spoken_words, word_errors

EMBEDDING = "mean and spread of 19 mel cepstra over voiced frames, median pitch; nothing learnt"
NORMALISATION = "lower case, no punctuation or tags, numbers spelled out"
WORST = 5  # texts shown


@dataclass(frozen=True)
class Run:
    """One line of the report: a text, what was heard of it, and the measures that exist."""

    text: str
    heard: str
    errors: int
    words: int
    seconds: float
    voice: str = ""
    seed: int | None = None
    stop_reason: str | None = None
    failure: str | None = None
    f0_hz: float | None = None
    f0_drift_semitones: float | None = None
    similarity: float | None = None
    distance_db: float | None = None
    duration_ratio: float | None = None


@dataclass(frozen=True)
class SpeechReport:
    """What a checkpoint's speech, or recorded speech, is worth.

    Attributes:
        wer, wer_low, wer_high: micro-averaged word error rate and its 95 % bootstrap interval.
        shuffled_wer: the same recordings against other texts; must be high. None for one text.
        noise_wer: noise with the speech's envelope against the texts; must be high.
        original_wer: the original recordings, heard by the same recogniser.
        unknown_words: words of the texts that the recogniser can never answer.
        ended: share of runs that ended by themselves; a failed run did not.
        similarity, distance_db: mean over runs to the reference clip (1: the same clip).
        f0_hz: median; f0_drift_semitones: median distance from the reference's.
        f0_spread_semitones: standard deviation of that distance, without a reference of the
            distance from the median of the same voice.
        duration_ratio: median of sounding seconds by those of the original.
        real_time_factor: seconds of work for a second of sound.
    """

    recogniser: str
    normalisation: str
    embedding: str
    reference: str
    texts: int
    runs: int
    words: int
    wer: float
    wer_low: float
    wer_high: float
    shuffled_wer: float | None
    noise_wer: float | None
    original_wer: float | None
    unknown_words: list[str]
    failed: int
    ended: float | None
    similarity: float | None
    distance_db: float | None
    f0_hz: float | None
    f0_drift_semitones: float | None
    f0_spread_semitones: float | None
    duration_ratio: float | None
    seconds_per_character: float | None
    real_time_factor: float | None
    cloning: CloningReport | None
    trials: list[Run]


class References:
    """What a run is compared with: the clip it cloned, the one named, or its original."""

    def __init__(self, named: Recording | None = None):
        self.named = named
        self._measured: dict[Recording, Clip | None] = {}

    def of(self, outcome: Outcome) -> Clip | None:
        clip = outcome.take.clip or self.named or outcome.original
        return self.measure(clip) if clip else None

    def measure(self, clip: Recording) -> Clip | None:
        if clip not in self._measured:
            self._measured[clip] = measure_clip(clip.read(), 24_000)
        return self._measured[clip]

    def describe(self, outcomes: Sequence[Outcome]) -> str:
        if any(outcome.take.clip for outcome in outcomes):
            return "the clip that was cloned"
        if self.named:
            return self.named.path.name
        return "the original of the text" if any(o.original for o in outcomes) else "none"


def speech_report(
    outcomes: Sequence[Outcome],
    recogniser: Recogniser,
    references: References,
    cloning: CloningReport | None = None,
) -> SpeechReport:
    """Sum up."""
    texts = [outcome.take.text for outcome in outcomes]
    errors = word_errors(texts, [outcome.heard for outcome in outcomes])
    pairs = zip(outcomes, errors.per_text, strict=True)
    trials = [_run(outcome, pair, references) for outcome, pair in pairs]
    spent = [(o.take.spent, o.seconds) for o in outcomes if o.take.spent and o.seconds]
    generated = [run for run in trials if run.stop_reason or run.failure]
    return SpeechReport(
        recogniser=recogniser.name,
        normalisation=NORMALISATION,
        embedding=EMBEDDING,
        reference=references.describe(outcomes),
        texts=len({" ".join(spoken_words(text)) for text in texts}),
        runs=len(trials),
        words=errors.words,
        wer=errors.rate,
        wer_low=errors.low,
        wer_high=errors.high,
        shuffled_wer=_rate(_shuffled(texts, outcomes)),
        noise_wer=_rate(_noise(outcomes)),
        original_wer=_rate(_originals(outcomes, recogniser)),
        unknown_words=recogniser.unknown(word for text in texts for word in spoken_words(text)),
        failed=sum(run.failure is not None for run in trials),
        ended=_mean([float(run.stop_reason == "eos") for run in generated]),
        similarity=_mean([run.similarity for run in trials]),
        distance_db=_mean([run.distance_db for run in trials]),
        f0_hz=_median([run.f0_hz for run in trials]),
        f0_drift_semitones=_median([run.f0_drift_semitones for run in trials]),
        f0_spread_semitones=_spread(trials),
        duration_ratio=_median([run.duration_ratio for run in trials]),
        seconds_per_character=_pace(outcomes),
        real_time_factor=sum(s for s, _ in spent) / sum(d for _, d in spent) if spent else None,
        cloning=cloning,
        trials=trials,
    )


def _run(outcome: Outcome, errors: tuple[int, int], references: References) -> Run:
    take, found = outcome.take, outcome.measured
    original = references.measure(outcome.original) if outcome.original else None
    return Run(
        text=take.text,
        heard=outcome.heard,
        errors=errors[0],
        words=errors[1],
        seconds=outcome.seconds,
        voice=take.voice,
        seed=take.seed,
        stop_reason=take.stop_reason,
        failure=take.failure,
        f0_hz=found.f0_hz if found else None,
        duration_ratio=found.seconds / original.seconds if found and original else None,
        **_against(found, references.of(outcome)),
    )


def _against(found: Clip | None, other: Clip | None) -> dict[str, float]:
    """A run's distances from its reference; nothing when one of them has no voice."""
    if found is None or other is None:
        return {}
    return {
        "f0_drift_semitones": semitones(found.f0_hz, other.f0_hz),
        "similarity": similarity(found.embedding, other.embedding),
        "distance_db": distance(found.embedding, other.embedding),
    }


def _shuffled(texts: list[str], outcomes: Sequence[Outcome]) -> WordErrors | None:
    others = deranged(texts)
    return word_errors(others, [outcome.heard for outcome in outcomes]) if others else None


def _noise(outcomes: Sequence[Outcome]) -> WordErrors | None:
    pairs = [(o.take.text, o.noise_heard) for o in outcomes if o.noise_heard is not None]
    return word_errors(*zip(*pairs, strict=True)) if pairs else None


def _originals(outcomes: Sequence[Outcome], recogniser: Recogniser) -> WordErrors | None:
    clips = sorted({o.original for o in outcomes if o.original}, key=lambda clip: clip.path)
    if not clips:
        return None
    heard = [recogniser.transcribe(clip.read(), 24_000) for clip in clips]
    return word_errors([clip.text for clip in clips], heard)


def _rate(errors: WordErrors | None) -> float | None:
    return errors.rate if errors else None


def _spread(trials: Sequence[Run]) -> float | None:
    drifts = [run.f0_drift_semitones for run in trials if run.f0_drift_semitones is not None]
    if not drifts:
        voices: dict[str, list[float]] = {}
        for run in trials:
            voices.setdefault(run.voice, []).extend([run.f0_hz] if run.f0_hz else [])
        drifts = [semitones(f, statistics.median(fs)) for fs in voices.values() for f in fs]
    return statistics.pstdev(drifts) if drifts else None


def _pace(outcomes: Sequence[Outcome]) -> float | None:
    sounding = [(o.measured.seconds, len(o.take.text)) for o in outcomes if o.measured]
    return sum(s for s, _ in sounding) / sum(c for _, c in sounding) if sounding else None


def _mean(values: Sequence[float | None]) -> float | None:
    return _over(statistics.fmean, values)


def _median(values: Sequence[float | None]) -> float | None:
    return _over(statistics.median, values)


def _over(function: Callable[[list[float]], float], values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return function(found) if found else None
