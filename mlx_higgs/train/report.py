"""What a run says of itself: a progress bar, ``log.csv``, ``loss.png``, TensorBoard when asked."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from ..cli import note
from ..types import InputError

LOG = "log.csv"
PLOT = "loss.png"


def columns(num_codebooks: int) -> list[str]:
    """The log's columns; what was not measured in a line is empty."""
    books = [f"audio_{k}" for k in range(num_codebooks)]
    named = ["text", *books]
    return [
        *("iteration", "epoch", "split", "loss", *named),
        *("learning_rate", "gradient_norm", "positions_per_second", "peak_gb", "minutes"),
    ]


class Report:
    """The log of one run. A run that goes on keeps the lines up to ``start``."""

    def __init__(self, folder: Path, num_codebooks: int, start: int, tensorboard: bool):
        self._path = folder / LOG
        self._columns = columns(num_codebooks)
        self._lines = [line for line in read_log(self._path) if int(line["iteration"]) <= start]
        with self._path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._lines)
        self._board = _board(folder) if tensorboard else None

    def add(self, **values: Any) -> None:
        """One line; its names are the columns."""
        line = {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in values.items()}
        self._lines.append(line)
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(line)
        if self._board:
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{values['split']}/{name}", value, values["iteration"])

    def close(self) -> None:
        """Draw the plot, if matplotlib is there."""
        if self._board:
            self._board.close()
        if any(self._lines):
            plot(self._lines, self._path.with_name(PLOT))


def read_log(path: Path) -> list[dict[str, str]]:
    """The lines of a log; none when there is none, or not one of ours."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [line for line in csv.DictReader(file) if (line.get("iteration") or "").isdigit()]


def _board(folder: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            "--tensorboard needs tensorboardX: pip install 'mlx_higgs[train]'"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"))


def plot(lines: list[dict[str, str]], path: Path) -> None:
    """The losses over the iterations, as a PNG."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        note(f"No {path.name}: it needs matplotlib (pip install 'mlx_higgs[train]').")
        return
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="iteration", ylabel="loss")
    for split, style in (("train", "-"), ("valid", "o-"), ("test", "s")):
        chosen = [line for line in lines if line["split"] == split]
        points = [(int(line["iteration"]), float(line["loss"])) for line in chosen]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=split)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
