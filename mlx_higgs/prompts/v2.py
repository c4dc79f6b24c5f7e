"""Prompts of Higgs Audio v2: ChatML turns, with clips where someone speaks.

Token for token what Boson's ``prepare_generation_context`` and ``prepare_chatml_sample`` build
(examples/generation.py, dataset/chatml_dataset.py), followed by ``<|audio_out_bos|>``, so that the
model answers with speech.

Control tokens in the texts of a caller are read as ordinary characters, except the sound tags
``SOUND_TOKENS`` everywhere, and the ``MARKERS`` of a scene or an instruction in a free system text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tokenizers import Tokenizer

from ..text import is_blank, speaker_tags
from ..types import Audio, Heard, Hearing, InputError, Profile, Prompt, Recording, Text, Voice
from .base import Marks, Opening
from .chatml import (
    ONE_SPEAKER,
    Marker,
    Part,
    Role,
    Turn,
    is_clip,
    marked,
    preamble,
    reference_turns,
    trusted,
    with_markers,
)
from .heard import stretches
from .tokenizer import PromptTokenizer, merged, read_tokenizer
from .wording import Wording

if TYPE_CHECKING:
    import mlx.core as mx

SOUND_TOKENS = ("<SE>", "</SE>", "<SE_s>", "</SE_s>", "<SE_e>", "</SE_e>")
# What opens and closes a clip, by the role that holds it.
_CLIP_TOKENS: dict[Role, tuple[str, str]] = {
    "system": ("<|audio_bos|>", "<|audio_eos|>"),
    "user": ("<|audio_bos|>", "<|audio_eos|>"),
    "assistant": ("<|audio_out_bos|>", "<|audio_eos|>"),
}


class PromptBuilder:
    """Builds the prompts of one checkpoint; token ids come from its tokenizer, by name."""

    NEEDS_WORDS: ClassVar[bool] = True
    hearing = Hearing()  # the talker's, as whoever loads both says
    NO_CHAT: ClassVar[str | None] = None  # with a text head

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Take over ``tokenizer``.

        Raises:
            CheckpointError: it lacks a token that every prompt needs.
        """
        self._tokens = PromptTokenizer(tokenizer, SOUND_TOKENS)
        self.render([])  # raises now, not at the first request

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> PromptBuilder:
        """Read ``tokenizer.json`` in a checkpoint's folder.

        Raises:
            CheckpointError: it is missing, unreadable, or not a v2 tokenizer.
        """
        return cls(read_tokenizer(folder))

    @classmethod
    def check_controls(cls, controls: Mapping[str, str]) -> None:
        """Raises InputError if there are any: this model knows none."""
        if controls:
            raise InputError(
                f"This model has no control tags: leave {', '.join(controls)} out, or describe how "
                "it is spoken in a scene or a profile."
            )

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
            text: what to say, normalised or not (`mlx_higgs.text.normalize`); not stripped.
            voices: who speaks, SPEAKER0 first. Empty: the model picks ("smart voice"). A
                `Profile` anywhere puts all voices into the system turn, as in the reference.
            scene: where and how it is spoken: ``"Audio is recorded from a quiet room."``
            system: your own system text instead of the one made here; may hold ``chatml.MARKERS``.
                A `Voice` is still presented as two turns; a scene belongs inside it.
            references_in_system: put the clips into the system turn, without their transcripts.
            history: what was generated before, oldest first: pairs of text and codes ``[T, K]``.
            speakers: for smart voice, the tags of the whole text if ``text`` is only a piece of
                it; with two or more, feminine and masculine voices alternate.
            controls: v3's; none but None is accepted.

        Raises:
            InputError: nothing to say, or arguments that contradict each other.
            CheckpointError: the tokenizer lacks a token this prompt needs.
        """
        if is_blank(text):
            raise InputError(
                f"There is nothing to say in {text[:60]!r}: it has no letter and no digit."
            )
        self.check_controls(controls or {})
        in_system = references_in_system or any(isinstance(voice, Profile) for voice in voices)
        if in_system and not voices:
            raise InputError("References in the system turn need at least one voice.")
        if system and (scene or in_system):
            raise InputError(
                "A system text of your own cannot go with a scene, a profile or references in the"
                " system turn: write them into it, or leave it out."
            )
        if speakers is None:
            speakers = speaker_tags(text)
        opening = with_markers(system) if system else preamble(voices, scene, in_system, speakers)
        turns = [Turn("system", opening)] if opening else []
        turns += [] if in_system else reference_turns(voices)
        for said, codes in history:
            turns += [Turn("user", [said]), Turn("assistant", [codes])]
        return self.render([*turns, Turn("user", [text])])

    def render(self, turns: Sequence[Turn]) -> Prompt:
        """Any conversation, followed by the opening of the model's spoken answer."""
        tokens = self._tokens
        answer = [
            *self._header("assistant"),
            *tokens.encode("\n\n"),
            tokens.id("<|audio_out_bos|>"),
        ]
        pieces = [piece for turn in self._written(turns) for piece in turn]
        return merged([Text([tokens.id("<|begin_of_text|>")]), *pieces, Text(answer)])

    def converse(
        self,
        turns: Sequence[Turn],
        *,
        voices: Sequence[Voice | Profile] = (),
        speech: bool | None = None,
        goes_on: bool = False,
    ) -> Opening:
        """A conversation up to the answer, in words and speech.

        Texts of the system's and of users may hold ``MARKERS``.

        Args:
            voices: clips that show how the answers sound, put after the system's first turns.
            speech: True opens the answer with speech (the reference's ``force_audio_gen``), False
                leaves it none; None lets the model decide.
            goes_on: the last turn, an assistant's, is not over: the answer continues it.

        Raises:
            InputError: a last turn that cannot be continued, a voice in words.
            CheckpointError: the tokenizer lacks a token that this needs.
        """
        if any(isinstance(voice, Profile) for voice in voices):
            raise InputError("In a conversation, describe a voice in the system's message.")
        turns = [marked(turn) for turn in turns]
        start = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
        turns[start:start] = reference_turns(voices)
        *before, last = [*self._written(turns), []]
        begun = None
        if goes_on:
            before, last, begun = self._unfinished(turns, before)
        else:
            last = [Text([*self._header("assistant"), *self._tokens.encode("\n\n")])]
        tokens = self._tokens
        if speech and begun is None:
            last = [*last, Text([tokens.id("<|audio_out_bos|>")])]
        pieces = [piece for turn in before for piece in turn]
        prompt = merged([Text([tokens.id("<|begin_of_text|>")]), *pieces, *last])
        wording = Wording(tokens, fresh=not goes_on)
        clips = [part for turn in turns[:start] for part in turn.parts if is_clip(part)]
        heard = len(clips) + len(voices) if voices else 0
        return Opening(prompt, begun, self._marks(speech), wording, heard)

    def _unfinished(
        self, turns: Sequence[Turn], written: list[Prompt]
    ) -> tuple[list[Prompt], Prompt, mx.array | None]:
        """The turns before the last, its beginning, and the clip it ends in."""
        if not turns or turns[-1].role != "assistant" or not turns[-1].parts:
            raise InputError("There is no message of the assistant at the end to go on with.")
        *before, last = written
        last = last[:-1]  # without the end of the turn
        if not is_clip(turns[-1].parts[-1]):
            return before, last, None
        *last, clip, _ = last
        assert isinstance(clip, Audio)
        return before, last, clip.codes

    def _marks(self, speech: bool | None) -> Marks:
        named = self._tokens.id
        opens, holder = named("<|audio_out_bos|>"), named("<|AUDIO_OUT|>")
        return Marks(
            opens=opens,
            speech=holder,
            closes=named("<|audio_eos|>"),
            stops=frozenset({named("<|eot_id|>"), named("<|end_of_text|>")}),
            # the reference breaks off where a placeholder is written: there is nothing to hold
            barred=(holder, named("<|AUDIO|>"), *([opens] if speech is False else [])),
        )

    def turn(self, role: Role, parts: Sequence[Part], recipient: str | None = None) -> Turn:
        """One turn of a conversation, for `render` and `transcript`."""
        return Turn(role, parts, recipient)

    def transcript(
        self, turns: Sequence[Turn], *, scene: str | None = None, start_index: int = 0
    ) -> list[tuple[Text | Audio | Heard, bool]]:
        """A whole conversation for training: its pieces, and whether the model learns to say each.

        It learns what assistants say from turn ``start_index`` on, with the token that ends the
        turn, but not the headers. A turn's texts may hold ``MARKERS`` if it is the system's.

        Args:
            scene: goes into the system turn, which is made when there is none.

        Raises:
            CheckpointError: the tokenizer lacks a token this conversation needs.
        """
        scene = (scene or "").strip()
        has_system = bool(turns) and turns[0].role == "system"
        if scene and not has_system:
            turns, start_index = [Turn("system", [ONE_SPEAKER]), *turns], start_index + 1
        turns = [trusted(turn, scene if i == 0 else "") for i, turn in enumerate(turns)]
        pieces: list[tuple[Text | Audio | Heard, bool]] = [
            (Text([self._tokens.id("<|begin_of_text|>")]), False)
        ]
        for index, (header, *said) in enumerate(self._written(turns)):
            trained = turns[index].role == "assistant" and index >= start_index
            pieces += [(header, False), *((piece, trained) for piece in said)]
        return pieces

    def _written(self, turns: Sequence[Turn]) -> Iterator[Prompt]:
        """Each turn: its header with the blank line, then what is said, then its end."""
        blank = len(self._tokens.encode("\n\n"))
        following = [turn.role for turn in turns[1:]]
        for turn, next_role in zip_longest(turns, following):
            parts = turn.parts
            if turn.recipient:
                parts = [turn.recipient, Marker("<|recipient|>"), *parts]
            said = [piece for part in _after_header(parts) for piece in self._part(part, turn.role)]
            first = said[0]
            assert isinstance(first, Text)  # it begins with the blank line
            speaks_on = turn.role == next_role == "assistant"
            end = self._tokens.id("<|eom_id|>" if speaks_on else "<|eot_id|>")
            header = Text([*self._header(turn.role), *first.ids[:blank]])
            yield [header, Text(first.ids[blank:]), *said[1:], Text([end])]

    def _header(self, role: Role) -> list[int]:
        start, end = self._tokens.id("<|start_header_id|>"), self._tokens.id("<|end_header_id|>")
        return [start, *self._tokens.encode(role), end]

    def _part(self, part: Part, role: Role) -> Prompt:
        if isinstance(part, str):
            return [Text(self._tokens.encode(part))]
        if isinstance(part, Marker):
            return [Text([self._tokens.id(part.token)])]
        start, end = (Text([self._tokens.id(token)]) for token in _CLIP_TOKENS[role])
        recording = part if isinstance(part, Recording) else Recording(part)
        if role == "assistant":
            if recording.codes is None:
                raise InputError("What an assistant said is given as codes: encode it first.")
            return [start, Audio(recording.codes), end]
        return [x for heard in stretches(recording, self.hearing) for x in (start, *heard, end)]


def _after_header(parts: Sequence[Part]) -> list[Part]:
    """The blank line after a header, then the parts.

    Boson encodes the blank line alone; transformers together with the words after it, which it
    strips. With Llama-3's tokenizer both give the same ids unless the words begin with a space;
    then this does as Boson. Other tokenizers get what transformers would train them with.
    """
    if parts and isinstance(parts[0], str) and not parts[0][:1].isspace():
        return ["\n\n" + parts[0], *parts[1:]]
    return ["\n\n", *parts]
