"""The audio gate: the row a prompt leads to, between stacks that round differently.

Logits of v3's audio head are of the order of 100, where bfloat16 steps by half a nat: no bound on
their differences holds between two correct bfloat16 stacks. What holds is which code is the
likeliest, the directions of the hidden state and of the logits, and most of the likely codes.

The golden is that of a public one-step gate for Higgs v3 (``audio_logits.f32`` and its company).
A golden of ours may hold rows of codes, too: ``prompt.audio_rows`` int ``[R, K]``, those of all
prompts in order, one for each placeholder -100 of ``prompt.input_ids_padded``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..types import InputError
from .golden import read_golden
from .parity import EXPANDED, embed_golden
from .verdict import Figures, Verdict, below, number, open_talker

if TYPE_CHECKING:
    from ..models.base import SpeechModel

NAMES = (
    "prompt.input_ids_padded",
    "prompt.attention_mask",
    "prompt.lengths",
    "audio_logits.f32",
    "audio_top64.ids",
    "audio_top64.logprobs.f32",
    "audio_argmax.ids",
)
ROWS = "prompt.audio_rows"
HIDDEN = ("final_hidden.bf16", "final_hidden.f32")

# The floors are those of two correct bfloat16 stacks on the 4B, one prompt, eight codebooks.
HIDDEN_COSINE = 0.9998  # floor 0.99990
LOGITS_COSINE = 0.99999  # floor 0.9999903, a head in bfloat16 on both sides
REGRET = 0.20  # nat, floor 0: all eight likeliest codes were the same
OVERLAP = 40  # of 64 likely codes in a codebook, floor 42
LIMITS = {
    "argmax_agreement": 1.0,
    "hidden_cosine": HIDDEN_COSINE,
    "logits_cosine": LOGITS_COSINE,
    "regret": REGRET,
    "top64_overlap": OVERLAP,
}


@dataclass(frozen=True)
class AudioGolden:
    """B prompts, and what follows each: D hidden, K codebooks of V ids."""

    prompts: list[np.ndarray]  # ids, with -100 for a row
    rows: list[np.ndarray]  # [R, K] each
    hidden: np.ndarray  # [B, D]
    logits: np.ndarray  # [B, K, V]
    top: np.ndarray  # [B, K, 64]
    argmax: np.ndarray  # [B, K]
    dtype: str

    @classmethod
    def read(cls, path: Path) -> AudioGolden:
        """Raises InputError for a file that is none, or whose arrays do not fit together."""
        arrays, metadata = read_golden(path, NAMES)
        name = next((name for name in HIDDEN if name in arrays), None)
        if name is None:
            raise InputError(f"{path} is not such a golden file: it lacks {HIDDEN[0]}.")
        ids, mask, lengths, logits, top, _, argmax = (arrays[name] for name in NAMES)
        B, K = argmax.shape if argmax.ndim == 2 else (0, 0)
        fits = (
            B > 0
            and ids.ndim == 2
            and ids.shape == mask.shape == (B, ids.shape[1])
            and lengths.shape == (B,)
            and np.array_equal(mask, np.arange(ids.shape[1]) < lengths[:, None])
            and logits.ndim == top.ndim == 3
            and logits.shape[:2] == top.shape[:2] == (B, K)
            and arrays[name].shape[:1] == (B,)
        )
        if not fits:
            shapes = ", ".join(f"{name} {arrays[name].shape}" for name in NAMES)
            raise InputError(f"{path}: its arrays do not fit together: {shapes}.")
        prompts = [row[:length] for row, length in zip(ids, lengths, strict=True)]
        rows = _rows_of(prompts, arrays.get(ROWS, np.zeros((0, K), np.int32)), path)
        width = metadata.get("dtype", "bfloat16")
        return cls(prompts, rows, arrays[name], logits, top, argmax, width)


def _rows_of(prompts: list[np.ndarray], rows: np.ndarray, path: Path) -> list[np.ndarray]:
    counts = [int((ids == EXPANDED).sum()) for ids in prompts]
    if sum(counts) != len(rows):
        raise InputError(f"{path} holds {len(rows)} rows for {sum(counts)} placeholders.")
    return np.split(rows, np.cumsum(counts)[:-1])


def judge(
    checkpoint: str | Path,
    golden_path: Path,
    dtype: str | None = None,
    adapter: str | Path | None = None,
) -> Verdict:
    """A checkpoint before the gate; see ``text_gate.judge``."""
    golden = AudioGolden.read(golden_path)
    model, width = open_talker(checkpoint, dtype or golden.dtype, adapter, text_head=False)
    args, wanted = model.args, golden.logits.shape[1:]
    if (args.num_codebooks, args.codebook_vocab) != wanted:
        raise InputError(
            f"The golden file has {wanted[0]} codebooks of {wanted[1]} ids, the checkpoint "
            f"{args.num_codebooks} of {args.codebook_vocab}."
        )
    if golden.hidden.shape[1:] != (args.hidden_size,):
        raise InputError(
            f"The golden file's hidden states are {golden.hidden.shape[1]} wide, the "
            f"checkpoint's {args.hidden_size}."
        )
    hidden, logits = replay(model, golden)
    figures = measure(golden, hidden, logits)
    return Verdict("audio", width, figures, LIMITS, outside(figures))


def replay(model: SpeechModel, golden: AudioGolden) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states ``[B, D]`` and logits ``[B, K, V]`` at each prompt's end.

    The last position comes alone, on top of the cache, as a frame does in generation.
    """
    hidden, logits = [], []
    for ids, rows in zip(golden.prompts, golden.rows, strict=True):
        x, is_audio = embed_golden(model, ids, rows)
        caches = model.make_cache()
        if len(ids) > 1:
            model.hidden(x[:, :-1], caches, is_audio[:, :-1])
        h = model.hidden(x[:, -1:], caches, is_audio[:, -1:])[0, 0]
        hidden.append(np.array(h.astype(mx.float32)))
        logits.append(np.array(model.audio_logits(h)))
    return np.stack(hidden), np.stack(logits)


