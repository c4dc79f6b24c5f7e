"""What every prompt builder offers, whatever the talker's generation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..types import Audio, Heard, Hearing, Profile, Prompt, Text, Voice

if TYPE_CHECKING:
    import mlx.core as mx

    from .wording import Wording


@dataclass(frozen=True)
class Marks:
    """Ids that steer an answer in words and speech.

    Attributes:
        opens, closes: around speech. speech: stands for it between the two.
        stops: end the answer.
        barred: are never written.
    """

    opens: int
    speech: int
    closes: int
    stops: frozenset[int]
    barred: tuple[int, ...]


@dataclass(frozen=True)
class Opening:
    """Where an answer begins.

    Attributes:
        begun: codes ``[T, K]`` of a clip that it goes on with; the prompt ends before it.
        wording: reads its ids.
        voices: clips at the beginning that say whose voice it is.
    """

    prompt: Prompt
    begun: mx.array | None
    marks: Marks
    wording: Wording
    voices: int = 0


class PromptBuilder(Protocol):
    """Texts and voices -> the prompt that asks for them to be spoken."""

    NEEDS_WORDS: ClassVar[bool]  # whether a clip is cloned with its transcript only
    hearing: Hearing  # the talker's, as whoever loads both says
    NO_CHAT: ClassVar[str | None]  # why such a model does not converse; None: it may

    @classmethod
    def check_controls(cls, controls: Mapping[str, str]) -> None:
        """Raises InputError for a control, or a value of one, that this model does not have."""
        ...

    def build(
        self,
        text: str,
        *,
        voices: Sequence[Voice | Profile] = (),
        scene: str | None = None,
        system: str | None = None,
        references_in_system: bool = False,
        history: Iterable[tuple[str, mx.array]] = (),
        speakers: Sequence[str] | None = None,
        controls: Mapping[str, str] | None = None,
    ) -> Prompt:
        """Raises InputError for what the model does not have, CheckpointError for its tokenizer."""
        ...

    def turn(self, role: Any, parts: Sequence[Any], recipient: str | None = None) -> Any:
        """One turn of a conversation, for `transcript`: words, and codes ``[T, K]``."""
        ...

    def transcript(
        self, turns: Sequence[Any], *, scene: str | None = None, start_index: int = 0
    ) -> list[tuple[Text | Audio | Heard, bool]]:
        """A whole conversation for training: its pieces, and whether the model learns each."""
        ...

    def converse(
        self,
        turns: Sequence[Any],
        *,
        voices: Sequence[Voice | Profile] = (),
        speech: bool | None = None,
        goes_on: bool = False,
    ) -> Opening:
        """A conversation up to the answer, in words and speech.

        Raises:
            InputError: this model only reads aloud. CheckpointError: its tokenizer lacks a token.
        """
        ...
