"""What ``evaluate quant`` found: one column a model, and which of them to choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from ..doubts import LEAST_ENDED, MOST_DRIFT, MOST_KL, MOST_WORDS
from .quant_forced import Forced
from .quant_models import Storage
from .quant_spoken import Spoken

LIMITS = {
    "kl": MOST_KL,
    "ended": LEAST_ENDED,
    "wer_change_points": MOST_WORDS,
    "f0_drift_semitones": MOST_DRIFT,
}


@dataclass(frozen=True)
class Column:
    """One model.

    Attributes:
        stored: how its matrices are, in words; "" for as they were.
        forced: None of the reference. spoken: None without free runs.
    """

    label: str
    name: str
    stored: str
    storage: Storage
    forced: Forced | None = None
    spoken: Spoken | None = None
    faults: list[str] = field(default_factory=list)

    @property
    def kl(self) -> float:
        return self.forced.together.kl_mean if self.forced else 0.0


@dataclass(frozen=True)
class QuantReport:
    """Everything.

    Attributes:
        candidates: the one nearest to the reference first.
        passages: texts that the reference said to their end, of ``texts``.
        computed: in which numbers, where that is not how they are stored.
        recogniser: its name, or why there is none.
        verdict: what to do.
    """

    reference: Column
    candidates: list[Column]
    texts: int
    seeds: int
    seed: int
    passages: int
    computed: str
    recogniser: str
    limits: dict[str, float]
    verdict: str

    def to_dict(self) -> dict:
        return asdict(self)


def faults(column: Column, reference: Column) -> list[str]:
    """What keeps a candidate from being taken for the reference, worst kind first.

    Of a reference that does not end all its runs, no more is asked than it does itself.
    """
    found = []
    spoken, theirs = column.spoken, reference.spoken
    if spoken and theirs and spoken.ended < min(LEAST_ENDED, theirs.ended):
        found.append(f"{spoken.unended} of {spoken.runs} runs never ended")
    if spoken and spoken.change and spoken.change.points > MOST_WORDS:
        found.append(f"{spoken.change.points:+.1f} points of words wrong")
    if spoken and abs(spoken.f0_drift_semitones or 0) > MOST_DRIFT:
        found.append(f"pitch {spoken.f0_drift_semitones:+.2f} semitones off")
    if not column.kl <= MOST_KL:
        found.append(f"KL {column.kl:.3g} nat")
    return found


def verdict(reference: Column, candidates: Sequence[Column]) -> str:
    """One line to act on: the smallest candidate within all limits."""
    limits = f"KL at most {MOST_KL:g} nat"
    heard = all(column.spoken for column in candidates)
    words = heard and all(column.spoken and column.spoken.change for column in candidates)
    if heard:
        limits += f", {LEAST_ENDED:.0%} of runs ended, pitch within {MOST_DRIFT:g} semitones"
    if words:
        limits += f", at most {MOST_WORDS:g} points more words wrong"
    good = [column for column in candidates if not column.faults]
    if not good:
        near = candidates[0]
        return (
            f"Stay with {reference.label}: no candidate keeps {limits}. The nearest is "
            f"{near.label} ({'; '.join(near.faults)})."
        )
    best = min(good, key=lambda column: (column.storage.frame, column.storage.disk))
    share = best.storage.frame / reference.storage.frame
    unheard = "" if heard else " Nothing was listened to: leave --only-forced out before you rely."
    return (
        f"Choose {best.label}: the smallest that keeps {limits}. It reads {share:.0%} of the "
        f"bytes that {reference.label} reads for a frame.{unheard}"
    )


# ---------------------------------------------------------------- for a person

NAME = 34
END, FALSE = "chance of the end, where it is", "  largest chance before it"


def show(report: QuantReport) -> Iterator[str]:
    """The table, line by line; rows that nothing was measured for are left out."""
    yield f"reference   {report.reference.name}"
    runs = f", {report.seeds} free runs of each" if report.seeds else ""
    yield f"texts       {report.texts}{runs}; {report.passages} passages of the reference's own"
    if report.computed:
        yield f"computed    {report.computed}"
    if report.seeds:
        yield f"recogniser  {report.recogniser}"
    yield ""
    columns = [report.reference, *report.candidates]
    width = max(len(column.label) for column in columns)
    cells = [rows(column) for column in columns]
    cells[0] |= _own_end(report.candidates[0])
    width = 2 + max(width, *(len(value) for rows_ in cells for value in rows_.values()))
    yield " " * NAME + "".join(f"{column.label:>{width}}" for column in columns)
    for name in cells[1] | cells[0]:  # a candidate has them all, in their order
        values = [rows_.get(name, "") for rows_ in cells]
        yield f"{name:{NAME}}" + "".join(f"{value:>{width}}" for value in values)
    yield ""
    for column in report.candidates:
        yield f"{column.label}: {'; '.join(column.faults) or 'within all limits'}"
    yield report.verdict


def rows(column: Column) -> dict[str, str]:
    """A column's cells by the names of their rows."""
    stored = column.storage
    cells = {
        "weights on disk, MB": f"{stored.disk / 1e6:.2f}",
        "weights read per frame, MB": f"{stored.frame / 1e6:.2f}",
        "bits per weight": f"{stored.bits:.2f}",
    }
    if column.forced:
        cells |= _forced(column.forced)
    if column.spoken:
        cells |= _spoken(column.spoken)
    return cells


def _own_end(column: Column) -> dict[str, str]:
    """The reference's own chances, which every candidate's figures know."""
    if column.forced is None:
        return {}
    ending = column.forced.ending
    return {END: f"{ending.reference:.3f}", FALSE: f"{ending.false_reference:.3f}"}


def _forced(forced: Forced) -> dict[str, str]:
    near, ending = forced.together, forced.ending
    books = {
        f"  KL of codebook {k}, mean and 99 %": f"{book.kl_mean:.4f} {book.kl_p99:.3f}"
        for k, book in enumerate(forced.books)
    }
    return {
        "KL, mean, nat": f"{near.kl_mean:.4f}",
        "KL, 99 % below": f"{near.kl_p99:.3f}",
        **books,
        "same likeliest code": f"{near.top1:.1%}",
        "regret, mean, nat": f"{near.regret_mean:.4f}",
        "regret, largest": f"{near.regret_max:.2f}",
        END: f"{ending.candidate:.3f}",
        "  error there, mean": f"{ending.error_mean:.4f}",
        "  error there, largest": f"{ending.error_max:.3f}",
        FALSE: f"{ending.false:.3f}",
    }


def _spoken(spoken: Spoken) -> dict[str, str]:
    change = spoken.change
    cells = {
        "ended by themselves": f"{spoken.runs - spoken.unended} of {spoken.runs}",
        "  95 % interval of the share": f"{spoken.ended_low:.1%} to {spoken.ended_high:.1%}",
        "length ratio": number(spoken.length_ratio, ".3f"),
        "median pitch, Hz": number(spoken.f0_hz, ".1f"),
        "  drift, semitones": number(spoken.f0_drift_semitones, "+.2f"),
        "voice similarity": number(spoken.similarity, ".2f"),
        "words wrong": number(spoken.wer, ".1%"),
    }
    if change:
        cells["  more than the reference, points"] = f"{change.points:+.1f}"
        cells["  95 % interval"] = f"{change.low:+.1f} to {change.high:+.1f}"
    return cells


def number(value: float | None, form: str) -> str:
    """For a table; a dash for what is not there."""
    return "-" if value is None else format(value, form)
