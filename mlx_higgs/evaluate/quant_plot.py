"""What is lost by what is read: a picture to choose a checkpoint by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..doubts import MOST_KL
from .plot import installed_pyplot
from .quant_report import Column, QuantReport

FLOOR = 1e-5  # nat: a candidate that is the reference has no logarithm
GOOD, BAD = "tab:green", "tab:red"


def plot_quant(report: QuantReport, path: Path) -> None:
    """Divergence by bytes of a frame, each candidate with what was heard of it."""
    pyplot = installed_pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 5.5), layout="constrained")
    for column in report.candidates:
        _mark(axes, column)
    axes.axhline(MOST_KL, color="grey", linestyle=":", label=f"limit: {MOST_KL:g} nat")
    read = report.reference.storage.frame / 1e6
    label = f"{report.reference.label}: {read:.3g} MB"
    axes.axvline(read, color="grey", linestyle="--", label=label)
    axes.plot([], [], "o", color=GOOD, label="within all limits")
    axes.plot([], [], "X", color=BAD, label="outside one")
    axes.set(
        title="Lower is nearer to the reference, further left is faster",
        xlabel="weights read per frame, MB",
        ylabel="mean KL, nat a code",
        yscale="log",
        xlim=(0, 1.15 * max(read, *(c.storage.frame / 1e6 for c in report.candidates))),
    )
    axes.margins(y=0.25)
    axes.legend(loc="upper right", fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _mark(axes: Any, column: Column) -> None:
    at = column.storage.frame / 1e6, max(column.kl, FLOOR)
    good = not column.faults
    axes.plot(*at, "o" if good else "X", color=GOOD if good else BAD, markersize=9)
    axes.annotate(_heard(column), at, xytext=(8, 4), textcoords="offset points", fontsize="small")


def _heard(column: Column) -> str:
    lines, spoken = [column.label], column.spoken
    if spoken and spoken.change:
        lines.append(f"{spoken.change.points:+.1f} points of words wrong")
    if spoken:
        lines.append(f"{spoken.ended:.1%} ended")
    return "\n".join(lines)
