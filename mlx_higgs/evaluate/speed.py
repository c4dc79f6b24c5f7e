"""``evaluate speed``: time per frame, what memory would allow, and what mlx-audio takes."""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Iterator
from typing import get_args

import mlx.core as mx

from ..cli import note
from ..frames import prefill
from ..models.base import SpeechModel
from ..step import Loop, fastest_loop
from ..types import Prompt
from .bandwidth import BUFFER, CopyBandwidth, copy_bandwidth, fit_line
from .codec_speed import CodecSpeed, measure_codec
from .contenders import batch_work, drawn_prompt, endless, floor_work, talker_work
from .first_audio import FirstAudio, measure_first_audio
from .machine import this_machine
from .peers import Peer
from .plot import check_plot
from .reads import frame_bytes
from .roofline import plot_roofline
from .rounds import Contender, Timing, ratio, take_turns
from .shapes import Width
from .speed_job import Job, prepare
from .speed_report import Row, SpeedReport, WidthReport, against, show, split_rtf

OURS, FLOOR, PEER = "ours", "floor", "peer"


def run_speed(arguments: argparse.Namespace) -> None:
    """The command: check, measure, print.

    Raises:
        InputError: an option, file or package that is missing; before anything is measured.
    """
    if arguments.plot:
        check_plot(arguments.plot)
    job = prepare(arguments)
    report = measure(job)
    if arguments.plot:
        plot_roofline(report, arguments.plot)
    print(json.dumps(report.to_dict()) if arguments.json else "\n".join(show(report)), flush=True)


def measure(job: Job) -> SpeedReport:
    """All widths one after the other; within a width everything takes turns."""
    arguments = job.arguments
    machine, copies, widths = this_machine(), [copy_bandwidth(BUFFER)], []
    for width in job.widths:
        note(f"{width.label} ...")
        widths.append(measure_width(job, width))
        gc.collect()  # a compiled step and its model hold each other
        mx.clear_cache()
        copies.append(copy_bandwidth(BUFFER))
    copy = CopyBandwidth(max(c.mlx for c in copies), max(c.numpy for c in copies))
    widths = [against(width, copy) for width in widths]
    codec, first = _sound(job)
    return SpeedReport(
        machine=machine,
        talker=job.talker,
        weights=str(job.folder) if job.folder else f"random weights, seed {arguments.seed}",
        frames=arguments.frames,
        rounds=arguments.rounds,
        prompt=arguments.prompt,
        seed=arguments.seed,
        peer_name=job.peer,
        copy_mlx_gb_per_s=copy.mlx,
        copy_numpy_gb_per_s=copy.numpy,
        widths=widths,
        fit=fit_line([w.bytes_per_frame for w in widths], [w.ms_per_frame for w in widths]),
        rtf=split_rtf(widths[0], codec, first),
        codec=codec,
        first_audio=first,
    )


def measure_width(job: Job, width: Width) -> WidthReport:
    """One width: our loops, the floor, the peer and batches."""
    arguments = job.arguments
    model = endless(job.build_fused(width))
    prompt = drawn_prompt(model, arguments.prompt, arguments.seed)
    prefill_ms, peak = _alone(model, prompt, arguments.seed)
    others, rival = _others(job, width, prompt)
    contenders = [
        Contender(OURS, talker_work(model, prompt, arguments.seed)),
        Contender(FLOOR, floor_work(model)),
        *_loops(model, prompt, arguments),
        *others,
    ]
    timings = take_turns(contenders, arguments.frames, arguments.rounds)
    ours, floor = timings.pop(OURS), timings.pop(FLOOR)
    peer = timings.pop(PEER, None)
    peer_bytes = sum(reading.nbytes for reading in rival.readings()) if rival else None
    del contenders, others
    rival = rival if rival and rival.batches else None
    batches, batch_floors, peer_batches = _batches(model, prompt, job, rival)
    read = frame_bytes(model)
    position = arguments.prompt + arguments.frames * arguments.rounds // 2
    return WidthReport(
        width=width.label,
        loop=fastest_loop(model),
        ms_per_frame=ours.ms,
        cpu_ms_per_frame=ours.cpu_ms,
        frames_per_second=ours.frames_per_second,
        bytes_per_frame=read.at(position),
        bytes_by_part=read.parts,
        kv_bytes_per_position=read.kv_per_position,
        position=position,
        prefill_ms=prefill_ms,
        peak_gb=peak,
        loops=[_row(name, one, ours) for name, one in {OURS: ours, **timings}.items()],
        floor=_row(FLOOR, floor, ours),
        peer=_row(PEER, peer, ours) if peer else None,
        peer_bytes_per_frame=peer_bytes,
        batches=batches,
        batch_floors=batch_floors,
        peer_batches=peer_batches,
    )


