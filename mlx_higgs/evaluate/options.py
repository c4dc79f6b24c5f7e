"""The options of ``evaluate speech``; nothing here is slow to import."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..cli import add_model_options

EPILOG = """\
examples:
  python -m mlx_higgs.evaluate speech
  python -m mlx_higgs.evaluate speech --model FOLDER --texts lines.txt --voice en_man --plot wer.png
  python -m mlx_higgs.evaluate speech --model FOLDER --references VOICES --limit 20
  python -m mlx_higgs.evaluate speech --recordings WAVS --model FOLDER
"""


def add_speech_parser(tools: Any) -> None:
    """Add the tool to the subparsers of ``mlx_higgs.evaluate``."""
    parser = tools.add_parser(
        "speech",
        help="speak, let a recogniser write it down, and compare voice, pitch and length",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model_options(parser.add_argument_group("which model"), None)
    _add_speech(parser)
    _add_voice(parser)
    add_recogniser_options(parser).add_argument(
        "--no-noise", action="store_true", help="leave the noise control out"
    )
    _add_output(parser)


def _add_speech(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--texts",
        type=Path,
        metavar="FILE",
        help="a text a line (default: drawn from the checkpoint's words, or 20 sentences)",
    )
    group.add_argument(
        "--recordings",
        type=Path,
        metavar="DIR",
        help="score NAME.wav with NAME.txt instead of a model; --model then only lends its words",
    )
    group.add_argument(
        "--original",
        type=Path,
        metavar="DIR",
        help="NAME.wav with NAME.txt of the same texts: for length, pitch, and their own errors",
    )
    group.add_argument("--limit", type=int, metavar="N", help="texts at most (drawn: default 40)")
    group.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each text")
    group.add_argument("--seed", type=int, default=0, help="the first (default: %(default)s)")
    group.add_argument("--temperature", type=float, help="default: the checkpoint's")
    group.add_argument("--scene", help='where it is spoken; "" for none')


def _add_voice(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("voice")
    group.add_argument("--ref-audio", metavar="CLIP", help="clip to clone, and to compare with")
    group.add_argument("--ref-text", metavar="WORDS", help="its words (default: CLIP.txt)")
    group.add_argument("--voice", metavar="NAME", help="a known voice, or profile:DESCRIPTION")
    group.add_argument(
        "--references",
        type=Path,
        metavar="DIR",
        help="clone each voice of NAME.wav (or NAME_1.wav, NAME_2.wav, ...) with NAME.txt, say "
        "every text in it, and count how often it is the nearest",
    )


def add_recogniser_options(parser: argparse.ArgumentParser) -> Any:
    """What `speech.build_recogniser` reads; the group, for more."""
    group = parser.add_argument_group("recogniser (pocketsphinx)")
    group.add_argument(
        "--grammar",
        default="auto",
        choices=("auto", "words", "digits", "full"),
        help="what it may hear: a loop over digits or over the words of the texts and the "
        "checkpoint, or its full English model (auto: the narrowest that fits)",
    )
    group.add_argument(
        "--vocabulary",
        type=Path,
        metavar="FILE",
        help="words of the loop, in place of the checkpoint's",
    )
    group.add_argument(
        "--pronunciations",
        type=Path,
        metavar="FILE",
        help="words it does not know, a line each: higgs HH IH G Z",
    )
    group.add_argument(
        "--whisper-model",
        type=Path,
        metavar="FILE",
        help="listen with whisper.cpp instead: a ggml model on this machine",
    )
    return group


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object, all runs in it")
    group.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures (.png)")
    group.add_argument(
        "--save-wavs", type=Path, metavar="DIR", help="keep each run as .wav and .txt"
    )
