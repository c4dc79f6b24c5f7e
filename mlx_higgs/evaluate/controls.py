"""Controls: the same scoring where nothing was understood, without which a low error is nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from .words import spoken_words

ENVELOPE_SECONDS = 0.02  # shorter than a phone, longer than a pitch period


def deranged(texts: Sequence[str], seed: int = 0) -> list[str] | None:
    """For each text another one: no text keeps its own words. None if all say the same.

    A random cycle over the different texts; equal texts get the same other one.
    """
    same = {" ".join(spoken_words(text)): text for text in texts}
    keys = sorted(same)
    if len(keys) < 2:
        return None
    random.Random(seed).shuffle(keys)
    following = dict(zip(keys, keys[1:] + keys[:1], strict=True))
    return [same[following[" ".join(spoken_words(text))]] for text in texts]


def envelope_noise(pcm: np.ndarray, rate: int, seed: int = 0) -> np.ndarray:
    """White noise ``[N]`` as loud, moment by moment, as ``pcm``: its rhythm without its sounds."""
    width = max(1, round(ENVELOPE_SECONDS * rate))
    power = np.convolve(np.square(pcm, dtype=np.float64), np.full(width, 1 / width), "same")
    noise = np.random.default_rng(seed).standard_normal(len(power))
    return (noise * np.sqrt(np.maximum(power, 0))).astype(np.float32)
