"""What a model says when nobody holds its hand: the same texts with the same seeds for all."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..batch import Batch
from ..server import HiggsAudioServer, SpeechRequest
from ..server.batching import run_together
from ..types import SAMPLE_RATE, CheckpointError, HiggsError, Speech
from .cloning import wilson
from .outcomes import Originals, Outcome, judge
from .pitch import semitones
from .recogniser import Recogniser
from .similarity import similarity
from .trials import Take, Trial
from .words import CONFIDENCE, RESAMPLES, spoken_words, word_errors

Counts = tuple[int, int]  # wrong words, words


@dataclass(frozen=True)
class Run:
    """One text with one seed; beside the reference's run of the same.

    Attributes:
        ended: by itself.
        sounding: seconds from the first sound to the last.
        heard: by the recogniser; None without one.
    """

    text: str
    seed: int
    ended: bool
    stop_reason: str | None
    failure: str | None
    seconds: float
    sounding: float | None
    f0_hz: float | None
    length_ratio: float | None
    f0_drift_semitones: float | None
    similarity: float | None
    heard: str | None
    errors: int | None
    words: int | None


@dataclass(frozen=True)
class Change:
    """Word error rate in points beyond the reference's, and its 95 % interval over texts."""

    points: float
    low: float
    high: float


@dataclass(frozen=True)
class Spoken:
    """Free runs, summed up.

    Attributes:
        ended: share of runs that ended by themselves, and its 95 % interval.
        length_ratio: median over runs of sounding seconds by those of the reference's run.
        f0_hz: median over runs of their median pitch; its drift from the reference's median.
        similarity: of the voice to the reference's run of the same text and seed, on average; of
            the reference to its own runs of the same text with the next seed (None for one seed).
        wer: word error rate; None without a recogniser.
        change: None of the reference.
    """

    runs: int
    unended: int
    failed: int
    ended: float
    ended_low: float
    ended_high: float
    seconds: float
    length_ratio: float | None
    f0_hz: float | None
    f0_drift_semitones: float | None
    similarity: float | None
    wer: float | None
    change: Change | None
    trials: list[Run]


class Deaf:
    """In place of a recogniser where none is installed."""

    name = ""

    def transcribe(self, pcm: np.ndarray, rate: int) -> str:
        return ""

    def unknown(self, words) -> list[str]:
        return []


def speak(
    server: HiggsAudioServer, trials: Sequence[Trial], temperature: float | None, max_batch: int
) -> Iterator[tuple[int, Take]]:
    """Each trial's number and what came of it, as they end. Nothing is drawn again."""
    requests = [SpeechRequest(t.text, seed=t.seed, temperature=temperature) for t in trials]
    batch = Batch(server.higgs.model, max_batch)
    for index, result in run_together(server.start, batch, requests):
        yield index, _take(trials[index], result)


def _take(trial: Trial, result: Speech | HiggsError) -> Take:
    if isinstance(result, CheckpointError):
        raise result  # no text would fare better
    if isinstance(result, HiggsError):
        none = np.zeros(0, np.float32)
        return Take(trial.text, none, SAMPLE_RATE, seed=trial.seed, failure=str(result))
    return Take(
        trial.text,
        result.pcm,
        result.sampling_rate,
        seed=trial.seed,
        stop_reason=result.stop_reason,
        spent=result.seconds,
    )


def listen(takes: Iterator[tuple[int, Take]], ears: Recogniser) -> list[Outcome]:
    """All takes measured, in the order of their trials."""
    nothing = Originals([])
    found = {index: judge(take, ears, nothing, noise=False) for index, take in takes}
    return [found[index] for index in sorted(found)]


