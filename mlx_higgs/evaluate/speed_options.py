"""The options of ``evaluate speed``; nothing here is slow to import."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..quantization import DTYPES

EPILOG = """\
examples:
  python -m mlx_higgs.evaluate speed --shape small --q-bits 32 8 4
  python -m mlx_higgs.evaluate speed --shape v2-3b --q-bits 16 8 6 4 --sweep --plot roofline.png
  python -m mlx_higgs.evaluate speed --model FOLDER --peer mlx-audio --json
"""
UNQUANTISED = (32, 16)


def add_speed_parser(tools: Any) -> None:
    """Add the tool to the subparsers of ``mlx_higgs.evaluate``."""
    parser = tools.add_parser(
        "speed",
        help="time per frame against what memory allows, and against mlx-audio",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_talker(parser)
    _add_work(parser)
    _add_output(parser)


def _add_talker(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which talker")
    group.add_argument("--model", metavar="DIR", help="folder or hub name")
    group.add_argument(
        "--shape", metavar="NAME", help="random weights of a named shape (default: small)"
    )
    group.add_argument(
        "--q-bits",
        type=int,
        nargs="+",
        metavar="BITS",
        help="widths to measure, one after the other: 2 to 8, or 16 and 32 for unquantised "
        "(default: the stored one, or that of --dtype)",
    )
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of what is not quantised (default: bfloat16 on a GPU, float32 on a CPU)",
    )


def _add_work(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--frames", type=int, default=16, metavar="N", help="a round (default: %(default)s)"
    )
    group.add_argument(
        "--rounds",
        type=int,
        default=6,
        metavar="N",
        help="each takes its turn once in each, in alternating order (default: %(default)s)",
    )
    group.add_argument(
        "--prompt",
        type=int,
        default=16,
        metavar="N",
        help="positions before the first frame (default: %(default)s)",
    )
    group.add_argument(
        "--batch", type=int, nargs="+", default=[1], metavar="N", help="streams at once"
    )
    group.add_argument(
        "--sweep",
        action="store_true",
        help="every loop, with joined and with separate projections, and batches of 1 to 16",
    )
    group.add_argument(
        "--peer", choices=("mlx-audio",), help="run its loop on the same weights, in turn with ours"
    )
    group.add_argument(
        "--codec",
        nargs="?",
        const="random",
        metavar="DIR",
        help="measure a codec, too (random weights of the real widths when no folder is named): "
        "its share, and the time to the first audio with and without the cached voice",
    )
    group.add_argument(
        "--voice-seconds",
        type=float,
        default=10.0,
        metavar="S",
        help="the reference clip of that (default: %(default)s)",
    )
    group.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object")
    group.add_argument("--plot", type=Path, metavar="FILE", help="draw the roofline (.png)")
