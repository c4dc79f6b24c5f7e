"""``python -m mlx_higgs.narrate``: a book or a dialogue in, sound files and subtitles out."""

from __future__ import annotations

import argparse
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import Parser, add_model_options, note, run
from ..speech_options import (
    add_chunk_options,
    add_control_options,
    add_sampling_options,
    add_voice_options,
    chunking,
)
from ..types import InputError

if TYPE_CHECKING:
    from ..pieces import Chunking, Piece
    from ..ranks import Ranks
    from ..server import HiggsAudioServer
    from .binding import Part
    from .manuscript import Manuscript
    from .narration import Narration, Role
    from .shelf import Shelf
    from .volumes import Binding, Volume, Volumes

EPILOG = """\
examples:
  python -m mlx_higgs.narrate book.epub --voice en_woman -o book.mp3 --subtitles srt
  python -m mlx_higgs.narrate book.txt --output-dir book --format opus
  python -m mlx_higgs.narrate dialogue.txt --cast Anna=en_woman --cast Ben=en_man -o dialogue.wav

The exit code is 3 when all was said, but not all of it well: see the warnings.
"""
LOUDNESS = -19.0  # LUFS; mono, as loud as the -16 of stereo that podcasts have
LEAST_LOUDNESS = -60.0
TOLD = 20  # faults named on standard error
SHOWN = 60  # characters of a text in a line


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mlx_higgs.narrate",
        description="Read a book or a dialogue aloud. Stopped, it goes on where it was.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.spreads = True
    group = parser.add_argument_group("what to read, with which model")
    group.add_argument("file", type=Path, help="a .txt, .md or .epub, or a dialogue script")
    group.add_argument(
        "--script",
        action=argparse.BooleanOptionalAction,
        help="the text is a dialogue of [Name] turns (default: if it begins with one)",
    )
    add_model_options(group, "demo")
    group.add_argument("--no-normalize", action="store_true", help="take the text exactly as it is")
    add_voice_options(parser)
    add_control_options(parser)
    parser.add_argument(
        "--cast",
        action="append",
        default=[],
        metavar="NAME=VOICE",
        help="who speaks a name's turns: a voice as --voice has it, or a clip with its .txt",
    )
    _add_pieces(parser)
    add_sampling_options(parser)
    _add_output(parser)
    parser.set_defaults(fade_in_ms=0.0, fade_out_ms=0.0)  # joints have their own
    return parser


