"""What is minimised: cross-entropy of the next code of each codebook and of the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import mlx.core as mx
import numpy as np

from .batches import Batch

if TYPE_CHECKING:
    from ..models.base import SpeechModel


@dataclass(frozen=True)
class Weights:
    """How the parts of the loss are added: ``audio * reduce_k(books[k] * ce_k) + text * ce``.

    ``audio_loss`` ``mean`` divides by the number of codebooks; ``sum`` is transformers'.
    """

    books: tuple[float, ...]
    text: float = 1.0
    audio: float = 1.0
    audio_loss: Literal["mean", "sum"] = "mean"

    def of_targets(self, batches: Sequence[Batch]) -> tuple[mx.array, float]:
        """What one target of each codebook ``[K]`` and one of the text count for.

        Over several batches together, so that their sums add up to the loss of one big batch.
        """
        counts = sum((batch.audio_counts for batch in batches), np.zeros(len(self.books)))
        share = self.audio / (len(self.books) if self.audio_loss == "mean" else 1)
        texts = sum(batch.text_count for batch in batches)
        books = np.array(self.books) * share / np.maximum(counts, 1)
        return mx.array(books.astype(np.float32)), self.text / max(texts, 1)

    def total(self, books: np.ndarray, text: float) -> float:
        """The loss from mean cross-entropies: of each codebook ``[K]``, and of the text."""
        audio = float(np.dot(self.books, np.nan_to_num(books)))
        if self.audio_loss == "mean":
            audio /= len(self.books)
        return self.audio * audio + (self.text * text if self.text else 0.0)


def sums(
    model: SpeechModel, batch: Batch, rows: mx.array, *, text: bool = True
) -> tuple[mx.array, mx.array]:
    """Summed cross-entropies: of each codebook ``[K]``, and of the text (0 without ``text``)."""
    h = hidden(model, batch, rows)
    books = cross_entropy(
        model.audio_logits(h[mx.array(batch.audio_from)]), mx.array(batch.audio_targets)
    ).sum(axis=0)
    if not text or not batch.text_count:
        return books, mx.array(0.0)
    # before the head, whose output is the widest array of all
    chosen = h[mx.array(batch.text_from)]
    targets = mx.array(batch.text_targets)
    return books, cross_entropy(model.text_logits(chosen), targets).sum()


def hidden(model: SpeechModel, batch: Batch, rows: mx.array) -> mx.array:
    """Last hidden states ``[B * S, D]``. Nothing looks at padding: it is on the right."""
    x = model.embed_ids(batch.ids)
    x[mx.array(batch.places)] = model.embed_rows(rows)
    B, S = batch.is_audio.shape
    return model.hidden(x.reshape(B, S, -1), None, batch.is_audio).reshape(B * S, -1)


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """``[..., V]`` against ``[...]`` -> float32 ``[...]``; 0 where a target is negative."""
    logits = logits.astype(mx.float32)
    largest = mx.stop_gradient(logits.max(axis=-1, keepdims=True))
    # spelled out, because mx.logsumexp computes the exponentials again for its gradient
    total = largest[..., 0] + mx.log(mx.exp(logits - largest).sum(axis=-1))
    chosen = mx.take_along_axis(logits, mx.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return mx.where(targets >= 0, total - chosen, 0.0)
