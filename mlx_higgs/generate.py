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

from .chunk_options import add_chunk_options, chunking
from .cli import Parser, add_model_options, note, run
from .types import InputError

if TYPE_CHECKING:
    from .delivery import Delivery
    from .footprint import Choice
    from .longform import LongJob, Said
    from .pieces import Chunking
    from .server import HiggsAudioServer, SpeechJob, SpeechRequest
    from .types import Speech

EPILOG = """\
examples:
  python -m mlx_higgs.generate --text "three one four one five"
  echo "nine two six" | python -m mlx_higgs.generate -o digits.flac
  python -m mlx_higgs.generate --text "three one four" --stream --play
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
    _add_input(parser)
    add_voice_options(parser)
    _add_pieces(parser)
    add_sampling_options(parser)
    _add_output(parser)
    return parser


def _add_input(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to say, with which model")
    source = group.add_mutually_exclusive_group()
    source.add_argument("--text", help="the text (default: standard input)")
    source.add_argument("--file", type=Path, help="a UTF-8 text file")
    source.add_argument(
        "--batch", metavar="JOBS", help="a file with one JSON object a line, see docs/batch.md"
    )
    add_model_options(group, "demo")
    group.add_argument("--no-normalize", action="store_true", help="take the text exactly as it is")


def _add_pieces(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("long texts, said piece by piece (not those of --batch)")
    add_chunk_options(group, ("auto", "sentence", "word", "speaker", "none"))


def add_voice_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("voice")
    group.add_argument(
        "--ref-audio",
        action="append",
        metavar="CLIP",
        help="clip to clone, 5 to 12 s; repeat for [SPEAKER0], [SPEAKER1], ...",
    )
    group.add_argument(
        "--ref-text",
        action="append",
        metavar="WORDS",
        help="the clip's exact words (default: CLIP.txt beside it)",
    )
    group.add_argument(
        "--voice",
        action="append",
        metavar="NAME",
        help="a name of python -m mlx_higgs.voices list, or profile:DESCRIPTION",
    )
    group.add_argument(
        "--ref-in-system", action="store_true", help="put the clips into the system turn"
    )
    group.add_argument("--scene", help='where it is spoken; "" for none')
    group.add_argument("--system", help="the whole system turn")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling (default: the checkpoint's)")
    group.add_argument("--temperature", type=float, help="0 takes the most likely code")
    group.add_argument(
        "--top-p", type=float, help="draw from the likeliest codes that make up this share"
    )
    group.add_argument("--top-k", type=int, help="0 is off")
    group.add_argument(
        "--ras-window",
        "--ras-win-len",
        type=int,
        help="frames looked back on for repeated codes; 0 is off",
    )
    group.add_argument(
        "--ras-max-repeats", "--ras-max-repeat", type=int, help="draw again a code this often in it"
    )
    group.add_argument("--seed", type=int, help="default: drawn and printed")
    group.add_argument(
        "--max-frames", "--max-tokens", "--max-new-frames", type=int, help="25 make a second"
    )
    group.add_argument(
        "--machine",
        choices=("boson", "transformers"),
        help="how speech ends: by Boson's rules (default) or transformers'",
    )
    group.add_argument(
        "--no-guards", action="store_true", help="do not stop silence, repetition, endless speech"
    )


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
    from . import audio, playback
    from .delivery import STEADY, choose
    from .sampling import SamplingParams
    from .server.request import check_clips, references
    from .streamed import check_options, stream

    request = build_request(arguments, read_text(arguments))
    if arguments.output != "-":
        audio.check_output(arguments.output, force=arguments.force)
    request.sampling(SamplingParams())
    chunks = chunking(arguments)
    check_options(arguments)
    clips = references(request)
    if arguments.play:
        playback.player()
    with ThreadPoolExecutor(1) as reader:  # no MLX in there: one thread owns it
        reading = reader.submit(check_clips, clips)
        choice = choose_plan(arguments)
        server = load_server(arguments, choice)
        if clips and choice.roomy:
            server.warm_up()
        reading.result()
    delivery = choose(arguments.latency) if arguments.stream else STEADY
    job = start(server, request, delivery, chunks)
    announce(server, request)
    if arguments.stream:
        stream(arguments, job, server.sampling_rate, lambda speech: _tell(arguments, speech, job))
    else:
        _deliver(arguments, speak(job), job)
    _check_pieces(job)


def read_text(arguments: argparse.Namespace) -> str:
    """The text of ``--text``, ``--file`` or standard input."""
    from .text import decode
    from .text import read_text as read_file

    if arguments.text is not None:
        return arguments.text
    if arguments.file is not None:
        return read_file(arguments.file)
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("There is no text: give --text, --file, or pipe it in.")
    return decode(sys.stdin.buffer.read(), "on standard input")


def build_request(arguments: argparse.Namespace, text: str) -> SpeechRequest:
    from .server import SpeechRequest

    return SpeechRequest(
        target_text=text,
        reference_audio_path=arguments.ref_audio,
        reference_text=arguments.ref_text,
        voice=arguments.voice,
        references_in_system=arguments.ref_in_system,
        scene=arguments.scene,
        system=arguments.system,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        max_new_frames=arguments.max_frames,
        ras_win_len=arguments.ras_window,
        ras_max_repeat=arguments.ras_max_repeats,
        fade_in_ms=arguments.fade_in_ms,
        fade_out_ms=arguments.fade_out_ms,
        seed=arguments.seed,
        normalize=False if arguments.no_normalize else None,
        machine=arguments.machine,
        guards=not arguments.no_guards,
    )


def choose_plan(
    arguments: argparse.Namespace, *, streams: int = 1, many_clips: bool = False
) -> Choice:
    """How the model is to be stored in this memory; said where that is no matter of course.

    Args:
        streams, many_clips: as ``load_server`` takes them.

    Raises:
        InputError: what would fit, if that does not. CheckpointError: it cannot be used.
    """
    from .footprint import choose
    from .loading import check_model, find_codec, resolve

    path = resolve(arguments.model, arguments.revision)
    check_model(path)
    choice = choose(
        path,
        find_codec(path, arguments.codec),
        arguments.quantize,
        arguments.memory_limit,
        streams=streams,
        late_clips=many_clips or arguments.adapter is not None,  # which has the talker read at once
    )
    if choice.line:
        note(choice.line)
    return choice


def load_server(
    arguments: argparse.Namespace,
    choice: Choice | None = None,
    *,
    streams: int = 1,
    many_clips: bool = False,
) -> HiggsAudioServer:
    """The server, whose talker stays on disk until it is needed: clips are encoded before.

    Args:
        choice: None chooses.
        streams: texts spoken at once.
        many_clips: more will come: keep the codec's encoder where there is room for it.
    """
    from .loading import load
    from .prefix import AUTO
    from .server import HiggsAudioServer

    choice = choice or choose_plan(arguments, streams=streams, many_clips=many_clips)
    higgs = load(
        choice.folder,
        codec=arguments.codec,
        tokenizer=arguments.tokenizer,
        adapter=arguments.adapter,
        quantize=choice.plan,
        read_now=False,
    )
    return HiggsAudioServer(
        higgs,
        voice_cache=None if arguments.no_voice_cache else AUTO,
        keep_encoder=many_clips and choice.roomy,
    )


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
    for piece in said:
        if piece.fault:
            where = f"{piece.start / speech.sampling_rate:.1f} s"
            note(f"warning: the piece at {where} {piece.fault}: {piece.text[:60]!r}")
    note(summary(speech, first_audio))
    if arguments.json:
        result = report(speech, arguments.output, first_audio, said)
        print(json.dumps(result), file=_lines(arguments), flush=True)
    elif arguments.output != "-":
        print(arguments.output, flush=True)


def said_by(job: SpeechJob | LongJob) -> Sequence[Said]:
    """The pieces of a long text; none where there was but one."""
    return getattr(job, "said", ())


def _check_pieces(job: SpeechJob | LongJob) -> None:
    """Raises Doubtful if some of a long text may be wrong."""
    from .takes import Doubtful

    said = said_by(job)
    if faults := [piece for piece in said if piece.fault]:
        raise Doubtful(len(faults), len(said))


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