def _add_pieces(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pieces")
    add_chunk_options(group, ("auto", "sentence", "word", "none"))
    group.add_argument(
        "--shared-context",
        action="store_true",
        help="the context is what anybody said, not the speaker alone",
    )
    group.add_argument(
        "--loudness",
        default=str(LOUDNESS),
        metavar="LUFS",
        help="what every voice is brought to, or off (%(default)s)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    place = group.add_mutually_exclusive_group()
    place.add_argument(
        "-o", "--output", help="a .wav, .flac, .mp3, .opus or .ogg (default: FILE.wav)"
    )
    place.add_argument("--output-dir", type=Path, metavar="FOLDER", help="a file per chapter")
    group.add_argument("--format", default="wav", help="of --output-dir: wav, mp3, ... (wav)")
    group.add_argument(
        "--subtitles", default="", metavar="FORMATS", help="beside each sound: srt,vtt,json"
    )
    group.add_argument("--keep-pieces", action="store_true", help="keep them when all is done")
    group.add_argument("--force", action="store_true", help="replace existing files")
    group.add_argument("--json", action="store_true", help="print the result as one JSON object")


def main(argv: Sequence[str] | None = None) -> int:
    return run(build_parser(), narrate, argv)


def narrate(arguments: argparse.Namespace) -> None:
    """Check everything that can be checked, say what is missing, and write the files.

    Raises:
        InputError: nothing could be done. Doubtful: some of what was said may be wrong.
    """
    from ..ranks import processes
    from .narration import Narration
    from .shelf import shared_shelf
    from .volumes import Volumes, shelf_path

    ranks = processes()
    with ranks.together():
        chunks, manuscript, speakers = _read(arguments)
        volumes, chapters, binding = _plan(arguments, manuscript, chunks)
        model = computed_by(arguments)
    model = ranks.told(model)
    with shared_shelf(shelf_path(_output(arguments), arguments.output_dir), ranks) as shelf:
        book = Volumes(volumes, manuscript, binding, shelf, chapters, arguments.file)
        with ranks.together():
            if ranks.first:
                book.check(force=arguments.force)
                arguments.seed = _seed(arguments, shelf)
        seed = arguments.seed = ranks.told(arguments.seed)
        load = cache(lambda: _server(arguments, speakers, book.pieces))

        def narration() -> Narration:
            shared = arguments.shared_context
            return Narration(load, speakers, shelf, chunks, seed, model=model, shared=shared)

        if ranks.size > 1:
            _help(narration(), book, ranks)
        if not ranks.first:
            return
        _say(narration(), book)
        book.finish()
        result = _result(book, seed)
        if not arguments.keep_pieces:
            shelf.remove()
    _report(arguments, result)


def _read(arguments: argparse.Namespace) -> tuple[Chunking, Manuscript, dict[str, Role]]:
    """What to say, in which pieces, in whose voices."""
    from ..server.opening import checker
    from ..sources import resolve
    from .cast import read_cast, roles
    from .manuscript import read

    chunks = chunking(arguments).settled(*_preferred(arguments))
    cast = read_cast(arguments.cast)
    script = True if arguments.script is None and cast else arguments.script
    manuscript = read(arguments.file, chunks, script=script, names=cast)
    speakers = roles(arguments, cast, manuscript.names)
    checker(resolve(arguments.model, arguments.revision))(speakers[""].request)
    return chunks, manuscript, speakers


def computed_by(arguments: argparse.Namespace) -> str:
    """Stands for all that decides about the samples, beside the request.

    Raises:
        InputError, CheckpointError, OSError: as ``jobs.model_hash``.
    """
    from importlib.metadata import version

    import mlx.core as mx

    from .. import __version__
    from ..jobs import model_hash
    from .narration import digest

    device = str(mx.default_device().type)
    return digest(__version__, version("mlx"), device, model_hash(arguments))


def _preferred(arguments: argparse.Namespace) -> tuple[int | None, int]:
    """What the checkpoint says of letters and context."""
    from ..defaults import Defaults
    from ..sources import check_model, resolve

    folder = resolve(arguments.model, arguments.revision)
    check_model(folder)
    defaults = Defaults.from_pretrained(folder)
    return defaults.letters, defaults.context


def _output(arguments: argparse.Namespace) -> Path:
    return Path(arguments.output or arguments.file.with_suffix(".wav").name)


def _plan(
    arguments: argparse.Namespace, manuscript: Manuscript, chunks: Chunking
) -> tuple[list[Volume], Path | None, Binding]:
    """The files to make, where chapter times go, and how they are made."""
    from .volumes import CHAPTERS, Binding, files, one_file

    formats = _formats(arguments.subtitles)
    binding = Binding(chunks, formats, _loudness(arguments.loudness))
    folder = arguments.output_dir
    if folder is None:
        path = _output(arguments)
        _check_suffix(path.suffix, f"The output {path}")
        if not path.parent.is_dir():
            raise InputError(f"The folder {path.parent} does not exist.")
        chapters = path.with_suffix(f".{CHAPTERS}") if len(manuscript.titles) > 1 else None
        return one_file(manuscript, path), chapters, binding
    suffix = f".{arguments.format.lower().lstrip('.')}"
    _check_suffix(suffix, f"--format {arguments.format}")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be made: {error}.") from error
    return files(manuscript, folder, suffix), folder / CHAPTERS, binding


def _check_suffix(suffix: str, what: str) -> None:
    from ..audio import FORMATS

    if suffix.lower() not in FORMATS:
        raise InputError(f"{what} has no known suffix: use one of {', '.join(FORMATS)}.")


def _formats(names: str) -> list[str]:
    from .subtitles import FORMATS

    found = [f".{name.strip().lower().lstrip('.')}" for name in names.split(",") if name.strip()]
    for suffix in found:
        if suffix not in FORMATS:
            known = ", ".join(known.lstrip(".") for known in FORMATS)
            raise InputError(f"There are no subtitles {suffix.lstrip('.')!r}: use {known}.")
    return found


def _loudness(value: str) -> float | None:
    """LUFS, or None for ``off``."""
    if value.lower() in ("off", "none"):
        return None
    try:
        level = float(value)
    except ValueError:
        level = 1.0
    if not LEAST_LOUDNESS <= level <= 0:
        raise InputError(f"--loudness is {value}: it is {LEAST_LOUDNESS:.0f} to 0 LUFS, or off.")
    return level


def _seed(arguments: argparse.Namespace, shelf: Shelf) -> int:
    """The one asked for, that of the run before, or a new one; noted for the next run."""
    seed = arguments.seed
    if seed is None:
        seed = shelf.about().get("seed")
    if not isinstance(seed, int):
        seed = secrets.randbelow(2**32)
    shelf.note({**shelf.about(), "seed": seed})
    return seed


def _help(narration: Narration, book: Volumes, ranks: Ranks) -> None:
    """Put this rank's part of the pieces on the shelf, and wait for the others'."""
    pieces = book.pieces
    with ranks.together(), _progress(len(pieces)) as told:
        for _ in told(narration.help(pieces, ranks)):
            pass


def _say(narration: Narration, book: Volumes) -> None:
    """Every piece of the book that is not there; its files as soon as they can be."""
    pieces = book.pieces
    with _progress(len(pieces)) as told:
        for _ in book.take(told(narration.parts(pieces))):
            pass


@contextmanager
def _progress(count: int) -> Iterator[Callable[[Iterator[tuple[Part, bool]]], Iterator[Part]]]:
    """What passes parts on, under a progress bar."""
    from ..progress import JobBar

    with JobBar(0, count) as progress:

        def told(parts: Iterator[tuple[Part, bool]]) -> Iterator[Part]:
            for part, made in parts:
                kept = part.kept
                progress.advance(kept.samples / kept.sampling_rate if made else 0.0)
                if kept.fault and made:
                    progress.say(f"warning: a piece {kept.fault}: {part.piece.text[:SHOWN]!r}")
                yield part

        try:
            yield told
        except (KeyboardInterrupt, OSError):
            progress.say("Stopped. The same command goes on with what is left.")
            raise


def _server(
    arguments: argparse.Namespace, speakers: dict[str, Role], pieces: Sequence[Piece]
) -> HiggsAudioServer:
    """The model, when the first piece is missing."""
    from ..generate import announce
    from ..server.opening import load_server

    server = load_server(arguments, many_clips=len(speakers) > 1)
    text = " ".join(piece.text for piece in pieces)
    announce(server, replace(speakers[""].request, target_text=text))
    return server


def _result(book: Volumes, seed: int) -> dict[str, Any]:
    return {
        "paths": book.paths,
        "seed": seed,
        "pieces": len(book.pieces),
        "duration": book.seconds,
        "chapters": book.chapters(),
        "faults": book.faults(),
    }


def _report(arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    """Say what was made; raises Doubtful if some of it may be wrong."""
    from ..takes import Doubtful

    faults = result["faults"]
    for fault in faults[:TOLD]:
        where = f"{fault['file']}: the piece at {fault['start']:.1f} s"
        tries = f"{fault['attempts']} attempt{'s' if fault['attempts'] > 1 else ''}"
        note(f"{where} {fault['fault']} ({tries}): {fault['text'][:SHOWN]!r}")
    if len(faults) > TOLD:
        note(f"and {len(faults) - TOLD} more; --json names them all")
    seconds, pieces, seed = result["duration"], result["pieces"], result["seed"]
    note(f"{seconds:.1f} s of speech in {pieces} pieces, seed {seed}")
    if arguments.json:
        print(json.dumps(result, ensure_ascii=False), flush=True)
    else:
        print("\n".join(result["paths"]), flush=True)
    if faults:
        raise Doubtful(len(faults), pieces)


if __name__ == "__main__":
    raise SystemExit(main())