def _alone(model: SpeechModel, prompt: Prompt, seed: int) -> tuple[float, float]:
    """Milliseconds of a prompt the second time, and peak GB of prompt and loop."""
    mx.reset_peak_memory()
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        mx.eval([(layer.keys, layer.values) for layer in prefill(model, prompt)])
        seconds.append(time.perf_counter() - started)
    talker_work(model, prompt, seed)(2)
    return 1000 * seconds[-1], mx.get_peak_memory() / 1e9


def _loops(
    model: SpeechModel, prompt: Prompt, arguments: argparse.Namespace
) -> Iterator[Contender]:
    if arguments.sweep:
        for loop in get_args(Loop):
            if loop != "auto":
                yield Contender(loop, talker_work(model, prompt, arguments.seed, loop))


def _others(job: Job, width: Width, prompt: Prompt) -> tuple[list[Contender], Peer | None]:
    """Those that hold a talker of their own: separate projections, and the peer."""
    arguments, found, peer = job.arguments, [], None
    if not (arguments.sweep or job.peer):
        return found, peer
    model = endless(job.build(width))
    if arguments.sweep:
        found.append(Contender("separate q, k, v", talker_work(model, prompt, arguments.seed)))
    if job.peer:
        peer = Peer(model, width.quantization)
        found.append(Contender(PEER, peer.work(prompt)))
    return found, peer


def _batches(
    model: SpeechModel, prompt: Prompt, job: Job, peer: Peer | None
) -> tuple[list[Row], list[Row], list[Row]]:
    """Batches and the needed products alone, in turn; each against the smallest of its kind.

    The peer's, which come last, are each against ours of as many streams.
    """
    arguments, seed = job.arguments, job.arguments.seed
    ours = [Contender(f"{n}", batch_work(model, prompt, seed, n), n) for n in job.batches]
    floors = [Contender(f"{FLOOR} {n}", floor_work(model, n), n) for n in job.batches]
    theirs = [Contender(f"{PEER} {n}", peer.batch_work(prompt, n), n) for n in job.batches if peer]
    timings = take_turns([*ours, *floors, *theirs], arguments.frames, arguments.rounds)

    def rows(kind: list[Contender]) -> list[Row]:
        return [_row(one.name, timings[one.name], timings[kind[0].name]) for one in kind]

    pairs = zip(theirs, ours[: len(theirs)], strict=True)
    against_ours = [_row(a.name, timings[a.name], timings[b.name]) for a, b in pairs]
    return rows(ours), rows(floors), against_ours


def _row(name: str, timing: Timing, first: Timing) -> Row:
    quickest, slowest = timing.spread_ms
    per_frame = first.streams / timing.streams
    return Row(
        name=name,
        streams=timing.streams,
        ms_per_frame=timing.ms,
        quickest_ms=quickest,
        slowest_ms=slowest,
        cpu_ms_per_frame=timing.cpu_ms,
        frames_per_second=timing.frames_per_second,
        cpu_ratio=ratio(timing.cpu, first.cpu) * per_frame,
        wall_ratio=ratio(timing.wall, first.wall) * per_frame,
    )


def _sound(job: Job) -> tuple[CodecSpeed | None, FirstAudio | None]:
    """The codec, and a whole request with the first width."""
    if job.codec is None:
        return None, None
    note("codec ...")
    arguments, model = job.arguments, endless(job.build_fused(job.widths[0]))
    speed = measure_codec(
        job.codec,
        job.codec_weights,
        frames=arguments.frames,
        rounds=arguments.rounds,
        seed=arguments.seed,
        peer=job.peer,
    )
    return speed, measure_first_audio(model, job.codec, arguments.voice_seconds, arguments.seed)
