"""What ``evaluate speed`` found, and how it is printed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..types import FRAME_RATE
from .bandwidth import CopyBandwidth, Fit
from .codec_speed import CodecSpeed
from .first_audio import FirstAudio
from .machine import Machine

SPEECH = 10.0  # seconds of sound that a prompt's time is shared out over
NAME = 22


@dataclass(frozen=True)
class Row:
    """One contender.

    Attributes:
        streams: frames made in one step.
        ms_per_frame, cpu_ms_per_frame: of one step, which is one frame of every stream.
        cpu_ratio, wall_ratio: its CPU time and its time over those of the first row of its
            table, medians of the ratios within a round; per frame, not per step.
    """

    name: str
    streams: int
    ms_per_frame: float
    quickest_ms: float
    slowest_ms: float
    cpu_ms_per_frame: float
    frames_per_second: float
    cpu_ratio: float
    wall_ratio: float


@dataclass(frozen=True)
class WidthReport:
    """One width of weights.

    Attributes:
        bytes_per_frame: weights, and keys and values at ``position``, the middle of the run.
        fraction_of_bandwidth: bytes_per_frame / ms_per_frame / copy_gb_per_s.
        prefill_ms: of the run's own prompt.
        peak_gb: of MLX's memory, loop and talker alone.
        loop: the one used, which ``auto`` chose.
        loops: that, then every other one measured beside it.
        floor: only the needed products; its ratios are the loop's over it.
        peer_bytes_per_frame: weights that mlx-audio's step reads.
        batches: the smallest first; batch_floors: the needed products alone, for as many streams.
        peer_batches: mlx-audio's of as many streams, if it has any; their ratios are over ours.
    """

    width: str
    loop: str
    ms_per_frame: float
    cpu_ms_per_frame: float
    frames_per_second: float
    bytes_per_frame: int
    bytes_by_part: dict[str, int]
    kv_bytes_per_position: int
    position: int
    prefill_ms: float
    peak_gb: float
    loops: list[Row]
    floor: Row
    peer: Row | None
    peer_bytes_per_frame: int | None
    batches: list[Row]
    batch_floors: list[Row]
    peer_batches: list[Row]
    copy_gb_per_s: float = math.nan
    fraction_of_bandwidth: float = math.nan

    @property
    def spread(self) -> str:
        return f"{self.loops[0].quickest_ms:.1f}-{self.loops[0].slowest_ms:.1f}"


def against(width: WidthReport, copy: CopyBandwidth) -> WidthReport:
    """The same with the machine's copy bandwidth, the best that was seen during the run."""
    reached = width.bytes_per_frame / 1e6 / width.ms_per_frame  # GB/s
    return replace(width, copy_gb_per_s=copy.best, fraction_of_bandwidth=reached / copy.best)


@dataclass(frozen=True)
class SpeedReport:
    """Attributes:
    rtf: seconds of work for a second of speech: ``prefill`` (over 10 s of speech), ``talker``,
        ``codec``; of the first width. None where not measured.
    """

    machine: Machine
    talker: str
    weights: str
    frames: int
    rounds: int
    prompt: int
    seed: int
    peer_name: str | None
    copy_mlx_gb_per_s: float
    copy_numpy_gb_per_s: float
    widths: list[WidthReport]
    fit: Fit | None
    rtf: dict[str, float | None]
    codec: CodecSpeed | None
    first_audio: FirstAudio | None

    def to_dict(self) -> dict[str, Any]:
        """Everything, and the first width's figures once more at the top."""
        first = asdict(self.widths[0])
        return {name: first[name] for name in HEADLINES} | asdict(self)


HEADLINES = (
    "width",
    "ms_per_frame",
    "cpu_ms_per_frame",
    "frames_per_second",
    "bytes_per_frame",
    "copy_gb_per_s",
    "fraction_of_bandwidth",
    "peak_gb",
)


def split_rtf(
    width: WidthReport, codec: CodecSpeed | None, first: FirstAudio | None
) -> dict[str, float | None]:
    """A real-time factor's shares; a prompt is that of a voice where one was measured."""
    prefill = first.prefill_seconds if first else width.prefill_ms / 1000
    return {
        "prefill": prefill / SPEECH,
        "talker": width.ms_per_frame / 1000 * FRAME_RATE,
        "codec": codec.ms_per_frame / 1000 * FRAME_RATE if codec else None,
    }


def show(report: SpeedReport) -> Iterator[str]:
    """The report, line by line, for a person."""
    yield from _about(report)
    yield ""
    yield from table(WIDTHS, [_width_cells(width) for width in report.widths])
    for width in report.widths:
        yield from _details(width, report.peer_name)
    yield ""
    yield from _ends(report)


def _about(report: SpeedReport) -> Iterator[str]:
    machine = report.machine
    yield _line("machine", f"{machine.processor}, {machine.cores} cores, {machine.system}")
    with_what = f", {machine.preloaded} preloaded" if machine.preloaded else ""
    yield _line("", f"MLX {machine.mlx} on {machine.device}{with_what}; {machine.date}")
    yield _line("talker", f"{report.talker}; {report.weights}")
    yield _line(
        "run", f"{report.rounds} rounds of {report.frames} frames after {report.prompt} positions"
    )
    yield _line(
        "copy bandwidth",
        f"{report.widths[0].copy_gb_per_s:.1f} GB/s, read and written "
        f"(MLX {report.copy_mlx_gb_per_s:.1f}, NumPy {report.copy_numpy_gb_per_s:.1f})",
    )


