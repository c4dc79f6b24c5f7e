"""Passages for a tiny talker, of codes drawn at random."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_higgs.calibration.passages import heard
from mlx_higgs.train.samples import Sample
from mlx_higgs.types import Text


def passages(model: Any, seed: int, count: int = 12, frames: int = 20) -> list[Sample]:
    """Of different lengths: some words, and codes in which each follows from the one before."""
    rng, delay = np.random.default_rng(seed), model.delay
    samples = []
    for _ in range(count):
        words = rng.integers(0, 40, rng.integers(4, 9)).tolist()
        shape = (frames + rng.integers(0, 5), delay.num_codebooks)
        codes = np.cumsum(rng.integers(0, 3, shape), axis=0) % delay.codebook_size
        rows = np.array(delay.apply(mx.array(codes)))
        samples.append(heard([Text(words)], rows, delay))
    return samples
