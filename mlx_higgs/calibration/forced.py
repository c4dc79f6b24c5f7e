"""Teacher forcing: what a talker would say next, after the same rows for all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from ..train.loss import hidden

if TYPE_CHECKING:
    from ..models.base import SpeechModel
    from ..train.batches import Batch


def forced_logits(model: SpeechModel, batch: Batch) -> mx.array:
    """Float32 logits ``[N, K, V]`` at the batch's N scored positions (``audio_from``)."""
    h = hidden(model, batch, mx.array(batch.rows))
    return model.audio_logits(h[mx.array(batch.audio_from)]).astype(mx.float32)


def log_probabilities(logits: mx.array) -> mx.array:
    """``[..., V]`` -> the same shape, float32."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def divergence(reference: mx.array, candidate: mx.array, scored: mx.array) -> mx.array:
    """Kullback-Leibler divergence of logits ``[N, K, V]``, in nats.

    Args:
        scored: targets ``[N, K]``; a negative one (-100) is not scored.

    Returns:
        KL(reference || candidate) ``[N, K]``, float32; 0 where nothing is scored.
    """
    known, guessed = log_probabilities(reference), log_probabilities(candidate)
    # rounding alone makes a divergence of nothing a little negative
    apart = mx.maximum((mx.exp(known) * (known - guessed)).sum(axis=-1), 0)
    return mx.where(scored >= 0, apart, 0.0)
