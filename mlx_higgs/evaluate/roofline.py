"""The roofline: time per frame against the bytes it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..types import FRAME_RATE
from .plot import installed_pyplot
from .speed_report import SpeedReport

OURS, PEER, LIMIT = "#1f5fa8", "#c8601f", "#444444"
FRAME_MS = 1000 / FRAME_RATE


def plot_roofline(report: SpeedReport, path: Path) -> None:
    """Draw the widths, the limit that copying sets, and the fit, into a file."""
    pyplot = installed_pyplot()
    with pyplot.style.context("default"):
        figure, axes = pyplot.subplots(figsize=(8, 6.5), layout="constrained")
        right = 1.3 * max(_peer_points(report) + _points(report))[0]  # room for labels
        _limit(axes, report, right)
        axes.axhline(FRAME_MS, color=LIMIT, linestyle=":", label="below: faster than real time")
        _fit(axes, report, right)
        _draw(axes, _points(report), OURS, "o", f"mlx_higgs {report.machine.mlx_higgs}")
        _draw(axes, _peer_points(report), PEER, "s", report.peer_name or "")
        axes.set(
            title=f"{report.talker}\n{report.machine.processor}, MLX {report.machine.mlx} on "
            f"{report.machine.device.split(':')[0]}, {report.machine.date}",
            xlabel="read from memory for one frame, GB (weights, keys and values)",
            ylabel="time for one frame (40 ms of sound), ms",
        )
        axes.set_xlim(0, right)
        axes.set_ylim(0, None)
        axes.grid(alpha=0.25)
        figure.legend(loc="outside lower center", frameon=False)
        figure.savefig(path, dpi=130, facecolor="white")
        pyplot.close(figure)


Point = tuple[float, float, float, float, str]  # GB, ms, quickest, slowest, label


def _points(report: SpeedReport) -> list[Point]:
    return [
        (
            width.bytes_per_frame / 1e9,
            width.ms_per_frame,
            width.loops[0].quickest_ms,
            width.loops[0].slowest_ms,
            f"{width.width}: {width.ms_per_frame:.3g} ms, {width.fraction_of_bandwidth:.0%}",
        )
        for width in report.widths
    ]


def _peer_points(report: SpeedReport) -> list[Point]:
    found = []
    for width in report.widths:
        if width.peer and width.peer_bytes_per_frame:
            cached = width.kv_bytes_per_position * width.position
            row, nbytes = width.peer, width.peer_bytes_per_frame + cached
            label = f"{width.width}: {row.ms_per_frame:.3g} ms"
            found.append((nbytes / 1e9, row.ms_per_frame, row.quickest_ms, row.slowest_ms, label))
    return found


def _draw(axes: Any, points: list[Point], color: str, marker: str, name: str) -> None:
    if not points:
        return
    x, y, low, high, labels = zip(*points, strict=True)
    spread = [np.subtract(y, low), np.subtract(high, y)]
    axes.errorbar(
        x, y, yerr=spread, color=color, marker=marker, linestyle="", capsize=3, label=name, zorder=3
    )
    for at_x, at_y, label in zip(x, y, labels, strict=True):
        axes.annotate(
            label, (at_x, at_y), xytext=(8, 6), textcoords="offset points", color=color, fontsize=9
        )


def _limit(axes: Any, report: SpeedReport, right: float) -> None:
    speed = report.widths[0].copy_gb_per_s
    axes.plot(
        [0, right],
        [0, 1000 * right / speed],
        color=LIMIT,
        label=f"the limit: bytes / {speed:.3g} GB/s, this machine's copy bandwidth",
    )
    axes.fill_between([0, right], [0, 1000 * right / speed], color=LIMIT, alpha=0.08)


def _fit(axes: Any, report: SpeedReport, right: float) -> None:
    if report.fit and report.fit.gb_per_s:
        ends = [report.fit.ms(0), report.fit.ms(right * 1e9)]
        name = f"the fit: {report.fit.fixed_ms:.3g} ms + bytes / {report.fit.gb_per_s:.3g} GB/s"
        axes.plot([0, right], ends, color=OURS, linestyle="--", label=name)
