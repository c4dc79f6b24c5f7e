"""``python -m mlx_higgs.voices``: the voices there are, and your own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import Parser, note, run
from ..types import HiggsError, InputError

if TYPE_CHECKING:
    from .check import Measures, Verdict
    from .library import StoredVoice, VoiceLibrary

EPILOG = """\
examples:
  python -m mlx_higgs.voices add anna clip.mp3 --text "Exactly what the clip says."
  python -m mlx_higgs.voices check anna
  python -m mlx_higgs.generate --voice anna --text "Good morning."
  python -m mlx_higgs.voices export anna -o voices.zip
"""
SHOWN = 60  # characters of a transcript in a table


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mlx_higgs.voices",
        description="Keep the voices that --voice names.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_add(_add_command(commands, "add", add, "prepare a clip and keep it as a voice"))
    listing = _add_command(commands, "list", list_all, "all voices")
    showing = _add_command(commands, "show", show, "one voice: its clip, its words, its past")
    showing.add_argument("name", metavar="NAME")
    checking = _add_command(commands, "check", check, "is it a good reference? 1 if it is bad")
    checking.add_argument("voices", nargs="+", metavar="NAME_OR_CLIP", help="or a sound file")
    checking.add_argument("--text", help="the clip's exact words (default: CLIP.txt beside it)")
    removing = _add_command(commands, "remove", remove, "delete voices of your own")
    removing.add_argument("names", nargs="+", metavar="NAME")
    _add_archive(commands)
    for each in (listing, showing, checking):
        each.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_command(commands: Any, name: str, command: Any, words: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=words, description=words, allow_abbrev=False)
    parser.set_defaults(run=command)
    parser.add_argument(
        "--folder",
        type=Path,
        help="your own voices (default: the first of $MLX_HIGGS_VOICES, or the user's data folder)",
    )
    return parser


def _add_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="letters, digits, _ . and -")
    parser.add_argument("clip", type=Path, metavar="CLIP", help="wav, flac, mp3, ogg or opus")
    parser.add_argument("--text", help="the clip's exact words (default: CLIP.txt beside it)")
    parser.add_argument("--description", help="a note about the voice")
    parser.add_argument("--consent", help="a note of who allowed its use")
    parser.add_argument("--replace", action="store_true", help="a voice of that name")
    parser.add_argument("--model", help="folder or hub name: encode the clip for it now")
    parser.add_argument("--codec", help="folder or hub name, when not beside the model")
    parser.add_argument("--revision", help="commit or branch of a hub model")
    parser.add_argument("--json", action="store_true", help="print the voice as a JSON object")


def _add_archive(commands: Any) -> None:
    exporting = _add_command(commands, "export", export, "write voices to a zip")
    exporting.add_argument("names", nargs="+", metavar="NAME")
    exporting.add_argument("-o", "--output", type=Path, default=Path("voices.zip"))
    exporting.add_argument("--force", action="store_true", help="replace an existing file")
    importing = _add_command(
        commands, "import", import_all, "add all voices of a zip or a folder, or none"
    )
    importing.add_argument("source", type=Path, metavar="ZIP_OR_FOLDER")
    importing.add_argument("--replace", action="store_true", help="voices of the same names")


def main(argv: Sequence[str] | None = None) -> int:
    return run(build_parser(), lambda arguments: arguments.run(arguments), argv)


def add(arguments: argparse.Namespace) -> None:
    """Keep a voice, and say what was done to its clip and what is not good about it."""
    from .check import check_clip

    library = _library(arguments)
    words = _words(arguments.clip, arguments.text)
    about = {"description": arguments.description, "consent": arguments.consent}
    voice = library.add(
        arguments.name,
        arguments.clip,
        words,
        replace=arguments.replace,
        about={key: value for key, value in about.items() if value},
    )
    for line in voice.about["done"]:
        note(f"{voice.name}: {line}")
    _, verdicts = check_clip(voice.clip, voice.transcript)
    for verdict in verdicts:
        if verdict.level != "good":
            note(f"{voice.name}: {verdict.level}: {verdict.about}: {verdict.message}")
    if arguments.model is not None:
        _encode(voice, arguments)
    print(json.dumps(_fields(voice)) if arguments.json else voice.clip)


def _encode(voice: StoredVoice, arguments: argparse.Namespace) -> None:
    from .codes import keep_codes

    frames, folder = keep_codes(
        voice.clip, arguments.model, codec=arguments.codec, revision=arguments.revision
    )
    kept = f"kept in {folder}" if folder else "not kept: a model this small encodes in no time"
    note(f"{voice.name}: {frames} frames of codes, {kept}")


def list_all(arguments: argparse.Namespace) -> None:
    """A table, or a list of objects."""
    voices = _library(arguments).all()
    if arguments.json:
        return print(json.dumps([_fields(voice) for voice in voices], indent=1))
    if not voices:
        return note("There are no voices yet: python -m mlx_higgs.voices add NAME CLIP.")
    width = max(len(voice.name) for voice in voices)
    for voice in voices:
        words = _plain(voice.transcript)
        words = words if len(words) <= SHOWN else f"{words[: SHOWN - 3]}..."
        print(f"{voice.name:<{width}}  {words:<{SHOWN}}  {voice.clip}")


def show(arguments: argparse.Namespace) -> None:
    voice = _library(arguments).get(arguments.name)
    if arguments.json:
        return print(json.dumps(_fields(voice), indent=1))
    rows = {"name": voice.name, "clip": voice.clip, "words": _plain(voice.transcript)}
    for key, value in [*rows.items(), *voice.about.items()]:
        shown = value if isinstance(value, str | Path) else json.dumps(value)
        print(f"{_plain(key):<14} {_plain(str(shown))}")


def check(arguments: argparse.Namespace) -> None:
    """Say of each what is good and what is not.

    Raises:
        HiggsError: one of them is bad.
    """
    from .check import check_clip

    if arguments.text is not None and len(arguments.voices) > 1:
        raise InputError("--text is what one clip says: check one at a time.")
    library = _library(arguments)
    checked = {}
    for asked in arguments.voices:
        clip, words = _clip_and_words(library, asked, arguments.text)
        checked[asked] = check_clip(clip, words)
    if arguments.json:
        print(json.dumps([_report(asked, *result) for asked, result in checked.items()], indent=1))
    else:
        for asked, (_, verdicts) in checked.items():
            print(*(f"{asked}: {v.level:<4} {v.about}: {v.message}" for v in verdicts), sep="\n")
    bad = [asked for asked, (_, verdicts) in checked.items() if _worst(verdicts) == "bad"]
    if bad:
        raise HiggsError(f"{', '.join(bad)}: not a good reference yet, see the lines that say bad.")


def _clip_and_words(library: VoiceLibrary, asked: str, text: str | None) -> tuple[Path, str]:
    if asked not in library.names() and Path(asked).is_file():
        return Path(asked), _words(Path(asked), text)
    voice = library.get(asked)
    return voice.clip, text or voice.transcript


def _report(asked: str, measures: Measures, verdicts: list[Verdict]) -> dict[str, Any]:
    return {
        "voice": asked,
        "verdict": _worst(verdicts),
        **asdict(measures),
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }


def _worst(verdicts: Iterable[Verdict]) -> str:
    return max((v.level for v in verdicts), key=("good", "poor", "bad").index)


def remove(arguments: argparse.Namespace) -> None:
    library = _library(arguments)
    for name in arguments.names:
        library.remove(name)
        note(f"{name} is gone.")


def export(arguments: argparse.Namespace) -> None:
    from .archive import export_voices

    library = _library(arguments)
    voices = [library.get(name) for name in dict.fromkeys(arguments.names)]
    print(export_voices(voices, arguments.output, force=arguments.force))


def import_all(arguments: argparse.Namespace) -> None:
    from .archive import import_voices

    for voice in import_voices(_library(arguments), arguments.source, replace=arguments.replace):
        print(voice.clip)


def _library(arguments: argparse.Namespace) -> VoiceLibrary:
    from .library import VoiceLibrary

    return VoiceLibrary(arguments.folder)


def _words(clip: Path, text: str | None) -> str:
    if text is not None:
        return text
    if not clip.is_file():
        raise InputError(f"The clip {clip} does not exist, or is no file.")
    from ..text import read_text

    beside = clip.with_suffix(".txt")
    if not beside.is_file():
        raise InputError(f"{clip} has no words: give --text, or write them to {beside}.")
    return read_text(beside)


def _fields(voice: StoredVoice) -> dict[str, Any]:
    return {**asdict(voice), "clip": str(voice.clip)}


def _plain(text: str) -> str:
    """One line that does nothing to a terminal."""
    return "".join(char if char.isprintable() else " " for char in text).strip()


if __name__ == "__main__":
    raise SystemExit(main())
