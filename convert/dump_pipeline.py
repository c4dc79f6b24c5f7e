"""Run vLLM-Omni's own adapters between its two stages and keep what they hand over.

    python convert/dump_pipeline.py OUT.json --vllm-omni FOLDER

FOLDER holds the package ``vllm_omni``: a checkout, or what pip unpacks with ``--no-deps --target``.
``tests/golden/README.md`` says what is written.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file or with -m

from convert.vllm_repo import Handoff, Settings, VllmOmni
from mlx_higgs.cli import run

if TYPE_CHECKING:
    import numpy as np

    from mlx_higgs.delay import DelayPattern

LONGEST = 259  # frames
BOC, EOC, K = 1024, 1025, 8
SETTINGS = (
    Settings(1, 25, 25, 4),  # as it is deployed
    Settings(0, 25, 25, 4),  # what the code falls back to
    Settings(25, 25, 10, 10),  # all that a sample depends on
    Settings(12, 25, 10, 10),
    Settings(4, 25, 0, 4),
    Settings(5, 12, 0, 0),
    Settings(1, 1, 25, 0),
    Settings(40, 25, 25, 4),  # a first chunk larger than the others does not count
    Settings(3, 7, 2, 1),
    Settings(7, 60, 100, 30),
)
RAMPS = ((5, 5, 10, 20, 40, 50), (2, 4, 8, 16, 25))
SEED = 5
ENDS = (8, 9, 20, None)  # the row of the EOC; None: cut short

# ---------------------------------------------------------------- rows


def marked_codes(frames: int) -> np.ndarray:
    """Codes ``[T, K]``, T <= 1024, each of which tells its frame."""
    import numpy as np

    return (np.arange(frames)[:, None] + 131 * np.arange(K)) % BOC


def their_rows(codes: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """Delayed rows ``[T + 8, K]`` as their talker ends them.

    Codebook k says EOC a row later than the layout has it, so that the frame after the last, which
    is cut, holds what was sampled last: ``junk`` ``[K]``, but for its first code.
    """
    import mlx.core as mx
    import numpy as np

    from mlx_higgs.delay import DelayPattern

    frames = np.concatenate([codes, junk[None]])
    frames[-1, 0] = EOC
    return np.array(DelayPattern().apply(mx.array(frames)))


def scripted(seed: int, end: int | None, rows: int = 32) -> np.ndarray:
    """Logits ``[F, K, 1026]`` of noise, a marker in every twelfth cell, EOC in row ``end``."""
    import numpy as np

    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, K, EOC + 1)).astype(np.float32)
    logits[..., BOC:] -= 99
    marker = np.where(rng.random((rows, K, 1)) < 0.5, [200, 0], [0, 200])
    logits[..., BOC:] += np.where(rng.random((rows, K, 1)) < 1 / 12, marker, 0)
    logits[:, 0, EOC] = -99
    if end is not None:
        logits[end, 0, EOC] = 999
    return logits


def our_rows(pattern: DelayPattern, logits: np.ndarray) -> np.ndarray:
    """The rows ``[L, K]`` of our machine, the likeliest each time."""
    import mlx.core as mx
    import numpy as np

    state, rows = pattern.start(), []
    for step in logits:
        row = mx.argmax(pattern.allowed(mx.array(step)[None], state), axis=-1)
        row, state = pattern.advance(row, state)
        rows.append(np.array(row[0]))
        if state.done.item():
            break
    return np.stack(rows)


def and_one_more(rows: np.ndarray) -> np.ndarray:
    """Our rows as their adapters expect them: they cut what the last row completes."""
    import numpy as np

    return np.concatenate([rows, np.full((1, K), EOC, rows.dtype)])


# ---------------------------------------------------------------- what they hand over


def chunked(omni: VllmOmni, settings: Settings) -> dict[str, Any]:
    """Every hand-over of every length; the running ones are the same for all lengths."""
    running: list[list[int]] = []
    last: list[list[int]] = []
    for frames in range(1, LONGEST + 1):
        marks = marked_codes(frames + 1)
        rows = their_rows(marks[:-1], marks[-1])
        marks[-1, 0] = 0  # EOC is no code
        handed = list(omni.chunks(rows, settings))
        sent = [described(handoff, marks) for handoff in handed]
        if len(sent) - 1 > len(running):
            running = sent[:-1]
        _check(sent[:-1] == running[: len(sent) - 1], "a running hand-over depends on what follows")
        _check([h.finished for h in handed] == [False] * (len(sent) - 1) + [True], "more ends")
        _check(handed[-1].row == len(rows) and not handed[-1].right, "the end came early")
        last.append([len(sent) - 1, *sent[-1][1:4]])
    return {"settings": [*settings], "running": running, "last": last}


def described(handoff: Handoff, marks: np.ndarray) -> list[int]:
    """The row, the frames ``[start, stop)`` in the window, and the context to either side."""
    import numpy as np

    codes = np.array(handoff.codes).reshape(-1, K)
    found = [t for t, mark in enumerate(marks) if len(codes) and np.array_equal(mark, codes[0])]
    start = found[0] if found else 0
    _check(np.array_equal(codes, marks[start : start + len(codes)]), "no run of frames")
    return [handoff.row, start, start + len(codes), handoff.left, handoff.right]


def whole(omni: VllmOmni) -> list[int]:
    """Frames handed over at once, of every length; their codes are those that were delayed."""
    import numpy as np

    counts = []
    for frames in range(1, LONGEST + 1):
        marks = marked_codes(frames + 1)
        handed = np.array(omni.whole(their_rows(marks[:-1], marks[-1])))
        _check(np.array_equal(handed, marks[: len(handed)]), "other frames")
        counts.append(len(handed))
    return counts


def short(omni: VllmOmni) -> dict[str, list[int]]:
    """Frames handed over of so few rows, at once and in chunks."""
    deployed = SETTINGS[0]
    rows = their_rows(marked_codes(2)[:1], marked_codes(2)[1])
    cuts = [rows[:count] for count in range(1, K + 2)]
    in_chunks = [sum(len(h.codes) for h in omni.chunks(cut, deployed)) for cut in cuts]
    return {"whole": [len(omni.whole(cut)) for cut in cuts], "chunked": in_chunks}


def ramp(omni: VllmOmni, sizes: tuple[int, ...]) -> dict[str, Any]:
    """The ends of the chunks, of every length."""
    stops = []
    for frames in range(1, LONGEST + 1):
        sent = omni.ramp([*sizes], sizes[-1], frames)
        _check([start for start, _ in sent[1:]] == [stop for _, stop in sent[:-1]], "a gap")
        stops.append([stop for _, stop in sent])
    return {"sizes": [*sizes], "stops": stops}


def streams(omni: VllmOmni) -> list[dict[str, Any]]:
    """Rows full of markers, as our machines make them, and what becomes of them at once."""
    import numpy as np

    from mlx_higgs.delay import MACHINES, DelayPattern

    cases = []
    for machine in MACHINES[0]:
        for end in ENDS:
            logits = scripted(SEED + (end or 0), end)
            rows = our_rows(DelayPattern(machine=machine), logits)
            theirs = omni.machine(logits)
            about = {"machine": machine, "end": end, "rows": rows.tolist()}
            about["codes"] = omni.whole(and_one_more(rows))
            about |= {"their_rows": theirs, "their_codes": omni.whole(np.array(theirs))}
            cases.append(about)
    return cases


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(f"The golden's format cannot say what was handed over: {otherwise}.")


# ---------------------------------------------------------------- command line


def dump(args: argparse.Namespace) -> None:
    omni = VllmOmni(args.vllm_omni)
    golden = {
        "origin": omni.origin,
        "whole": whole(omni),
        "short": short(omni),
        "chunked": [chunked(omni, settings) for settings in SETTINGS],
        "ramps": [ramp(omni, sizes) for sizes in RAMPS],
        "streams": streams(omni),
    }
    args.out.write_text(_lines(golden))
    print(f"{args.out}: vLLM-Omni {golden['origin']['version']}, {args.out.stat().st_size} bytes")


def _lines(golden: dict[str, Any]) -> str:
    """JSON, a line for each entry: readable, and small."""

    def dense(value: Any) -> str:
        return json.dumps(value, separators=(",", ":"))

    def entry(value: Any) -> str:
        if isinstance(value, list) and isinstance(value[0], dict):
            return "[\n" + ",\n".join(map(dense, value)) + "\n]"
        return dense(value)

    lines = (f'"{name}": {entry(value)}' for name, value in golden.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Write the golden of the two stages' hand-overs.")
    parser.add_argument("out", type=Path, help="the .json file to write")
    parser.add_argument(
        "--vllm-omni", type=Path, required=True, metavar="FOLDER", help="holds vllm_omni/"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(run(build_parser(), dump))
