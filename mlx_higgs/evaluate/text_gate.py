"""The text gate: log-probabilities of words, with the golden's own tokens fed.

A golden holds fixed sequences, and the reference's likeliest tokens at the end of each prompt and
after each token that follows. Whatever ours would have said, the golden's token is fed, so that
every position is answered by both for the same input. The rules are those of openinfer's gate for
Qwen3 (``hf_golden_gate``), whose files are read as they are: the same backbone as Higgs v3's.

Every sequence is replayed alone, twice; some together, differently long; and both once more on top
of a prefix that was computed before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx
import numpy as np

from ..frames import prefill, read_prompt
from ..models.cache import KVCache, Slots
from ..prefix import Prefix
from ..types import InputError, Prompt, Text
from .golden import read_golden
from .verdict import Figures, Verdict, below, number, open_talker

if TYPE_CHECKING:
    from ..models.base import SpeechModel

NAMES = ("prompt_tokens", "prompt_lens", "decode_tokens", "topk_ids", "topk_logprobs")
HEAD = 8  # of our likeliest tokens are compared: those further down are noise
BATCH = 9  # sequences together

# Nats. The floors are those of two correct bfloat16 stacks on Qwen3-4B, 816 positions.
REGRET = 0.20  # three roundings of a usual logit: a true tie stays below, a wrong token does not
MEAN = 0.06  # floor 0.032; a drift of all logits by d moves it by d
P99 = 0.20  # floor 0.12; some positions that got noisier
# The largest difference is told, not judged: it grows with the number of positions (0.26 for 108,
# 0.44 for 816), and the others do not.
LIMITS = {"regret": REGRET, "mean": MEAN, "p99": P99}


@dataclass(frozen=True)
class TextGolden:
    """N sequences: prompts, D tokens fed after each, K likeliest tokens at D + 1 positions."""

    prompts: list[np.ndarray]
    fed: np.ndarray  # [N, D]
    ids: np.ndarray  # [N, D + 1, K]
    logprobs: np.ndarray  # float [N, D + 1, K]
    dtype: str  # what the reference computed in

    @classmethod
    def read(cls, path: Path) -> TextGolden:
        """Raises InputError for a file that is none, or whose arrays do not fit together."""
        arrays, metadata = read_golden(path, NAMES)
        tokens, lengths, fed, ids, logprobs = (arrays[name] for name in NAMES)
        N, D = fed.shape if fed.ndim == 2 else (0, 0)
        fits = (
            N > 0
            and lengths.shape == (N,)
            and lengths.min() > 0
            and tokens.shape == (lengths.sum(),)
            and ids.ndim == 3
            and ids.shape[:2] == (N, D + 1)
            and ids.shape == logprobs.shape
            and np.isfinite(logprobs).all()
        )
        if not fits:
            shapes = ", ".join(f"{name} {arrays[name].shape}" for name in NAMES)
            raise InputError(f"{path}: its arrays do not fit together: {shapes}.")
        prompts = np.split(tokens, np.cumsum(lengths)[:-1])
        return cls(prompts, fed, ids, logprobs, metadata.get("dtype", "bfloat16"))


class Answers(NamedTuple):
    """What a model says at every position: its HEAD likeliest tokens, the likeliest first."""

    ids: np.ndarray  # [N, D + 1, HEAD]
    logprobs: np.ndarray  # float32 [N, D + 1, HEAD]
    digest: str  # of all log-probabilities' bits


Start = Callable[["SpeechModel", np.ndarray], tuple[list[KVCache], mx.array]]


def judge(
    checkpoint: str | Path,
    golden_path: Path,
    dtype: str | None = None,
    adapter: str | Path | None = None,
) -> Verdict:
    """A checkpoint before the gate.

    Args:
        dtype: compute in this width; None for the golden's.

    Raises:
        InputError: the two do not fit together. CheckpointError: the checkpoint is unusable.
    """
    golden = TextGolden.read(golden_path)
    model, width = open_talker(checkpoint, dtype or golden.dtype, adapter, text_head=True)
    first, again = alone(model, golden, afresh), alone(model, golden, afresh)
    replays = {
        "single": first,
        "batched": together(model, golden, afresh),
        "cached": alone(model, golden, Cached()),
        "cached_batched": together(model, golden, Cached()),
    }
    figures = {name: measure(golden, answers) for name, answers in replays.items()}
    failures = [clause for name in figures for clause in outside(name, figures[name])]
    identical = first.digest == again.digest
    if not identical:
        failures.append("single: a second run gives other bits")
    halves = sum(len(prompt) // 2 for prompt in golden.prompts)
    if not halves:
        failures.append("cached: no prompt is long enough to have a prefix")
    about = {"bit_identical": identical, "cached_tokens": halves}
    return Verdict("text", width, {**about, **figures}, LIMITS, failures)


# ---------------------------------------------------------------- replays


def afresh(model: SpeechModel, prompt: np.ndarray) -> tuple[list[KVCache], mx.array]:
    """The caches after a prompt, and its last hidden state ``[1, 1, D]``."""
    return _read(model, [Text(prompt.tolist())])


class Cached:
    """The same on top of the prompt's first half, which was computed before.

    Two requests start from each prefix: the second finds it as the first has left it.
    """

    def __call__(self, model: SpeechModel, prompt: np.ndarray) -> tuple[list[KVCache], mx.array]:
        half = len(prompt) // 2
        if not half:
            return afresh(model, prompt)
        known: Prompt = [Text(prompt[:half].tolist())]
        whole: Prompt = [*known, Text(prompt[half:].tolist())]
        prefix = Prefix(1, prefill(model, known))
        caches, h = _read(model, whole, prefix)
        _step(model, mx.array(prompt[-1:]), caches)  # the first writes behind the prompt, too
        mx.eval(h, [(cache.keys, cache.values) for cache in caches])
        return _read(model, whole, prefix)


def _read(
    model: SpeechModel, prompt: Prompt, prefix: Prefix | None = None
) -> tuple[list[KVCache], mx.array]:
    caches, h = read_prompt(model, prompt, prefix)
    assert h is not None  # there is always a token left to compute
    return caches, h


def _step(model: SpeechModel, tokens: mx.array, caches) -> mx.array:
    """Hidden states ``[B, 1, D]`` after one token ``[B]`` of each."""
    x = model.embed_ids(np.array(tokens))[:, None]
    return model.hidden(x, caches, np.zeros((len(tokens), 1), dtype=bool))


def alone(model: SpeechModel, golden: TextGolden, start: Start) -> Answers:
    """All sequences, one by one."""
    states = (_alone(model, *sequence, start) for sequence in _sequences(golden))
    return _answers(model, states)


def _sequences(golden: TextGolden) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(golden.prompts, golden.fed, strict=True))


def _alone(model: SpeechModel, prompt: np.ndarray, fed: np.ndarray, start: Start) -> mx.array:
    """Hidden states ``[1, D + 1, width]``."""
    caches, h = start(model, prompt)
    steps = [_step(model, mx.array(fed[d : d + 1]), caches) for d in range(len(fed))]
    return mx.concatenate([h, *steps], axis=1)


def together(model: SpeechModel, golden: TextGolden, start: Start) -> Answers:
    """The first ``BATCH`` sequences as one batch, in slots of their own lengths."""
    fed = golden.fed[:BATCH]
    started = [start(model, prompt) for prompt in golden.prompts[:BATCH]]
    slots, *others = (Slots.of(caches) for caches, _ in started)
    for other in others:
        slots.join(other)
    states = [mx.concatenate([h for _, h in started])]
    for tokens in mx.array(fed.T):
        slots.begin()
        states.append(_step(model, tokens, slots.layers))
        slots.advance("text")
        mx.eval(states[-1])
    return _answers(model, iter(mx.concatenate(states, axis=1)[:, None]))


def _answers(model: SpeechModel, states: Iterator[mx.array]) -> Answers:
    """Of hidden states ``[1, D + 1, width]`` a sequence."""
    digest, ids, logprobs = hashlib.sha256(), [], []
    for h in states:
        logits = model.text_logits(h[0])
        scores = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        digest.update(scores.tobytes())
        order = np.argsort(-scores, axis=-1, kind="stable")[:, :HEAD]
        ids.append(order)
        logprobs.append(np.take_along_axis(scores, order, axis=-1))
    return Answers(np.stack(ids), np.stack(logprobs), digest.hexdigest())


# ---------------------------------------------------------------- figures


def measure(golden: TextGolden, ours: Answers) -> Figures:
    """How far answers are from the golden's first sequences.

    Returns:
        ``positions``; ``regret``, the most the reference loses by our likeliest token, and
        ``unlisted``, how often it does not even list it; ``deltas``, how many log-probabilities
        were compared, and their ``mean``, ``p50``, ``p99`` and ``max``.
    """
    ids, theirs = golden.ids[: len(ours.ids)], golden.logprobs[: len(ours.ids)]
    same = ids[..., None] == ours.ids[..., None, :]  # [N, D + 1, K, HEAD]
    listed = same.any(axis=-2)
    scores = (same * theirs.astype(np.float64)[..., None]).sum(axis=-2)
    deltas = np.sort(np.abs(ours.logprobs - scores)[listed])
    lost = (theirs.max(axis=-1) - scores[..., 0])[listed[..., 0]]
    return {
        "positions": int(listed[..., 0].size),
        "unlisted": int((~listed[..., 0]).sum()),
        "regret": number(lost.max()) if lost.size else None,
        "deltas": int(deltas.size),
        "mean": number(deltas.mean()) if deltas.size else None,
        "p50": _quantile(deltas, 0.50),
        "p99": _quantile(deltas, 0.99),
        "max": number(deltas[-1]) if deltas.size else None,
    }


def _quantile(ordered: np.ndarray, share: float) -> float | None:
    """Of ``n`` ordered values the one at ``int(n * share)``, as openinfer takes it."""
    if not ordered.size:
        return None
    return number(ordered[min(int(len(ordered) * share), len(ordered) - 1)])


def outside(replay: str, figures: Figures) -> list[str]:
    """What a replay's figures fail by."""
    clauses = [
        f"{replay}: {name} {figures[name]} above {limit}"
        for name, limit in LIMITS.items()
        if not below(figures[name], limit)
    ]
    if figures["unlisted"]:
        clauses.append(
            f"{replay}: the likeliest token of {figures['unlisted']} positions is none of the "
            "reference's"
        )
    if figures["deltas"] < figures["positions"]:  # a mean over too few to be trusted
        clauses.append(
            f"{replay}: {figures['deltas']} tokens in common at {figures['positions']} positions"
        )
    return clauses
