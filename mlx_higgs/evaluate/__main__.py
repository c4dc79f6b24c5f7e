"""``python -m mlx_higgs.evaluate``: measure a checkpoint."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..cli import Parser, run
from ..types import GenerationError, InputError
from .options import add_speech_parser
from .quant_options import add_quant_parser
from .speed_options import add_speed_parser

GATES = """\
A golden of convert/dump_golden.py is compared value by value; --tolerance makes it fail.
Two more kinds are gates, which pass or fail (exit code 1) by limits of their own:
  prompt_tokens, topk_ids, ...     log-probabilities of words, as openinfer keeps them for Qwen3
  prompt.input_ids_padded, ...     the codes a prompt leads to, as its fork keeps them for Higgs v3
A plain Qwen3 folder may stand before the first.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mlx_higgs.evaluate", description="Measure a checkpoint.", allow_abbrev=False
    )
    tools = parser.add_subparsers(dest="tool", required=True, metavar="TOOL")
    parity = tools.add_parser(
        "parity",
        help="the talker against a golden file: of the reference, or of a gate",
        epilog=GATES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parity.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="compute in this width (default: float32; at a gate the golden's)",
    )
    parity.add_argument("--adapter", help="folder or hub name: what was trained on top")
    _add_common(parity)
    _add_common(tools.add_parser("codec", help="the codec against the reference's golden file"))
    add_speech_parser(tools)
    add_speed_parser(tools)
    add_quant_parser(tools)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="folder or hub name")
    parser.add_argument("golden", type=Path, help="made by convert/dump_golden.py or dump_gate.py")
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
    if arguments.tool == "quant":
        from .quant import run_quant

        run_quant(arguments)
        return
    if arguments.tool == "parity":
        from .gates import gate_of
        from .parity import parity

        if gate := gate_of(arguments.golden):
            _stand(gate, arguments)
            return
        width = arguments.dtype or "float32"
        report = asdict(parity(arguments.checkpoint, arguments.golden, width, arguments.adapter))
        worst, equal = report["max_abs"], report["greedy_rows_equal"]
    else:
        from .codec import codec_parity

        report = asdict(codec_parity(arguments.checkpoint, arguments.golden))
        worst, equal = report["decode_max_abs"], report["code_agreement"] == 1.0
    _print(report, arguments.json)
    if arguments.tolerance is not None and not (worst <= arguments.tolerance and equal):
        raise GenerationError(f"Not equal to the reference within {arguments.tolerance}.")


def _stand(gate: Any, arguments: argparse.Namespace) -> None:
    """Before a gate, whose limits are its own."""
    if arguments.tolerance is not None:
        raise InputError("A gate has limits of its own: leave --tolerance out.")
    verdict = gate.judge(arguments.checkpoint, arguments.golden, arguments.dtype, arguments.adapter)
    _print(verdict.to_dict(), arguments.json, digits=6)  # a cosine of 0.9998 is not 1
    if not verdict.passed:
        raise GenerationError(f"Outside the {verdict.gate} gate: {'; '.join(verdict.failures)}.")


def _print(report: dict, as_json: bool, digits: int = 3) -> None:
    if as_json:
        print(json.dumps(report))
        return
    for name, value in _flat(report):
        if value is not None:
            shown = f"{value:.{digits}g}" if isinstance(value, float) else value
            print(f"{name:24} {shown}")


def _flat(report: dict) -> Iterator[tuple[str, Any]]:
    for name, value in report.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", figure) for inner, figure in value.items())
        elif not isinstance(value, list):  # failures end up in the error
            yield name, value


if __name__ == "__main__":
    raise SystemExit(main())
