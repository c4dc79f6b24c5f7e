"""What every prompt builder offers, whatever the talker's generation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..types import Audio, Heard, Hearing, Profile, Prompt, Text, Voice

if TYPE_CHECKING:
    import mlx.core as mx


class PromptBuilder(Protocol):
    """Texts and voices -> the prompt that asks for them to be spoken."""

    NEEDS_WORDS: ClassVar[bool]  # whether a clip is cloned with its transcript only
    hearing: Hearing  # the talker's, as whoever loads both says

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
