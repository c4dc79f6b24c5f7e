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

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from ..text import is_blank
from ..types import Audio, CheckpointError, InputError, Profile, Prompt, Text, Voice
from .tags import TAGS, arrange
from .tokenizer import PromptTokenizer, merged, read_tokenizer

if TYPE_CHECKING:
    import mlx.core as mx

TTS, TEXT, AUDIO = "<|tts|>", "<|text|>", "<|audio|>"
REF_TEXT, REF_AUDIO = "<|ref_text|>", "<|ref_audio|>"


class PromptBuilder:
    """Builds the prompts of one checkpoint; token ids come from its tokenizer, by name."""

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
    ) -> Prompt:
        """The prompt that asks for ``text`` to be spoken.

        Args:
            text: what to say; its tags are put where the model expects them (``tags.arrange``).
            voices: clips to clone, with or without their transcripts; without any, the model draws
                a voice each time.
            history: what was generated before, oldest first: pairs of text and codes ``[T, K]``.
            scene, system, references_in_system, speakers: v2's; None and False alone are accepted.

        Raises:
            InputError: nothing to say, an unknown tag, or something this model does not have.
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
            parts += [*self._text(said), Audio(codes)]
        return merged([*parts, *self._text(text)])

    def _reference(self, voice: Voice | Profile) -> Prompt:
        if isinstance(voice, Profile):
            raise InputError(
                "Higgs v3 takes no voice in words (profile:...): clone a clip, or use tags."
            )
        said: Prompt = []
        if voice.transcript.strip():
            said = [self._marker(REF_TEXT), self._words(voice.transcript.strip())]
        return [*said, self._marker(REF_AUDIO), Audio(voice.codes)]

    def _text(self, text: str) -> Prompt:
        return [self._marker(TEXT), self._words(arrange(text)), self._marker(AUDIO)]

    def _marker(self, token: str) -> Text:
        return Text([self._tokens.id(token)])

    def _words(self, text: str) -> Text:
        try:
            return Text(self._tokens.encode(text))
        except CheckpointError as error:
            raise CheckpointError(f"{error} Leave the tag out for this checkpoint.") from error
