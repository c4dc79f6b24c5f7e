"""Run Boson's own ``generate`` in its three modes, on scripts and greedily.

    python convert/dump_chat.py CHECKPOINT OUT.json --boson-repo HIGGS_AUDIO_CHECKOUT

CHECKPOINT is a tiny one in Boson's layout (`tests/golden/tiny_boson`).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file or with -m

from mlx_higgs.cli import run

PROMPT = [5, 6, 7]
LIMIT = 70


def cases(codes: int, marks: dict[str, Any]) -> list[dict[str, Any]]:
    """Names, prompts, scripts, and rows that a prompt ends in."""
    bos, eos, opens, stop = codes, codes + 1, marks["opens"], marks["stops"][-1]

    def rows(count: int, *last: list[int]) -> list[list[int]]:
        return [[(3 * n + k) % codes for k in range(8)] for n in range(count)] + list(last)

    first = [[eos] + [1] * 7, *rows(7)]  # codebook 0 says EOS, seven rows more
    last = [[2] * 7 + [eos]]  # the last codebook: at once
    three = [[2, 2, 2, eos, 4, 4, 4, 4], *rows(4)]
    ramp = [[bos] * 8, *[[9] * k + [bos] * (8 - k) for k in range(1, 8)]]
    silent = [[eos] * k + [9] * (8 - k) for k in range(1, 8)]
    turns = [4, opens, None, *rows(9), *first, 5, 6, opens, None, *rows(8), *last, 7]
    turns += [opens, None, *rows(10), *three, 8]
    plain: dict[str, Any] = {"prompt": PROMPT, "begun": None, "script": None, "limit": LIMIT}
    ended = [*rows(2), *first, 9, stop]
    return [
        {**plain, "name": "words, greedy"},
        {**plain, "name": "speech, greedy", "prompt": [*PROMPT, opens], "limit": 20},
        {**plain, "name": "turns", "script": [*turns, stop]},
        {**plain, "name": "end of text", "script": [4, marks["stops"][0]]},
        {**plain, "name": "cut in speech", "script": [*turns, stop], "limit": 9},
        {**plain, "name": "opened by the prompt", "script": [None, *rows(8), *last, stop]}
        | {"prompt": [*PROMPT, opens]},
        *(
            {**plain, "name": f"going on after {name}", "begun": begun, "script": script}
            | {"prompt": [*PROMPT, opens]}
            for name, begun, script in (
                ("its first row", ramp[:1], [*rows(9), *first, 9, stop]),
                ("four rows", ramp[:4], [*rows(6), *first, 9, stop]),
                ("its ramp-in", [*ramp, [9] * 8], ended),
                ("an EOS", [*ramp, *silent[:1]], [*rows(7), 9, stop]),
                ("half its ramp-out", [*ramp, *silent[:4]], [*rows(7), 9, stop]),
            )
        ),
        {**plain, "name": "going on, greedy", "begun": [*ramp, [9] * 8], "limit": 12}
        | {"prompt": [*PROMPT, opens]},
    ]


def dump(args: argparse.Namespace) -> None:
    from transformers.utils import logging

    from convert.boson_chat import Asked, BosonChat
    from convert.layouts import AUDIO_IN, AUDIO_OUT, AUDIO_OUT_BOS, EOS, EOT

    logging.set_verbosity_error()
    config = json.loads((args.checkpoint / "config.json").read_text())
    first = config["audio_out_bos_token_id"] - AUDIO_OUT_BOS
    stops, barred = [first + EOS, first + EOT], [first + AUDIO_IN, first + AUDIO_OUT]
    marks: dict[str, Any] = {"opens": config["audio_out_bos_token_id"], "stops": stops}
    marks |= {"speech": config["audio_out_token_idx"], "closes": config["audio_eos_token_id"]}
    marks |= {"barred": barred}
    boson = BosonChat(args.checkpoint, args.boson_repo, stops=stops, banned=barred)
    found = cases(config["audio_codebook_size"], marks)
    for case in found:
        begun = case["begun"]
        asked = Asked([*case["prompt"], *([marks["speech"]] if begun else [])])
        asked.clips += [begun] if begun else []
        said = boson.generate(asked, case["limit"], case["script"])
        case |= {"marks": marks, "ids": said.ids, "segments": said.segments}
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in found)
    args.out.write_text(f"[\n{lines}\n]\n")
    print(f"{args.out}: {len(found)} cases")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Record Boson's answers in words and speech.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, help="the .json file to write")
    parser.add_argument("--boson-repo", type=Path, required=True, help="boson-ai/higgs-audio")
    return parser


if __name__ == "__main__":
    raise SystemExit(run(build_parser(), dump))