def sum_up(
    outcomes: Sequence[Outcome], reference: Sequence[Outcome] | None, *, hears: bool
) -> Spoken:
    """The figures of a candidate's runs, beside the reference's of the same trials.

    Args:
        reference: None: these are the reference's own.
        hears: whether there was a recogniser.
    """
    counts, beside = word_counts(outcomes), reference or outcomes
    trials = [
        _run(outcome, other, pair if hears else None)
        for outcome, other, pair in zip(outcomes, beside, counts, strict=True)
    ]
    ended = sum(run.ended for run in trials)
    low, high = wilson(ended, len(trials))
    f0, theirs = _pitch(outcomes), _pitch(beside)
    change = None
    if reference and hears:
        change = paired_change([run.text for run in trials], counts, word_counts(reference))
    return Spoken(
        runs=len(trials),
        unended=len(trials) - ended,
        failed=sum(run.failure is not None for run in trials),
        ended=ended / len(trials),
        ended_low=low,
        ended_high=high,
        seconds=sum(run.seconds for run in trials),
        length_ratio=_over(statistics.median, [run.length_ratio for run in trials]),
        f0_hz=f0,
        f0_drift_semitones=semitones(f0, theirs) if f0 and theirs else None,
        similarity=_over(statistics.fmean, [run.similarity for run in trials])
        if reference
        else own_similarity(outcomes),
        wer=_rate(counts) if hears else None,
        change=change,
        trials=trials,
    )


def _run(outcome: Outcome, other: Outcome, pair: Counts | None) -> Run:
    take, found, theirs = outcome.take, outcome.measured, other.measured
    return Run(
        text=take.text,
        seed=take.seed or 0,
        ended=take.stop_reason == "eos",
        stop_reason=take.stop_reason,
        failure=take.failure,
        seconds=outcome.seconds,
        sounding=found.seconds if found else None,
        f0_hz=found.f0_hz if found else None,
        length_ratio=found.seconds / theirs.seconds if found and theirs else None,
        f0_drift_semitones=semitones(found.f0_hz, theirs.f0_hz) if found and theirs else None,
        similarity=similarity(found.embedding, theirs.embedding) if found and theirs else None,
        heard=outcome.heard if pair else None,
        errors=pair[0] if pair else None,
        words=pair[1] if pair else None,
    )


def own_similarity(outcomes: Sequence[Outcome]) -> float | None:
    """How alike the runs of one text are whose seeds follow each other: what chance alone does."""
    pairs = [
        (one.measured, other.measured)
        for one, other in pairwise(outcomes)
        if one.take.text == other.take.text and one.measured and other.measured
    ]
    alike = [similarity(one.embedding, other.embedding) for one, other in pairs]
    return statistics.fmean(alike) if alike else None


def word_counts(outcomes: Sequence[Outcome]) -> list[Counts]:
    """(errors, words) of each run; a run that failed got all of them wrong."""
    said = [outcome.take.text for outcome in outcomes]
    return list(word_errors(said, [outcome.heard for outcome in outcomes]).per_text)


def paired_change(texts: Sequence[str], ours: Sequence[Counts], theirs: Sequence[Counts]) -> Change:
    """Points of word error rate that ``ours`` has more than ``theirs`` of the same runs.

    The interval is a bootstrap over texts: a text's runs stay together, and so do both models'.
    """
    sums: dict[str, np.ndarray] = {}
    for text, (wrong, words), (before, _) in zip(texts, ours, theirs, strict=True):
        counted = sums.setdefault(" ".join(spoken_words(text)), np.zeros(2))
        counted += wrong - before, words
    counts = np.stack(list(sums.values()))  # [texts, (more errors, words)]
    drawn = np.random.default_rng(0).integers(0, len(counts), (RESAMPLES, len(counts)))
    more = counts[drawn].sum(axis=1)
    tails = (0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2)
    low, high = np.quantile(100 * more[:, 0] / more[:, 1], tails)
    total = counts.sum(axis=0)
    return Change(float(100 * total[0] / total[1]), float(low), float(high))


def _rate(counts: Sequence[Counts]) -> float:
    wrong, words = map(sum, zip(*counts, strict=True))
    return wrong / words


def _pitch(outcomes: Sequence[Outcome]) -> float | None:
    return _over(statistics.median, [o.measured.f0_hz if o.measured else None for o in outcomes])


def _over(function, values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return function(found) if found else None
