"""What a candidate would say after the reference's own words, row by row.

Every figure is of raw logits: temperature and top-k come after them, and are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..calibration.forced import divergence, forced_logits, log_probabilities
from ..train.batches import collate, in_order
from ..train.samples import Sample

if TYPE_CHECKING:
    from ..delay import DelayPattern
    from ..models.base import SpeechModel
    from ..train.batches import Batch

SAMPLES = 8  # passages of one batch
Watch = Callable[[Iterable, str, int], Iterable]


@dataclass(frozen=True)
class Nearness:
    """How near a candidate's next code is to the reference's, over some codes.

    Attributes:
        codes: how many were compared.
        kl_mean, kl_p99: Kullback-Leibler divergence from the reference, in nats a code: the mean,
            and what 99 % stay below.
        top1: share of codes whose likeliest is the same.
        regret_mean, regret_max: nats that the reference loses where the candidate's likeliest code
            is taken in place of its own.
    """

    codes: int
    kl_mean: float
    kl_p99: float
    top1: float
    regret_mean: float
    regret_max: float


@dataclass(frozen=True)
class Ending:
    """The chance that speech ends with the next row.

    Attributes:
        frames: where the reference's speech ends.
        reference, candidate: the mean chance there.
        error_mean, error_max: how far apart the two are there.
        false: the candidate's largest chance anywhere before; false_reference: the reference's.
    """

    frames: int
    reference: float
    candidate: float
    error_mean: float
    error_max: float
    false: float
    false_reference: float


@dataclass(frozen=True)
class Forced:
    """All codebooks together, each of them, and the end of speech."""

    together: Nearness
    books: list[Nearness]
    ending: Ending


@dataclass(frozen=True)
class Passages:
    """What the reference said, and what it thinks of every row of it.

    Attributes:
        logprobs: of each batch, float32 ``[N, K, V]``: kept on the host.
    """

    batches: list[Batch]
    logprobs: list[np.ndarray]
    delay: DelayPattern

    @classmethod
    def of(cls, model: SpeechModel, samples: Sequence[Sample], watch: Watch) -> Passages:
        """Of the reference's talker."""
        batches = [collate(some) for some in in_order(samples, SAMPLES)]
        seen = watch(batches, "reference", len(batches))
        known = [np.array(log_probabilities(forced_logits(model, batch))) for batch in seen]
        return cls(batches, known, model.delay)

    def judge(self, model: SpeechModel, watch: Watch, what: str) -> Forced:
        """What a candidate says in the reference's place."""
        pairs = zip(self.batches, self.logprobs, strict=True)
        parts = [
            compare(mx.array(known), forced_logits(model, batch), batch.audio_targets, self.delay)
            for batch, known in watch(pairs, what, len(self.batches))
        ]
        return summed_up([np.concatenate(arrays) for arrays in zip(*parts, strict=True)])


def compare(
    known: mx.array, guessed: mx.array, targets: np.ndarray, delay: DelayPattern
) -> tuple[np.ndarray, ...]:
    """Two talkers' logits ``[N, K, V]`` at the same rows.

    Args:
        targets: ``[N, K]``, what followed; negative where nothing is scored.

    Returns:
        ``[N, K]`` each: what is scored, divergence, whether the likeliest is the same, regret.
        ``[N]`` each: where the reference ends, where it goes on, the chance of an end of both.
    """
    ours, theirs = log_probabilities(known), log_probabilities(guessed)
    likeliest = theirs.argmax(axis=-1)
    chosen = mx.take_along_axis(ours, likeliest[..., None], axis=-1)[..., 0]
    regret = ours.max(axis=-1) - chosen
    scored = targets >= 0
    speaking = scored[:, 0]
    ends = speaking & (targets[:, : delay.num_ending] == delay.eos_id).any(axis=1)
    arrays = (
        scored,
        divergence(ours, theirs, mx.array(targets)),
        regret <= 0,  # a tie is no disagreement
        regret,
        ends,
        speaking & ~ends,
        ending_chance(ours, targets, delay),
        ending_chance(theirs, targets, delay),
    )
    return tuple(np.array(array) for array in arrays)


def ending_chance(logprobs: mx.array, targets: np.ndarray, delay: DelayPattern) -> mx.array:
    """The chance ``[N]`` that one of the codebooks that can ends the speech with this row."""
    able = mx.array(targets[:, : delay.num_ending]) >= 0
    end = mx.exp(logprobs[:, : delay.num_ending, delay.eos_id])
    return 1 - mx.where(able, 1 - end, 1.0).prod(axis=1)


def summed_up(arrays: Sequence[np.ndarray]) -> Forced:
    """The figures of what ``compare`` returns."""
    scored, kl, same, regret, ends, goes_on, ours, theirs = arrays
    books = range(scored.shape[1])

    def near(codes: np.ndarray) -> Nearness:
        return Nearness(
            codes=int(codes.sum()),
            kl_mean=float(kl[codes].mean(dtype=np.float64)),
            kl_p99=float(np.quantile(kl[codes], 0.99)),
            top1=float(same[codes].mean()),
            regret_mean=float(regret[codes].mean(dtype=np.float64)),
            regret_max=float(regret[codes].max()),
        )

    apart = np.abs(ours - theirs)[ends]
    ending = Ending(
        frames=len(apart),
        reference=float(ours[ends].mean()),
        candidate=float(theirs[ends].mean()),
        error_mean=float(apart.mean()),
        error_max=float(apart.max()),
        false=float(theirs[goes_on].max()),
        false_reference=float(ours[goes_on].max()),
    )
    return Forced(near(scored), [near(scored & _only(scored, k)) for k in books], ending)


def _only(scored: np.ndarray, book: int) -> np.ndarray:
    return np.arange(scored.shape[1]) == book


def bars(items: Iterable, what: str, total: int) -> Iterator:
    """A progress bar on a terminal."""
    from tqdm import tqdm

    return iter(tqdm(items, desc=what, total=total, unit="", disable=None))
