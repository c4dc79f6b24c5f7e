"""A speech report as lines for a person."""

from __future__ import annotations

from collections.abc import Iterator

from .cloning import CloningReport
from .report import WORST, Run, SpeechReport

WIDTH = 24


def show(report: SpeechReport) -> Iterator[str]:
    """The report, line by line; what does not exist is left out."""
    yield from _rows(_words(report))
    yield from _rows(_voice(report))
    if report.cloning:
        yield from _cloning(report.cloning)
    yield from _failures(report)
    yield from _worst(report)


def _rows(rows: dict[str, str | None]) -> Iterator[str]:
    for name, value in rows.items():
        if value is not None:
            yield f"{name:{WIDTH}} {value}"


def _words(report: SpeechReport) -> dict[str, str | None]:
    interval = f"(95 % {_percent(report.wer_low)} to {_percent(report.wer_high)})"
    ended = report.ended
    return {
        "recogniser": report.recogniser,
        "words compared as": report.normalisation,
        "texts": f"{report.texts} ({report.runs} runs, {report.words} words)",
        "unknown to it": ", ".join(report.unknown_words) or None,
        "word error rate": f"{_percent(report.wer)} {interval}",
        "  against other texts": _percent(report.shuffled_wer),
        "  of noise in its place": _percent(report.noise_wer),
        "  of the originals": _percent(report.original_wer),
        "ended by themselves": None if ended is None else f"{ended:.1%}",
        "failed": str(report.failed) if ended is not None else None,
        "real-time factor": _number(report.real_time_factor, ".2f"),
    }


def _voice(report: SpeechReport) -> dict[str, str | None]:
    near, far = _number(report.similarity, ".2f"), _number(report.distance_db, ".1f")
    spread = _number(report.f0_spread_semitones, ".2f")
    drift = _number(report.f0_drift_semitones, "+.2f")
    from_where = f"{drift} semitones from the reference, " if drift else ""
    return {
        "reference": report.reference,
        "similarity to it": f"{near} (1: the same clip; {far} dB apart)" if near else None,
        "  embedding": report.embedding,
        "median pitch": f"{report.f0_hz:.1f} Hz, {from_where}spread {spread} semitones"
        if report.f0_hz
        else None,
        "duration ratio": _number(report.duration_ratio, ".3f"),
        "seconds per character": _number(report.seconds_per_character, ".4f"),
    }


def _cloning(cloning: CloningReport) -> Iterator[str]:
    interval = f"(95 % {_percent(cloning.low)} to {_percent(cloning.high)})"
    runs = f"{cloning.correct} of {cloning.runs}"
    own = _percent(cloning.clips_accuracy) or "not known: a voice has only one"
    yield from _rows(
        {
            "nearest voice is right": f"{_percent(cloning.accuracy)}, {runs} {interval}",
            "  by chance": _percent(cloning.chance),
            f"  of {cloning.clips} clips": own,
        }
    )
    voices = list(next(iter(cloning.confusion.values())))
    width = max(map(len, voices)) + 2
    yield "".join(f"{name:>{width}}" for name in ["asked \\ heard", *voices])
    for voice, row in cloning.confusion.items():
        yield "".join(f"{cell:>{width}}" for cell in [voice, *row.values()])


def _failures(report: SpeechReport) -> Iterator[str]:
    for run in report.trials:
        if run.failure is not None:
            yield f"failed (seed {run.seed}): {run.text[:80]!r}: {run.failure}"


def _worst(report: SpeechReport) -> Iterator[str]:
    wrong = [run for run in report.trials if run.errors and run.failure is None]
    worst: list[Run] = sorted(wrong, key=lambda run: -run.errors / run.words)[:WORST]
    for run in worst:
        seed = "" if run.seed is None else f" (seed {run.seed})"
        yield f"{run.errors} of {run.words} wrong{seed}: {run.text!r} heard as {run.heard!r}"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)
