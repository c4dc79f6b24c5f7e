"""Prompts of Higgs Audio v3: a task token, the voice, the text; no chat template.

The layouts of sglang-omni's ``higgs_tts`` text tokenizer, token for token::

    <|tts|> <|text|> words <|audio|>
    <|tts|> <|ref_audio|> clip <|text|> words <|audio|>
    <|tts|> <|ref_text|> its words <|ref_audio|> clip <|text|> words <|audio|>

(the blanks are not tokens). Only the first clip has a reference implementation; several, and what
was said before, repeat the same blocks, which is what the model sees in training when chunks follow
each other, and is experimental here.

Control tokens in the texts of a caller are read as ordinary characters, except ``tags.TAGS``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tokenizers import Tokenizer

from ..text import is_blank
from ..types import Audio, CheckpointError, Heard, Hearing, InputError, Profile, Prompt, Text, Voice
from .base import Opening
from .tags import TAGS, arrange, tag
from .tokenizer import PromptTokenizer, merged, read_tokenizer

if TYPE_CHECKING:
    import mlx.core as mx

TTS, TEXT, AUDIO = "<|tts|>", "<|text|>", "<|audio|>"
REF_TEXT, REF_AUDIO = "<|ref_text|>", "<|ref_audio|>"


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation: words, and codes ``[T, K]``."""

    role: str
    parts: Sequence[str | mx.array]


class PromptBuilder:
    """Builds the prompts of one checkpoint; token ids come from its tokenizer, by name."""

    NEEDS_WORDS: ClassVar[bool] = False  # though they help
    hearing = Hearing()  # the talker's, as whoever loads both says
    NO_CHAT: ClassVar[str | None] = (
        "Higgs v3 reads texts aloud and does not converse: chat needs a v2 checkpoint with a text "
        "head, such as bosonai/higgs-tts-2-3b-base."
    )

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Take over ``tokenizer``.

        Raises:
            CheckpointError: it lacks a token that every prompt needs.
        """
        self._tokens = PromptTokenizer(tokenizer, TAGS)
        for token in (TTS, TEXT, AUDIO, REF_TEXT, REF_AUDIO):
            self._tokens.id(token)  # raises now, not at the first request

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> PromptBuilder:
        """Read ``tokenizer.json`` in a checkpoint's folder.

        Raises:
            CheckpointError: it is missing, unreadable, or not a v3 tokenizer.
        """
        return cls(read_tokenizer(folder, all_special=True))

    @classmethod
    def check_controls(cls, controls: Mapping[str, str]) -> None:
        """Raises InputError for a value without a tag; the message lists those there are."""
        for control, value in controls.items():
            tag(control, value)

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
        """The prompt that asks for ``text`` to be spoken.

        Args:
            text: what to say; its tags are put where the model expects them (``tags.arrange``).
            voices: clips to clone, with or without their transcripts; without any, the model draws
                a voice each time.
            history: what was generated before, oldest first: pairs of text and codes ``[T, K]``.
            controls: ``tags.CONTROLS`` by name; they hold for ``history`` as well, which was said
                so. A sentence with a tag of its own keeps that.
            scene, system, references_in_system, speakers: v2's; None and False alone are accepted.

        Raises:
            InputError: nothing to say, an unknown tag or value, something this model lacks.
            CheckpointError: the tokenizer lacks a tag that the text has.
        """
        if is_blank(text):
            raise InputError(
                f"There is nothing to say in {text[:60]!r}: it has no letter and no digit."
            )
        if scene or system or references_in_system:
            raise InputError(
                "Higgs v3 has no scene and no system turn: use tags such as <|emotion:awe|>."
            )
        parts: Prompt = [self._marker(TTS)]
        for voice in voices:
            parts += self._reference(voice)
        for said, codes in history:
            parts += [*self._text(said, controls), Audio(codes)]
        return merged([*parts, *self._text(text, controls)])

    def turn(
        self, role: str, parts: Sequence[str | mx.array], recipient: str | None = None
    ) -> Turn:
        """One turn of a conversation, for `transcript`."""
        return Turn(role, parts)

    def transcript(
        self, turns: Sequence[Turn], *, scene: str | None = None, start_index: int = 0
    ) -> list[tuple[Text | Audio | Heard, bool]]:
        """A whole conversation for training: its pieces, and whether the model learns to say each.

        It learns the clips of assistants from turn ``start_index`` on; those before are references.
        A scene, and what a system says, have no place in this model's prompts.

        Raises:
            InputError: an assistant's words, or a user's clip.
        """
        pieces: list[tuple[Text | Audio | Heard, bool]] = [(self._marker(TTS), False)]
        said = ""
        for index, turn in enumerate(turns):
            trained = index >= start_index
            clips = [part for part in turn.parts if not isinstance(part, str)]
            words = " ".join(part.strip() for part in turn.parts if isinstance(part, str))
            if (turn.role == "user" and clips) or (turn.role == "assistant" and words):
                raise InputError(
                    "Higgs v3 learns to speak: what a user writes, and clips of an assistant; not "
                    f"{'a clip of a user' if clips else 'words of an assistant'}."
                )
            said = words if turn.role == "user" else said
            for clip in clips if turn.role == "assistant" else ():
                before = self._text(said) if trained else self._referring(said)
                pieces += [*((part, False) for part in before), (Audio(clip), trained)]
        return pieces

    def converse(
        self,
        turns: Sequence[Turn],
        *,
        voices: Sequence[Voice | Profile] = (),
        speech: bool | None = None,
        goes_on: bool = False,
    ) -> Opening:
        """Raises InputError: this model was never trained to."""
        raise InputError(self.NO_CHAT or "")

    def _reference(self, voice: Voice | Profile) -> Prompt:
        if isinstance(voice, Profile):
            raise InputError(
                "Higgs v3 takes no voice in words (profile:...): clone a clip, or use tags."
            )
        return [*self._referring(voice.transcript), Audio(voice.codes)]

    def _referring(self, transcript: str) -> Prompt:
        """What comes before a reference's clip."""
        said: Prompt = []
        if transcript.strip():
            said = [self._marker(REF_TEXT), self._words(transcript.strip())]
        return [*said, self._marker(REF_AUDIO)]

    def _text(self, text: str, controls: Mapping[str, str] | None = None) -> Prompt:
        return [self._marker(TEXT), self._words(arrange(text, controls)), self._marker(AUDIO)]

    def _marker(self, token: str) -> Text:
        return Text([self._tokens.id(token)])

    def _words(self, text: str) -> Text:
        try:
            return Text(self._tokens.encode(text))
        except CheckpointError as error:
            raise CheckpointError(f"{error} Leave the tag out for this checkpoint.") from error
