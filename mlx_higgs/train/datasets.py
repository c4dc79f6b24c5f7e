"""A data folder -> samples: its parts found, its clips encoded, every conversation laid out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..types import FRAME_RATE, InputError
from .data.conversation import Clip
from .data.formats import read_conversations
from .samples import Sample, make_sample

if TYPE_CHECKING:
    from ..delay import DelayPattern
    from ..prompts.base import PromptBuilder

PARTS = ("train", "valid", "test")


def find_part(data: Path, part: str) -> Path | None:
    """Where one part of a data set is: ``DATA/train.jsonl``, or a folder ``DATA/train``.

    A file, or a folder without parts, is all training data.

    Raises:
        InputError: nothing there.
    """
    if not data.exists():
        raise InputError(f"There is no training data at {data}.")
    found = {name: path for name in PARTS if (path := _named(data, name))}
    if not found:
        return data if part == "train" else None
    return found.get(part)


def _named(data: Path, part: str) -> Path | None:
    places = (data / f"{part}.jsonl", data / f"{part}.json", data / part)
    return next((path for path in places if data.is_dir() and path.exists()), None)


def read_samples(
    path: Path,
    prompts: PromptBuilder,
    delay: DelayPattern,
    codes_of: Callable[[Clip], np.ndarray],
    *,
    longest: int,
    train_reference: bool = False,
) -> list[Sample]:
    """Every conversation of one part.

    Args:
        longest: positions of a sample at most.

    Raises:
        InputError: no conversation, or one that cannot be used, by ``file:line``.
    """
    from tqdm import tqdm

    samples = []
    for conversation in tqdm(read_conversations(path), path.name, unit="", disable=None):
        sample = make_sample(
            conversation, prompts, delay, codes_of, train_reference=train_reference
        )
        if len(sample) > longest:
            raise InputError(
                f"{sample.source} takes {len(sample)} positions, {len(sample.rows)} of them "
                f"speech ({len(sample.rows) / FRAME_RATE:.0f} s): max_seq_length is {longest}. "
                "Raise it, or shorten the sample."
            )
        samples.append(sample)
    if not samples:
        raise InputError(f"{path} holds no conversation.")
    return samples
