"""Reference clips for data that has none: single readings become lessons in cloning."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...voices import reference
from .conversation import Clip, Conversation
from .folders import Reading, readings, rebuilt


def with_clip(
    conversations: Iterable[Conversation], path: Path, share: float = 1.0, seed: int = 0
) -> Iterator[Conversation]:
    """The same reference before a share of all single readings.

    Raises:
        InputError: no clip, or no ``CLIP.txt`` beside it.
    """
    found = reference(path)
    fixed = Reading(found.transcript, Clip(found.path))
    draw = random.Random(seed)
    for conversation in conversations:
        target = alone(conversation)
        wanted = draw.random() < share
        usable = target is not None and wanted and target.clip != fixed.clip
        yield rebuilt(conversation, references=(fixed,)) if usable else conversation


def with_drawn(
    conversations: Iterable[Conversation], share: float = 1.0, seed: int = 0
) -> Iterator[Conversation]:
    """Before a share of all single readings, another clip of the same speaker.

    A speaker with a single clip, and whatever is no single reading, stays as it is.
    """
    every = list(conversations)
    clips: dict[str | None, list[Reading]] = defaultdict(list)
    for conversation in every:
        if (target := alone(conversation)) is not None:
            clips[conversation.speaker].append(target)
    draw = random.Random(seed)
    for conversation in every:
        target = alone(conversation)
        wanted = draw.random() < share
        others = [] if target is None or not wanted else clips[conversation.speaker]
        other = _another(others, target, draw)
        yield conversation if other is None else rebuilt(conversation, references=(other,))


def _another(
    readings: list[Reading], target: Reading | None, draw: random.Random
) -> Reading | None:
    """One of the readings whose clip is not the target's; None where there is no such."""
    if not any(reading.clip != target.clip for reading in readings if target is not None):
        return None
    while True:
        found = draw.choice(readings)
        if target is not None and found.clip != target.clip:
            return found


def alone(conversation: Conversation) -> Reading | None:
    """The one reading of a conversation without references; None for any other."""
    found = readings(conversation)
    return found[1][0] if found is not None and len(found[1]) == 1 else None
