"""Which voice a name means: the library's own names, a server's aliases, OpenAI's names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import ApiError

OPENAI = {  # OpenAI's names -> the voice that comes with us and is most like
    "alloy": "en_woman",
    "ash": "en_man",
    "ballad": "en_man",
    "cedar": "en_man_deep",
    "coral": "en_woman",
    "echo": "en_man",
    "fable": "en_man",
    "marin": "en_woman",
    "nova": "en_woman",
    "onyx": "en_man_deep",
    "sage": "en_woman",
    "shimmer": "en_woman",
    "verse": "en_man",
}
FIRST = "alloy"  # the voice of requests that name none
DEFAULT = "default"
MAX_NAME = 64  # characters of a voice's name
MAX_VOICE = 1024  # and of a description in its place
LISTED = 50  # names in a message


def find(wanted: str | None, state: Any, aliases: Mapping[str, str]) -> str | None:
    """The library's name for what a request calls its voice.

    Args:
        wanted: None takes the server's default.
        aliases: the request's own.

    Returns:
        None: the model's own voice, where there is no other.

    Raises:
        ApiError: 400, unknown; the message lists the known ones.
    """
    known = state.library.names()
    if wanted is None:
        return default(known, state)
    for name in (wanted, aliases.get(wanted, ""), state.settings.voice_aliases.get(wanted, "")):
        if name in known:
            return name
    if wanted == DEFAULT:
        return default(known, state)
    if wanted.lower() in OPENAI:
        return stand_in(wanted.lower(), known)
    listed = ", ".join(sorted(known)[:LISTED]) or "none"
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    raise ApiError(
        400,
        f"There is no voice {wanted[:MAX_NAME]!r}. Known voices: {listed}{more}; OpenAI's names "
        "stand for some of them.",
        param="voice",
        code="voice_not_found",
    )


def default(known: Sequence[str], state: Any) -> str | None:
    """The voice of requests that name none: always the same, so that it does not change."""
    if not state.worker.defaults.clones:
        return None
    chosen = state.settings.default_voice
    return chosen if chosen in known else stand_in(FIRST, known)


def stand_in(alias: str, known: Sequence[str]) -> str | None:
    """The voice that an OpenAI name stands for; it stays the same whatever voices are added.

    Without the voices that come with us, each name ranks those there are by a hash and takes the
    first: one that comes or goes moves only the names that it wins or held.
    """
    if OPENAI[alias] in known:
        return OPENAI[alias]
    return min(known, key=lambda name: _rank(alias, name), default=None)


def _rank(alias: str, name: str) -> bytes:
    return hashlib.sha256(f"{alias} {name}".encode()).digest()
