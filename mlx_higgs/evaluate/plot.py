"""A speech report as a picture: errors and length of every run, the controls, the confusions."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..types import InputError
from .report import SpeechReport

SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Refuse early what could not be drawn after an hour of work.

    Raises:
        InputError: no matplotlib, an unknown suffix, or no such folder.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"The plot {path} has no known suffix: use one of {', '.join(SUFFIXES)}.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"The folder {path.parent} does not exist.")
    installed_pyplot()


def installed_pyplot() -> ModuleType:
    """matplotlib, drawing into files only.

    Raises:
        InputError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise InputError("--plot needs matplotlib: pip install 'mlx_higgs[eval]' first.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot(report: SpeechReport, path: Path) -> None:
    """Draw ``report`` into a file."""
    pyplot = installed_pyplot()
    columns = 4 if report.cloning else 3
    figure, axes = pyplot.subplots(1, columns, figsize=(4.5 * columns, 4.5), layout="constrained")
    _errors(axes[0], report)
    _durations(axes[1], report)
    _controls(axes[2], report)
    if report.cloning:
        _confusion(axes[3], report)
    figure.suptitle(f"{report.runs} runs, {report.words} words; {report.recogniser}")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _errors(axes: Any, report: SpeechReport) -> None:
    shares = sorted((100 * run.errors / run.words for run in report.trials), reverse=True)
    axes.bar(range(1, len(shares) + 1), shares, width=1.0)
    axes.set(title="Words wrong, run by run", xlabel="run, worst first", ylabel="%")
    axes.set_ylim(0, max(100, *shares))


def _durations(axes: Any, report: SpeechReport) -> None:
    lengths = [len(run.text) for run in report.trials]
    wrong = [100 * run.errors / run.words for run in report.trials]
    drawn = axes.scatter(lengths, [run.seconds for run in report.trials], c=wrong, vmin=0, vmax=100)
    axes.figure.colorbar(drawn, ax=axes, label="% of words wrong")
    axes.set(title="Length", xlabel="characters", ylabel="seconds", ylim=(0, None))


def _controls(axes: Any, report: SpeechReport) -> None:
    bars = {
        "speech": report.wer,
        "originals": report.original_wer,
        "other texts": report.shuffled_wer,
        "noise": report.noise_wer,
    }
    found = {name: 100 * rate for name, rate in bars.items() if rate is not None}
    drawn = axes.bar(list(found), list(found.values()))
    axes.bar_label(drawn, fmt="%.1f", label_type="center", color="white")
    axes.set_ylim(0, 1.1 * max(100, *found.values()))
    spread = [
        [100 * max(0, report.wer - report.wer_low)],
        [100 * max(0, report.wer_high - report.wer)],
    ]
    axes.errorbar([0], [100 * report.wer], yerr=spread, color="black", capsize=4)
    axes.set(title="Word error rate, with its controls", ylabel="%")


def _confusion(axes: Any, report: SpeechReport) -> None:
    assert report.cloning is not None
    table = report.cloning.confusion
    heard = list(next(iter(table.values())))
    counts = np.array([list(row.values()) for row in table.values()])
    axes.imshow(counts, cmap="Blues")
    for (row, column), count in np.ndenumerate(counts):
        axes.text(column, row, str(count), ha="center", va="center", color="darkorange")
    axes.set_xticks(range(len(heard)), heard, rotation=30, ha="right")
    axes.set_yticks(range(len(table)), list(table))
    axes.set(title="Nearest voice", xlabel="heard", ylabel="asked for")
