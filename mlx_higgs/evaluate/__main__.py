"""``python -m mlx_higgs.evaluate``: measure a checkpoint."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..cli import Parser, run
from ..types import GenerationError
from .options import add_speech_parser
from .speed_options import add_speed_parser


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mlx_higgs.evaluate", description="Measure a checkpoint.", allow_abbrev=False
    )
    tools = parser.add_subparsers(dest="tool", required=True, metavar="TOOL")
    parity = tools.add_parser("parity", help="the talker against the reference's golden file")
    parity.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parity.add_argument("--adapter", help="folder or hub name: what was trained on top")
    _add_common(parity)
    _add_common(tools.add_parser("codec", help="the codec against the reference's golden file"))
    add_speech_parser(tools)
    add_speed_parser(tools)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="folder or hub name")
    parser.add_argument("golden", type=Path, help="made by convert/dump_golden.py")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--tolerance", type=float, metavar="MAX", help="fail when a value is further off than this"
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run(build_parser(), evaluate, argv)


def evaluate(arguments: argparse.Namespace) -> None:
    if arguments.tool == "speech":
        from .speech import run_speech

        run_speech(arguments)
        return
    if arguments.tool == "speed":
        from .speed import run_speed

        run_speed(arguments)
        return
    if arguments.tool == "parity":
        from .parity import parity

        report = asdict(
            parity(arguments.checkpoint, arguments.golden, arguments.dtype, arguments.adapter)
        )
        worst, equal = report["max_abs"], report["greedy_rows_equal"]
    else:
        from .codec import codec_parity

        report = asdict(codec_parity(arguments.checkpoint, arguments.golden))
        worst, equal = report["decode_max_abs"], report["code_agreement"] == 1.0
    _print(report, arguments.json)
    if arguments.tolerance is not None and not (worst <= arguments.tolerance and equal):
        raise GenerationError(f"Not equal to the reference within {arguments.tolerance}.")


def _print(report: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        if value is not None:
            print(f"{name:24} {value:.3g}" if isinstance(value, float) else f"{name:24} {value}")


if __name__ == "__main__":
    raise SystemExit(main())
