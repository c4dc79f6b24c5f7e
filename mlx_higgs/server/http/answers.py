"""What was answered lately, so that a conversation can go on by the id of an answer's audio."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict

from ..messages import Message

SECONDS = 3600  # that an answer is kept
MOST = 256  # answers: an hour of speech is 2.9 MB of codes
PREFIX = "audio_"


class Answers:
    """The last answers, as messages whose clips are codes; for one event loop."""

    def __init__(self, most: int = MOST, seconds: float = SECONDS):
        self._most, self._seconds = most, seconds
        self._kept: OrderedDict[str, tuple[float, Message]] = OrderedDict()

    def new_id(self) -> tuple[str, int]:
        """An id nobody guesses, and the Unix time at which it is forgotten."""
        return PREFIX + secrets.token_hex(16), int(time.time() + self._seconds)

    def keep(self, name: str, message: Message) -> None:
        """Remember an answer under its id; the oldest make room."""
        self._kept[name] = time.monotonic() + self._seconds, message
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def find(self, name: str) -> Message | None:
        """The answer; None if there is none, or its time is over."""
        ends, message = self._kept.get(name, (0.0, None))
        return message if time.monotonic() < ends else None