WIDTHS = ("width", "GB/frame", "ms/frame", "spread", "CPU ms", "frames/s", "of copy", "peak GB")


def _width_cells(width: WidthReport) -> Sequence[str]:
    return (
        width.width,
        f"{width.bytes_per_frame / 1e9:.4g}",
        f"{width.ms_per_frame:.2f}",
        width.spread,
        f"{width.cpu_ms_per_frame:.2f}",
        f"{width.frames_per_second:.1f}",
        f"{width.fraction_of_bandwidth:.1%}",
        f"{width.peak_gb:.2f}",
    )


def _details(width: WidthReport, peer_name: str | None) -> Iterator[str]:
    yield ""
    yield f"{width.width}: bytes of a frame by part"
    parts = width.bytes_by_part | {"keys and values": width.kv_bytes_per_position * width.position}
    yield "  " + ", ".join(f"{name} {nbytes / 1e6:.1f} MB" for name, nbytes in parts.items())
    yield f"{width.width}: the same frames in the same rounds; ratios are medians over rounds"
    used, *others = width.loops
    rows = [_row_cells(used, f"{used.name} ({width.loop})"), *map(_row_cells, others)]
    rows.append(_row_cells(width.floor, "needed products alone"))
    if width.peer:
        rows.append(_row_cells(width.peer, peer_name))
    yield from table(LOOPS, rows)
    if width.batches:
        yield f"{width.width}: streams at once"
        pairs = zip(width.batches, width.batch_floors, strict=True)
        yield from table(BATCHES, [_batch_cells(*pair) for pair in pairs])
    if width.peer_batches:
        yield f"{width.width}: {peer_name}, streams at once; ratios are over ours of as many"
        rows = [_row_cells(row, str(row.streams)) for row in width.peer_batches]
        yield from table(("streams", *LOOPS[1:]), rows)


LOOPS = ("contender", "ms/frame", "CPU ms", "frames/s", "CPU x ours", "time x ours")
BATCHES = (
    "streams",
    "ms/step",
    "CPU ms/step",
    "products alone",
    "frames/s",
    "throughput",
    "per CPU second",
)


def _row_cells(row: Row, name: str | None = None) -> Sequence[str]:
    return (
        name or row.name,
        f"{row.ms_per_frame:.2f}",
        f"{row.cpu_ms_per_frame:.2f}",
        f"{row.frames_per_second:.1f}",
        f"{row.cpu_ratio:.2f}",
        f"{row.wall_ratio:.2f}",
    )


def _batch_cells(row: Row, floor: Row) -> Sequence[str]:
    return (
        str(row.streams),
        f"{row.ms_per_frame:.2f}",
        f"{row.cpu_ms_per_frame:.2f}",
        f"{floor.cpu_ms_per_frame:.2f}",
        f"{row.frames_per_second:.1f}",
        f"{1 / row.wall_ratio:.2f}",
        f"{1 / row.cpu_ratio:.2f}",
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as they must be, the first to the left."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for cells in (heads, *rows):
        padded = [
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        yield "  " + "  ".join(padded)


def _ends(report: SpeedReport) -> Iterator[str]:
    if fit := report.fit:
        slope = f"bytes / {fit.gb_per_s:.1f} GB/s" if fit.gb_per_s else "nothing that bytes explain"
        off = ", ".join(f"{value:+.2f}" for value in fit.residuals_ms)
        yield _line("fit over the widths", f"{fit.fixed_ms:.2f} ms + {slope} (off by {off} ms)")
    shares = [f"{name} {value:.3f}" for name, value in report.rtf.items() if value is not None]
    yield _line("real-time factor", f"{report.widths[0].width}: {', '.join(shares)}")
    if report.first_audio:
        yield from _first_audio(report.first_audio)
    if report.codec:
        yield from _codec(report.codec)


def _first_audio(first: FirstAudio) -> Iterator[str]:
    known, unknown = first.cached, first.uncached
    yield _line(
        "first row",
        f"{unknown.first_row:.2f} s, {known.first_row:.2f} s with the voice known "
        f"({first.row_ratio:.2f}, of CPU time {first.row_cpu_ratio:.2f}; {first.voice} of "
        f"{first.prompt} positions)",
    )
    yield _line(
        "first audio",
        f"{unknown.first_audio:.2f} s, {known.first_audio:.2f} s with the voice known "
        f"(chunks of {first.chunk_frames} frames)",
    )


def _codec(codec: CodecSpeed) -> Iterator[str]:
    yield _line(
        "codec",
        f"{codec.ms_per_frame:.1f} ms a frame, CPU {codec.cpu_ms_per_frame:.1f} ms; streamed "
        f"{codec.streamed_over_whole:.3f} x the work of whole ({codec.frames} frames)",
    )
    if codec.peer_over_ours is not None:
        yield _line(
            f"  {codec.peer}",
            f"CPU {codec.peer_cpu_ms_per_frame:.1f} ms a frame, {codec.peer_over_ours:.2f} x ours "
            f"({codec.peer_over_ours_wall:.2f} by the clock)",
        )


def _line(name: str, value: str) -> str:
    return f"{name:{NAME}} {value}"
