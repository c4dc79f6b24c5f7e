"""Samples -> batches: padded on the right, alike in length, in an order that a seed decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..ranks import Ranks
from .samples import IGNORED, ROW, Sample

BUCKET = 16  # batches among which samples are sorted by length


@dataclass(frozen=True)
class Batch:
    """B samples of up to S positions; only positions that are scored have targets.

    Attributes:
        ids: int32 ``[B * S]``, 0 where a row of codes stands or nothing does.
        is_audio: host-side bool ``[B, S]``.
        rows: int32 ``[R, K]``, all samples' one after the other; ``places`` ``[R]``: where each
            stands among the ``B * S`` positions.
        audio_from: ``[N]``, positions whose output is scored against ``audio_targets`` ``[N, K]``.
        text_from: ``[M]``, the same for ``text_targets`` ``[M]``.
        audio_counts: targets of each codebook ``[K]``.
        tokens: positions that hold something.
    """

    ids: np.ndarray
    is_audio: np.ndarray
    rows: np.ndarray
    places: np.ndarray
    audio_from: np.ndarray
    audio_targets: np.ndarray
    text_from: np.ndarray
    text_targets: np.ndarray
    audio_counts: np.ndarray
    tokens: int

    @property
    def text_count(self) -> int:
        return len(self.text_targets)


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad on the right, and shift the labels: position t is scored against what stands at t + 1."""
    S = max(map(len, samples))
    ids = np.zeros((len(samples), S), np.int32)
    text = np.full((len(samples), S), IGNORED, np.int32)
    for index, sample in enumerate(samples):
        ids[index, : len(sample)] = sample.ids
        text[index, : len(sample)] = sample.text_labels
    rows = np.concatenate([sample.rows for sample in samples]).astype(np.int32)
    labels = np.concatenate([sample.audio_labels for sample in samples]).astype(np.int32)
    is_audio = ids == ROW
    places = np.flatnonzero(is_audio)
    scored = np.flatnonzero((labels >= 0).any(axis=1))
    text[:, 0] = IGNORED  # nothing stands before it
    text_scored = np.flatnonzero(text >= 0)
    return Batch(
        ids=np.where(is_audio, 0, ids).reshape(-1),
        is_audio=is_audio,
        rows=rows,
        places=places,
        audio_from=places[scored] - 1,
        audio_targets=labels[scored],
        text_from=text_scored - 1,
        text_targets=text.reshape(-1)[text_scored],
        audio_counts=(labels >= 0).sum(axis=0),
        tokens=sum(map(len, samples)),
    )


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: Sequence[int]) -> list[np.ndarray]:
    """Every sample once, in batches of like lengths; the last of a bucket may be smaller.

    Shuffled, sorted within buckets of ``BUCKET`` batches, cut, and shuffled again.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), BUCKET * batch_size):
        bucket = order[start : start + BUCKET * batch_size]
        bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
        batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


class Schedule:
    """Which samples batch number n holds: a function of the seed alone, so a run can go on."""

    def __init__(self, samples: Sequence[Sample], batch_size: int, seed: int):
        self._samples, self._size, self._seed = samples, batch_size, seed
        self._lengths = np.array([len(sample) for sample in samples])
        self._per_epoch = len(epoch_batches(self._lengths, batch_size, [seed, 0]))
        self._epoch, self._batches = -1, []

    def __getitem__(self, number: int) -> list[Sample]:
        epoch, index = divmod(number, self._per_epoch)
        if epoch != self._epoch:
            self._batches = epoch_batches(self._lengths, self._size, [self._seed, epoch])
            self._epoch = epoch
        return [self._samples[i] for i in self._batches[index]]

    def epochs(self, number: int) -> float:
        """Epochs that ``number`` batches make."""
        return number / self._per_epoch


def in_order(samples: Sequence[Sample], batch_size: int, limit: int = -1) -> list[list[Sample]]:
    """Batches for scoring: by length, the same every time; at most ``limit``, spread evenly."""
    order = sorted(samples, key=len)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if 0 < limit < len(batches):
        chosen = np.linspace(0, len(batches) - 1, limit).round().astype(int)
        batches = [batches[i] for i in chosen]
    return batches


def part_of(
    samples: Sequence[Sample], rows: mx.array, ranks: Ranks
) -> tuple[Batch | None, mx.array]:
    """What one rank computes of a batch: the samples, and of ``rows`` ``[R, K]`` theirs.

    Every so-manyth sample: they are of like lengths. None where there are fewer than ranks.
    """
    if ranks.size == 1:
        return collate(samples), rows
    chosen = range(ranks.rank, len(samples), ranks.size)
    ends = np.cumsum([len(sample.rows) for sample in samples])
    if not chosen:
        return None, rows[:0]
    own = [rows[int(ends[i]) - len(samples[i].rows) : int(ends[i])] for i in chosen]
    return collate([samples[i] for i in chosen]), mx.concatenate(own)


def with_noise(
    batch: Batch, share: float, codebook_size: int, rng: np.random.Generator
) -> mx.array:
    """The rows the model sees ``[R, K]``: a ``share`` of their codes drawn at random.

    The targets stay: the model learns to go on rightly after a wrong code.
    """
    rows = batch.rows
    if share:
        hit = (rng.random(rows.shape) < share) & (rows < codebook_size)
        rows = np.where(hit, rng.integers(0, codebook_size, rows.shape), rows)
    return mx.array(rows.astype(np.int32))
