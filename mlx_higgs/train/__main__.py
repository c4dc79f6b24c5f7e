"""``python -m mlx_higgs.train``: fine-tune a checkpoint, and prepare the data for it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..cli import Parser, run
from .options import add_options, read_options

EPILOG = """\
commands:
  data check|convert       training data: what is wrong with it, and from one form to another
  adapter import|export    adapters from PEFT (ms-swift) and back

examples:
  python -m mlx_higgs.train --data recordings --iters 600 --adapter-path my_voice
  python -m mlx_higgs.train -c my_voice.yaml --resume
  python -m mlx_higgs.train data check recordings
"""
COMMANDS = ("data", "adapter")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mlx_higgs.train",
        description="Fine-tune a checkpoint of Higgs Audio.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.spreads = True
    add_options(parser)
    return parser


def command_parser() -> argparse.ArgumentParser:
    """The parser of what is not training itself."""
    from .adapter_command import add_adapter_parser
    from .data.command import add_data_parser

    parser = Parser(prog="mlx_higgs.train", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_data_parser(commands)
    add_adapter_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] in COMMANDS:
        return run(command_parser(), run_command, words)
    return run(build_parser(), train, words)


def train(arguments: argparse.Namespace) -> None:
    options = read_options(arguments)
    from .run import run_training

    run_training(options)


def run_command(arguments: argparse.Namespace) -> None:
    from .adapter_command import run_adapter
    from .data.command import run_data

    (run_data if arguments.command == "data" else run_adapter)(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
