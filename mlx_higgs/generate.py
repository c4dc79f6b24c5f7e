"""``python -m mlx_higgs.generate``: text in, a sound file out."""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .cli import Parser, add_model_options, note, run
from .ranks import ALONE, Ranks, processes
from .server.opening import agree, checker, choose_plan, load_server
from .speech_options import (
    add_chunk_options,
    add_control_options,
    add_sampling_options,
    add_voice_options,
    build_request,
    chunking,
)
from .types import InputError

if TYPE_CHECKING:
    from .delivery import Delivery
    from .longform import LongJob, Said
    from .pieces import Chunking
    from .server import HiggsAudioServer, SpeechJob, SpeechRequest
    from .types import Speech

EPILOG = """\
examples:
  python -m mlx_higgs.generate --text "Hello friend, please turn the page."
  echo "nine two six" | python -m mlx_higgs.generate -o code.flac
  python -m mlx_higgs.generate --text "Good morning." --stream --play
  python -m mlx_higgs.generate --batch jobs.jsonl --output-dir speech
  python -m mlx_higgs.generate --model bosonai/higgs-tts-2-3b-base --quantize 8 \\
      --ref-audio clip.wav --ref-text "What the clip says." --text "Good morning."
"""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mlx_higgs.generate",
        description="Text to speech with Higgs Audio.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.spreads = True
    _add_input(parser)
    add_voice_options(parser)
    add_control_options(parser)
    _add_pieces(parser)
    add_sampling_options(parser)
    _add_output(parser)
    return parser