def measure(golden: AudioGolden, hidden: np.ndarray, logits: np.ndarray) -> Figures:
    """The worst of each over all prompts, and the largest differences, which are not judged."""
    best = logits.argmax(-1)
    taken = np.take_along_axis(golden.logits, best[..., None], -1)[..., 0]
    likely = np.argsort(-logits, axis=-1, kind="stable")[..., : golden.top.shape[-1]]
    common = (likely[..., None] == golden.top[..., None, :]).any(-1).sum(-1)
    return {
        "rows": len(best),
        "argmax_agreement": float((best == golden.argmax).mean()),
        "hidden_cosine": _cosine(hidden, golden.hidden),
        "logits_cosine": _cosine(logits, golden.logits),
        "regret": number((golden.logits.max(-1) - taken).max()),
        "top64_overlap": int(common.min()),
        "top64_overlap_mean": float(common.mean()),
        "hidden_max_abs": number(np.abs(hidden - golden.hidden).max()),
        "logits_max_abs": number(np.abs(logits - golden.logits).max()),
    }


def _cosine(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """The smallest of the B vectors'."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (ours, theirs))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return number(((a * b).sum(1) / lengths).min()) if lengths.all() else None


def outside(figures: Figures) -> list[str]:
    """What the figures fail by: regret is at most its limit, all others at least."""
    return [
        f"{name} {figures[name]} {'above' if name == 'regret' else 'below'} {limit}"
        for name, limit in LIMITS.items()
        if not _keeps(name, figures[name], limit)
    ]


def _keeps(name: str, value: float | None, limit: float) -> bool:
    if name == "regret":
        return below(value, limit)
    return value is not None and value >= limit
