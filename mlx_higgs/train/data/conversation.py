"""The nouns of training data: a conversation, its messages, and the clips in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True)
class Clip:
    """A recording, or a piece of one.

    Attributes:
        path: the file; None when ``data`` holds it.
        offset: seconds before the piece begins.
        duration: seconds it lasts; None is up to the end of the file.
        data: an audio file's bytes (``raw_audio``, decoded from base64).
        row_id: a number Boson's data sets carry along; nothing here reads it.
    """

    path: Path | None
    offset: float = 0.0
    duration: float | None = None
    data: bytes | None = None
    row_id: int | None = None

    def __str__(self) -> str:
        name = f"{len(self.data or b'')} bytes of raw_audio" if self.path is None else self.path
        if not self.offset and self.duration is None:
            return str(name)
        end = "" if self.duration is None else f"{self.offset + self.duration:g}"
        return f"{name} [{self.offset:g}:{end} s]"


Part: TypeAlias = str | Clip


@dataclass(frozen=True)
class Message:
    """One turn. ``recipient`` is Boson's, for an assistant that addresses a tool."""

    role: Role
    parts: tuple[Part, ...]
    recipient: str | None = None

    @property
    def clips(self) -> tuple[Clip, ...]:
        return tuple(part for part in self.parts if isinstance(part, Clip))

    @property
    def text(self) -> str:
        """Its words, without the clips."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True)
class Conversation:
    """One line of a data set.

    Attributes:
        start_index: the first message that may be trained: assistant messages before it are
            references to listen to.
        speaker: who answers.
        scene: where it is spoken; part of the system turn.
        misc: whatever else the line carries.
        source: ``file:line``, for messages.
    """

    messages: tuple[Message, ...]
    start_index: int = 0
    speaker: str | None = None
    scene: str | None = None
    misc: dict | None = None
    source: str = ""

    @property
    def targets(self) -> tuple[Message, ...]:
        """The messages that are trained."""
        trained = self.messages[self.start_index :]
        return tuple(message for message in trained if message.role == "assistant")

    @property
    def clips(self) -> tuple[Clip, ...]:
        """Every clip, in the order of the prompt."""
        return tuple(clip for message in self.messages for clip in message.clips)