def _add_input(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to say, with which model")
    source = group.add_mutually_exclusive_group()
    source.add_argument("--text", help="the text (default: standard input)")
    source.add_argument("--file", type=Path, help="a UTF-8 text file; - is standard input")
    source.add_argument(
        "--batch", metavar="JOBS", help="a file with one JSON object a line, see docs/batch.md"
    )
    add_model_options(group, "demo")
    group.add_argument(
        "--shard",
        action="store_true",
        help="cut the model among the processes of mlx.launch, see docs/distributed.md",
    )
    group.add_argument("--no-normalize", action="store_true", help="take the text exactly as it is")


def _add_pieces(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("long texts, said piece by piece (not those of --batch)")
    add_chunk_options(group, ("auto", "sentence", "word", "speaker", "none"))


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    place = group.add_mutually_exclusive_group()
    place.add_argument(
        "-o",
        "--output",
        default="speech.wav",
        help="a .wav, .flac, .mp3, .opus or .ogg; - is a WAV on stdout (default: %(default)s)",
    )
    place.add_argument("--output-dir", metavar="FOLDER", help="of --batch; resumed if not empty")
    group.add_argument(
        "--max-batch", type=int, default=8, metavar="N", help="of --batch: at once (%(default)s)"
    )
    group.add_argument("--force", action="store_true", help="replace an existing file")
    group.add_argument("--play", action="store_true", help="play it as well")
    group.add_argument(
        "--stream", action="store_true", help="write it, and play it, while it is being made"
    )
    group.add_argument(
        "--latency",
        choices=("exact", "low"),
        default="exact",
        help="of --stream: low begins 7 frames earlier, its first chunk is approximate",
    )
    group.add_argument("--fade-in-ms", type=float, default=0.0, help="milliseconds")
    group.add_argument("--fade-out-ms", type=float, default=0.0, help="milliseconds")
    group.add_argument("--json", action="store_true", help="print the result as one JSON object")


def main(argv: Sequence[str] | None = None) -> int:
    return run(build_parser(), generate, argv)


def generate(arguments: argparse.Namespace) -> None:
    """Check everything that can be checked, then load, speak and write."""
    if arguments.batch is not None or arguments.output_dir is not None:
        from .jobs import speak_jobs

        return speak_jobs(arguments, build_request, load_server)
    ranks = _company(arguments)
    with ranks.together():
        request, chunks, server = _prepared(arguments, ranks)
    from .delivery import STEADY, choose

    delivery = choose(arguments.latency) if arguments.stream else STEADY
    job = start(server, request, delivery, chunks)
    announce(server, request)
    if not ranks.first:
        for _ in job:  # rank 0 writes it
            pass
    elif arguments.stream:
        from .streamed import stream

        stream(arguments, job, server.sampling_rate, lambda speech: _tell(arguments, speech, job))
    else:
        _deliver(arguments, speak(job), job)
    ranks.wait()  # the frame after the last is still being summed
    _check_pieces(job)


def _company(arguments: argparse.Namespace) -> Ranks:
    """The ranks that say one text together.

    Raises:
        InputError: several that would each say all of it, or one that is asked to share.
    """
    ranks = processes()
    if arguments.shard:
        from .shard import sharing

        sharing(arguments.adapter)
        if arguments.text is None and arguments.file in (None, Path("-")):
            raise InputError("mlx.launch does not pass on where a text ends: use --text or --file.")
        agree(arguments, ranks)
    elif ranks.size > 1:
        raise InputError(
            f"{ranks.size} processes were started for one text: add --shard, which cuts the model "
            "among them, or give them a --batch."
        )
    return ranks


def _prepared(
    arguments: argparse.Namespace, ranks: Ranks = ALONE
) -> tuple[SpeechRequest, Chunking, HiggsAudioServer]:
    """Everything that can be refused before the model speaks."""
    from . import audio, playback
    from .sampling import SamplingParams
    from .server.request import check_clips, references
    from .streamed import check_options

    request = build_request(arguments, read_text(arguments))
    if arguments.output != "-" and ranks.first:
        audio.check_output(arguments.output, force=arguments.force)
    request.sampling(SamplingParams())
    chunks = chunking(arguments)
    check_options(arguments)
    clips = references(request)
    if arguments.play and ranks.first:
        playback.player()
    with ThreadPoolExecutor(1) as reader:  # no MLX in there: one thread owns it
        reading = reader.submit(check_clips, clips)
        choice = choose_plan(arguments)
        checker(choice.folder)(request)
        server = load_server(arguments, choice)
        if clips and choice.roomy and ranks.size == 1:
            server.warm_up()
        reading.result()
    return request, chunks, server


def read_text(arguments: argparse.Namespace) -> str:
    """The text of ``--text``, ``--file`` or standard input."""
    from .text import decode
    from .text import read_text as read_file

    if arguments.text is not None:
        return arguments.text
    if arguments.file is not None and str(arguments.file) != "-":
        return read_file(arguments.file)
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("There is no text: give --text, --file, or pipe it in.")
    return decode(sys.stdin.buffer.read(), "on standard input")


def announce(server: HiggsAudioServer, request: SpeechRequest) -> None:
    """What a person should know of this checkpoint before listening."""
    defaults = server.higgs.defaults
    if defaults.notice:
        note(defaults.notice)
    if defaults.words:
        said = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", request.target_text.lower())
        strange = sorted(set(said) - set(defaults.words))
        if strange:
            more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
            count = len(defaults.words)
            note(f"Not among the {count} words it reads best: {', '.join(strange[:5])}{more}.")
    if not defaults.clones and (request.reference_audio_path or request.voice):
        note("This checkpoint cannot clone: the voice asked for is left out.")


def start(
    server: HiggsAudioServer, request: SpeechRequest, delivery: Delivery, chunks: Chunking
) -> SpeechJob | LongJob:
    """Everything that can still be refused is refused here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # announce says it
        return server.start_long(request, delivery, chunking=chunks)


def speak(job: SpeechJob | LongJob) -> Speech:
    """Run a job under a progress bar per frame."""
    from .progress import FrameBar

    with FrameBar(job.request.target_text, job.num_edge_rows) as progress:
        job.on_row(progress.show)
        return job.run()


def _deliver(arguments: argparse.Namespace, speech: Speech, job: SpeechJob | LongJob) -> None:
    from . import audio, playback

    if arguments.output == "-":
        audio.write_stdout(speech.pcm, speech.sampling_rate)
    else:
        audio.write(arguments.output, speech.pcm, speech.sampling_rate)
    _tell(arguments, speech, job)
    if arguments.play:  # last: whatever happens, the file is there and named
        playback.play(speech.pcm, speech.sampling_rate)


def _tell(arguments: argparse.Namespace, speech: Speech, job: SpeechJob | LongJob) -> None:
    first_audio, said = job.first_audio if arguments.stream else None, said_by(job)
    for piece in doubtful(job):
        what = f"the piece at {piece.start / speech.sampling_rate:.1f} s"
        what = "the speech" if len(said) == 1 else what
        tried = f" in all {piece.attempts} attempts" if piece.attempts > 1 else ""
        note(f"warning: {what} {piece.fault}{tried}: {piece.text[:60]!r}")
        if arguments.stream:
            note("What was heard cannot be drawn again: leave out --stream, or try another --seed.")
    note(summary(speech, first_audio))
    if arguments.json:
        result = report(speech, arguments.output, first_audio, said)
        print(json.dumps(result), file=_lines(arguments), flush=True)
    elif arguments.output != "-":
        print(arguments.output, flush=True)


def said_by(job: SpeechJob | LongJob) -> Sequence[Said]:
    """The pieces of a long text, or of one that may be drawn again; else none."""
    return getattr(job, "said", ())


def doubtful(job: SpeechJob | LongJob) -> list[Said]:
    """Those that may be wrong; not a single one that was cut where the request wants it."""
    from .takes import is_final

    said = said_by(job)
    alone = len(said) == 1
    return [p for p in said if p.fault and not (alone and is_final(p.stop_reason, job.request))]


def _check_pieces(job: SpeechJob | LongJob) -> None:
    """Raises Doubtful if some of it may be wrong."""
    from .takes import Doubtful

    if faults := doubtful(job):
        raise Doubtful(len(faults), len(said_by(job)))


def _lines(arguments: argparse.Namespace):
    return sys.stderr if arguments.output == "-" else sys.stdout


def summary(speech: Speech, first_audio: float | None = None) -> str:
    """One line: how long, how fast, how soon, why it ended, which seed."""
    warnings = {
        "length": " (cut: longer than this text should take, see --max-frames)",
        "silence": " (it fell silent)",
        "repetition": " (it repeated itself: try another --seed)",
    }
    soon = "" if first_audio is None else f", first sound after {first_audio:.2f} s"
    return (
        f"{speech.duration:.2f} s of speech in {speech.seconds:.2f} s "
        f"(real-time factor {speech.real_time_factor:.2f}{soon}), seed {speech.seed}, "
        f"stopped by {speech.stop_reason}{warnings.get(speech.stop_reason, '')}"
    )


def report(
    speech: Speech, path: str, first_audio: float | None = None, said: Sequence[Said] = ()
) -> dict:
    """The result without its samples, for ``--json``; ``first_audio`` where it was streamed."""
    fields = {k: v for k, v in asdict(speech).items() if k not in ("pcm", "codes")}
    return {
        "path": path,
        **fields,
        "duration": speech.duration,
        "real_time_factor": speech.real_time_factor,
        **({} if first_audio is None else {"first_audio": first_audio}),
        **({"pieces": [asdict(piece) for piece in said]} if said else {}),
    }


if __name__ == "__main__":
    raise SystemExit(main())
