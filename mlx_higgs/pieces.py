"""A piece of a long text: one generation; and how a text is cut into pieces."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from .sentences import LIMITS, letters, split
from .text import speaker_tags
from .types import InputError

Chunk = Literal["auto", "sentence", "word", "speaker", "none"]
GAP_MS = 150.0  # between pieces, beside what silence they begin and end with
FADE_MS = 5.0  # at either end of a piece: so that no joint clicks
RETRIES = 2
MAX_CONTEXT = 16  # pieces; each takes as many positions as it has frames


@dataclass(frozen=True)
class Piece:
    """One generation.

    Args:
        speaker: a name of the cast; "" is the narrator.
        pause: seconds of silence before it, beside the gap.
        chapter: from 0.
    """

    text: str
    speaker: str = ""
    pause: float = 0.0
    chapter: int = 0


@dataclass(frozen=True)
class Chunking:
    """How a long text is cut, joined, and kept in one voice. None: as the checkpoint prefers.

    Args:
        mode: as ``sentences.split``; ``auto``: speakers' turns if there are tags, else sentences,
            but one piece if the whole text is no longer than that; ``none``: always one piece.
        limit: letters in a piece, or words.
        context: pieces said before that each piece is told of, beside the voice's clip.
        gap_ms, fade_ms: silence between pieces, and fades at both sides of it.
        retries: how often a piece that failed is drawn again; None: 2, and for a text of one piece
            none, unless its model is known to be weak.
        language: of the text, as ISO 639-1 says it.

    Raises:
        InputError: a value out of its bounds.
    """

    mode: Chunk = "auto"
    limit: int | None = None
    context: int | None = None
    gap_ms: float = GAP_MS
    fade_ms: float = FADE_MS
    retries: int | None = None
    language: str = "en"

    def __post_init__(self):
        if self.mode not in get_args(Chunk):
            raise InputError(f"The mode is {self.mode!r}: use one of {', '.join(get_args(Chunk))}.")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"The limit of a piece is {self.limit}: it must be 1 or more.")
        if self.context is not None and not 0 <= self.context <= MAX_CONTEXT:
            raise InputError(f"The context is {self.context} pieces: use 0 to {MAX_CONTEXT}.")
        for name in ("gap_ms", "fade_ms", "retries"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"{name} is {value}: it must be 0 or more.")

    def settled(self, letters: int | None, context: int) -> Chunking:
        """With what a checkpoint prefers where this leaves it open; its letters are no words."""
        limit = letters if self.limit is None and self.mode != "word" else self.limit
        return replace(self, limit=limit, context=context if self.context is None else self.context)

    @property
    def attempts(self) -> int:
        """How often a piece of several is drawn at most."""
        return 1 + (RETRIES if self.retries is None else self.retries)

    def cut(self, text: str) -> list[str]:
        """The texts that are one generation each; none is blank."""
        mode = self.mode
        if mode == "auto":
            if letters(text) <= (self.limit or LIMITS["sentence"]):
                mode = "none"
            else:
                mode = "speaker" if speaker_tags(text) else "sentence"
        if mode == "none":
            return [text]
        return split(text, mode=mode, limit=self.limit, language=self.language)


PREFERRED = Chunking()


def piece_seed(seed: int, chapter: int, place: int, attempt: int) -> int:
    """The seed of a piece: 32 bits of the SHA-256 of ``"SEED/CHAPTER/PLACE/ATTEMPT"``.

    Place and attempt count from 0, the place within its chapter. The first attempt at the very
    first piece is drawn with the seed itself, as a text of one piece is. No seed depends on what
    became of other pieces.
    """
    if not (chapter or place or attempt):
        return seed
    digest = hashlib.sha256(f"{seed}/{chapter}/{place}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
