"""The options of ``evaluate quant``; nothing here is slow to import."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import add_recogniser_options

EPILOG = """\
A model is a folder, a hub name, or either with @ and a way to quantise it while it is loaded.
examples:
  python -m mlx_higgs.evaluate quant --reference demo --candidate demo@q8 --candidate demo@q4
  python -m mlx_higgs.evaluate quant --reference FOLDER --candidate FOLDER-q4 --plot q4.png --record
  python -m mlx_higgs.evaluate quant --shape v2-3b v3-4b
"""


def add_quant_parser(tools: Any) -> None:
    """Add the tool to the subparsers of ``mlx_higgs.evaluate``."""
    parser = tools.add_parser(
        "quant",
        help="what fewer bits do to what is said, and how: which quantised checkpoint to choose",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_models(parser)
    _add_work(parser)
    add_recogniser_options(parser)
    _add_output(parser)


def _add_models(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which models")
    group.add_argument("--reference", metavar="MODEL", help="the original, or the best there is")
    group.add_argument(
        "--candidate",
        nargs="+",
        action="extend",
        default=[],
        metavar="MODEL",
        help="of the same shape, in fewer bits; may be given again",
    )
    group.add_argument("--codec", help="folder or hub name of all, when not beside the models")
    group.add_argument("--tokenizer", help="folder or hub name of all, when not beside the models")
    group.add_argument(
        "--shape",
        nargs="+",
        default=[],
        metavar="NAME",
        help="in place of models: bytes of every recipe at these shapes, from arithmetic alone",
    )


def _add_work(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--texts",
        type=Path,
        metavar="FILE",
        help="a text a line (default: drawn from the reference's words, or plain sentences)",
    )
    group.add_argument(
        "--limit", type=int, default=50, metavar="N", help="texts at most (default: %(default)s)"
    )
    group.add_argument(
        "--seeds",
        type=int,
        default=4,
        metavar="N",
        help="free runs of each text (default: %(default)s)",
    )
    group.add_argument("--seed", type=int, default=0, help="the first (default: %(default)s)")
    group.add_argument(
        "--temperature", type=float, help="of all free runs (default: each model's own choice)"
    )
    group.add_argument(
        "--max-batch",
        type=int,
        default=8,
        metavar="N",
        help="texts at once (default: %(default)s)",
    )
    group.add_argument(
        "--only-forced",
        action="store_true",
        help="no free runs: only what each would say after the reference's words (minutes)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    form = group.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object, all runs in it")
    form.add_argument(
        "--markdown", action="store_true", help="print a table for a page, a model a line"
    )
    group.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw what is lost by what is read (.png)"
    )
    group.add_argument(
        "--record",
        action="store_true",
        help="write the figures into each candidate's config.json, where loading finds them",
    )
