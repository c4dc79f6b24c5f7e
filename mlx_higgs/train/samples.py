"""A conversation -> what the model sees and what it must learn to say, position by position.

Positions are token ids and delayed rows of codes, in the order of the prompt::

    ids           b  h  h  t  t  e  h  h  o  .  .  .  .  .  x  e
    rows                                     r0 r1 r2 r3 r4
    text_labels   -  -  -  -  -  -  -  -  o  -  -  -  -  -  x  e
    audio_labels                             -  l1 l2 l3 l4

(``o`` opens a clip, ``x`` closes it, ``e`` ends a turn, ``-`` is not learnt.) A label stands where
its token stands; whoever scores shifts by one. In a row, the BOS of the ramp-in and the EOS fill
are not learnt, and exactly one EOS of each codebook is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..delay import DelayPattern
from ..types import InputError, Text
from .data.conversation import Clip, Conversation

if TYPE_CHECKING:
    from ..prompts.base import PromptBuilder

IGNORED = -100  # a label that is not learnt, as everywhere in this field
ROW = -1  # in ``ids``: here stands the next row of codes


@dataclass(frozen=True)
class Sample:
    """One conversation as host arrays.

    Attributes:
        ids: int32 ``[S]``; ``ROW`` where a row of codes stands.
        rows: int16 ``[R, K]``, delayed.
        text_labels: int32 ``[S]``. audio_labels: int16 ``[R, K]``. ``IGNORED`` is not learnt.
        source: ``file:line``, for messages.
    """

    ids: np.ndarray
    rows: np.ndarray
    text_labels: np.ndarray
    audio_labels: np.ndarray
    source: str = ""

    def __len__(self) -> int:
        return len(self.ids)


def make_sample(
    conversation: Conversation,
    prompts: PromptBuilder,
    delay: DelayPattern,
    codes_of: Callable[[Clip], np.ndarray],
    *,
    train_reference: bool = False,
) -> Sample:
    """Lay out one conversation.

    Args:
        codes_of: codes ``[T, K]`` of a clip.
        train_reference: learn the turns before ``start_index``, too.

    Raises:
        InputError: nothing in it is to be learnt, or a clip cannot be used.
    """
    source = conversation.source or "A conversation"
    if prompts.hearing.features:
        _check_unheard(conversation, source)
    turns = [
        prompts.turn(
            message.role,
            [
                p if isinstance(p, str) else _codes(p, codes_of, delay, source)
                for p in message.parts
            ],
            message.recipient,
        )
        for message in conversation.messages
    ]
    start = 0 if train_reference else conversation.start_index
    pieces = prompts.transcript(turns, scene=conversation.scene, start_index=start)
    sample = _laid_out(pieces, delay, source)
    if not (np.any(sample.text_labels >= 0) or np.any(sample.audio_labels >= 0)):
        raise InputError(
            f"{source} has nothing to learn: no assistant turn from start_index {start} on."
        )
    return sample


def _check_unheard(conversation: Conversation, source: str) -> None:
    """Raises InputError for a clip that an audio tower would listen to."""
    if any(message.clips and message.role != "assistant" for message in conversation.messages):
        raise InputError(
            f"{source} has a clip of a user or the system turn, which this checkpoint listens to: "
            "it can be trained on clips of assistants alone."
        )


def _laid_out(pieces: list, delay: DelayPattern, source: str) -> Sample:
    K = delay.num_codebooks
    ids, text_labels = [], []
    rows, audio_labels = [np.zeros((0, K), np.int16)], [np.zeros((0, K), np.int16)]
    for piece, trained in pieces:
        if isinstance(piece, Text):
            ids += piece.ids
            text_labels += piece.ids if trained else [IGNORED] * len(piece.ids)
            continue
        codes = np.array(piece.codes)
        rows.append(np.array(delay.apply(piece.codes)).astype(np.int16))
        audio_labels.append(row_labels(codes, delay, trained))
        ids += [ROW] * len(rows[-1])
        text_labels += [IGNORED] * len(rows[-1])
    return Sample(
        np.array(ids, np.int32),
        np.concatenate(rows),
        np.array(text_labels, np.int32),
        np.concatenate(audio_labels),
        source,
    )


def row_labels(codes: np.ndarray, delay: DelayPattern, trained: bool = True) -> np.ndarray:
    """Labels int16 ``[L, K]`` of the delayed rows of codes ``[T, K]``.

    The codes and the first EOS after them; without edge frames the last codebooks' EOS has no row
    to stand in.
    """
    (T, K), edge = codes.shape, delay.edge_frames
    labels = np.full((delay.num_rows(T), K), IGNORED, np.int16)
    for book in range(K if trained else 0):
        first = delay.shift * book + edge
        labels[first : first + T, book] = codes[:, book]
        labels[first + T : first + T + 1, book] = delay.eos_id
    return labels


def _codes(
    clip: Clip, codes_of: Callable[[Clip], np.ndarray], delay: DelayPattern, source: str
) -> mx.array:
    """A clip's codes ``[T, K]``; what is wrong with them is told by file and line."""
    try:
        codes = codes_of(clip)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    size = delay.codebook_size
    if codes.ndim != 2 or codes.shape[1] != delay.num_codebooks or not len(codes):
        raise InputError(
            f"{source}: a clip has codes of shape {codes.shape}, the model speaks "
            f"[frames, {delay.num_codebooks}]: the codec does not belong to it."
        )
    if codes.min() < 0 or codes.max() >= size:
        raise InputError(f"{source}: a code {codes.max()} is outside 0..{size - 1}.")
    return mx.array(codes)
