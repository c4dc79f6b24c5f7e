"""The same tables for a page: one line a model or a recipe, the figures one chooses by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .quant_report import Column, QuantReport, number
from .quant_sizes import Size

MODELS = (
    "model",
    "bits per weight",
    "MB on disk",
    "MB per frame",
    "KL, mean",
    "KL, 99 %",
    "same code",
    "error of the end",
    "ended",
    "length ratio",
    "pitch, semitones",
    "similarity",
    "words wrong",
    "more, points (95 %)",
)
SIZES = ("shape", "recipe", "bits per weight", "GB on disk", "GB in memory", "GB per frame")
NONE = "-"


def markdown(report: QuantReport) -> Iterator[str]:
    """The reference, then the candidates, nearest first; and what to do."""
    runs = f"{report.texts} texts, {report.seeds} free runs of each" if report.seeds else ""
    yield from _table(MODELS, [_cells(c) for c in (report.reference, *report.candidates)])
    yield ""
    yield f"{runs or f'{report.texts} texts'}. {report.verdict}"


def markdown_sizes(found: Sequence[Size]) -> Iterator[str]:
    """Bytes of recipes at shapes."""
    yield from _table(SIZES, [_size_cells(size) for size in found])


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|".join(["", " --- ", *[" ---: "] * (len(heads) - 1), ""])
    for cells in lines:
        yield f"| {' | '.join(cells)} |"


def _cells(column: Column) -> list[str]:
    stored, forced, spoken = column.storage, column.forced, column.spoken
    near = forced and forced.together
    change = spoken and spoken.change
    return [
        column.label,
        f"{stored.bits:.2f}",
        f"{stored.disk / 1e6:.2f}",
        f"{stored.frame / 1e6:.2f}",
        f"{near.kl_mean:.4f}" if near else NONE,
        f"{near.kl_p99:.3f}" if near else NONE,
        f"{near.top1:.1%}" if near else NONE,
        f"{forced.ending.error_mean:.4f}" if forced else NONE,
        f"{spoken.runs - spoken.unended} of {spoken.runs}" if spoken else NONE,
        number(spoken and spoken.length_ratio, ".3f"),
        number(spoken and spoken.f0_drift_semitones, "+.2f"),
        number(spoken and spoken.similarity, ".2f"),
        number(spoken and spoken.wer, ".1%"),
        f"{change.points:+.1f} ({change.low:+.1f} to {change.high:+.1f})" if change else NONE,
    ]


def _size_cells(size: Size) -> list[str]:
    parts = [f"{part / 1e9:.3f}" for part in (size.disk, size.memory, size.frame)]
    return [size.shape, size.recipe, f"{'~' if size.about else ''}{size.bits:.2f}", *parts]
