"""The talker against the reference: the same prompt in, the same logits and rows out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from ..adapters import apply_adapter
from ..delay import MACHINES, Machine
from ..frames import Rows
from ..loading import load_model
from ..prefix import Prefix
from ..quantization import stored_quantization
from ..sampling import SamplingParams
from ..sources import resolve, resolve_adapter
from ..types import InputError, Prompt, Text
from ..weights import read_json
from .golden import read_golden

if TYPE_CHECKING:
    from ..models.base import SpeechModel

EXPANDED = -100  # a placeholder that is no token id (Higgs v3's goldens)


@dataclass(frozen=True)
class ParityReport:
    """How far a talker is from its golden file.

    Attributes:
        positions: prompt positions compared.
        max_abs, mean, p99: of the absolute difference of audio logits.
        regret: the most the reference loses, in nats, by taking our likeliest code for its own.
        argmax_agreement: share of (position, codebook) pairs with the same likeliest code.
        machine: whose rules the greedy continuation follows.
        greedy_rows_equal: whether the greedy continuation is the same, row by row.
        text_max_abs, text_argmax_agreement: the same for text logits, if the golden has them.
    """

    positions: int
    max_abs: float
    mean: float
    p99: float
    regret: float
    argmax_agreement: float
    machine: str
    greedy_rows: int
    greedy_rows_equal: bool
    text_max_abs: float | None = None
    text_argmax_agreement: float | None = None


def parity(
    checkpoint: str | Path,
    golden_path: Path,
    dtype: str = "float32",
    adapter: str | Path | None = None,
) -> ParityReport:
    """Compare a checkpoint with a golden file of ``convert/dump_golden.py model``.

    Args:
        dtype: compute in this width; a quantised checkpoint keeps its own.
        adapter: what was trained on top of the checkpoint.

    Raises:
        InputError: the two do not fit together. CheckpointError: the checkpoint is unusable.
    """
    names = ("input_ids", "audio_rows", "audio_logits", "greedy_rows")
    golden, metadata = read_golden(golden_path, names)
    folder = resolve(checkpoint)
    quantized = stored_quantization(read_json(folder / "config.json"))
    has_text = "text_logits" in golden
    model = load_model(folder, dtype=None if quantized else dtype, text_head=has_text)
    if adapter is not None:
        apply_adapter(model, resolve_adapter(adapter))

    x, is_audio = embed_golden(model, golden["input_ids"], golden["audio_rows"])
    h = model.hidden(x, model.make_cache(), is_audio)
    audio = _compare(np.array(model.audio_logits(h)[0]), golden["audio_logits"])
    text = None
    if has_text:
        at = golden.get("text_positions", np.arange(h.shape[1]))  # some files keep a few only
        text = _compare(np.array(model.text_logits(h[0, mx.array(at)])), golden["text_logits"])
    machine = machine_of(metadata, model)
    ids, expected = golden["input_ids"], golden["greedy_rows"]
    rows = greedy_rows(model, x, is_audio, ids, len(expected), machine)
    return ParityReport(
        positions=len(ids),
        **audio,
        machine=machine,
        greedy_rows=len(expected),
        greedy_rows_equal=np.array_equal(rows, expected),
        text_max_abs=text["max_abs"] if text else None,
        text_argmax_agreement=text["argmax_agreement"] if text else None,
    )


def embed_golden(
    model: SpeechModel, ids: np.ndarray, rows: np.ndarray
) -> tuple[mx.array, np.ndarray]:
    """Expanded ids ``[S]`` and delayed rows ``[R, K]`` -> embeddings ``[1, S, D]``, is_audio."""
    for delay_marks in (model.args.placeholder_ids[1:], ()):  # some expand with one id alone
        is_audio = np.isin(ids, [model.args.placeholder_ids[0], *delay_marks, EXPANDED])
        if is_audio.sum() == len(rows):
            break
    else:
        raise InputError(
            f"The golden file has {len(rows)} audio rows for {is_audio.sum()} placeholders "
            f"(ids {model.args.placeholder_ids}): it belongs to another checkpoint."
        )
    if rows.shape[1:] != (model.delay.num_codebooks,):
        raise InputError(f"The golden rows have {rows.shape[1:]} codebooks.")
    parts = [model.embed_ids(ids[~is_audio]), model.embed_rows(mx.array(rows.astype(np.int32)))]
    order = np.concatenate([np.flatnonzero(~is_audio), np.flatnonzero(is_audio)])
    return mx.concatenate(parts)[mx.array(np.argsort(order))][None], is_audio[None]


def machine_of(metadata: dict[str, str], model: SpeechModel) -> Machine:
    """The rules a golden's greedy rows were made by: those it names, or the reference's.

    Raises:
        InputError: rules of another model generation.
    """
    named: Any = metadata.get("machine")
    return model.delay.under(named or MACHINES[model.delay.edge_frames][-1]).machine


def greedy_rows(
    model: SpeechModel,
    x: mx.array,
    is_audio: np.ndarray,
    ids: np.ndarray,
    count: int,
    machine: Machine,
) -> np.ndarray:
    """``count`` greedy rows ``[L, K]`` through the real loop, on top of a prefilled prompt."""
    cache = model.make_cache()
    model.hidden(x[:, :-1], cache, is_audio[:, :-1])
    params = SamplingParams(
        temperature=0, ras_window=0, max_frames=max(count, 1), seed=0, machine=machine
    )
    last: Prompt = [Text([int(ids[-1])])]
    rows = Rows(model, last, params, prefix=Prefix(0, cache), max_identical_rows=0)
    return np.stack(list(rows))


def _compare(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Logits ``[..., V]`` of both sides."""
    if ours.shape != theirs.shape:
        raise InputError(f"The golden logits have shape {theirs.shape}, ours {ours.shape}.")
    error = np.abs(ours.astype(np.float64) - theirs)
    best, chosen = theirs.argmax(-1), ours.argmax(-1)
    taken = np.take_along_axis(theirs, chosen[..., None], -1)[..., 0]
    return {
        "max_abs": float(error.max()),
        "mean": float(error.mean()),
        "p99": float(np.quantile(error, 0.99)),
        "regret": float((theirs.max(-1) - taken).max()),
        "argmax_agreement": float((best == chosen).mean()),
    }
