"""Prompts of Higgs Audio v2: ChatML turns, with clips where someone speaks.

Token for token what Boson's ``prepare_generation_context`` and ``prepare_chatml_sample`` build
(examples/generation.py, dataset/chatml_dataset.py), followed by ``<|audio_out_bos|>``, so that the
model answers with speech.

Control tokens in the texts of a caller are read as ordinary characters, except the sound tags
``SOUND_TOKENS`` everywhere, and the ``MARKERS`` of a scene or an instruction in a free system text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from tokenizers import Tokenizer

from ..text import is_blank, speaker_tags
from ..types import Audio, Heard, Hearing, InputError, Profile, Prompt, Recording, Text, Voice
from .base import Marks, Opening
from .heard import stretches
from .tokenizer import PromptTokenizer, merged, read_tokenizer
from .wording import Wording

if TYPE_CHECKING:
    import mlx.core as mx

Role = Literal["system", "user", "assistant"]
# words, a control token, a recording that is heard, or a clip's codes [T, K]
Part: TypeAlias = "str | Marker | Recording | mx.array"

SOUND_TOKENS = ("<SE>", "</SE>", "<SE_s>", "</SE_s>", "<SE_e>", "</SE_e>")
SCENE_START, SCENE_END = "<|scene_desc_start|>", "<|scene_desc_end|>"
MARKERS = (
    SCENE_START,
    SCENE_END,
    "<|generation_instruction_start|>",
    "<|generation_instruction_end|>",
)

# What opens and closes a clip, by the role that holds it.
_CLIP_TOKENS: dict[Role, tuple[str, str]] = {
    "system": ("<|audio_bos|>", "<|audio_eos|>"),
    "user": ("<|audio_bos|>", "<|audio_eos|>"),
    "assistant": ("<|audio_out_bos|>", "<|audio_eos|>"),
}

# The system texts the model was trained with.
ONE_SPEAKER = "Generate audio following instruction."
MANY_SPEAKERS = (
    "You are an AI assistant designed to convert text into speech.\n"
    "If the user's message includes a [SPEAKER*] tag, do not read out the tag and generate speech"
    " for the following text, using the specified voice.\n"
    "If no speaker tag is present, select a suitable voice on your own."
)


@dataclass(frozen=True)
class Marker:
    """A control token, by name, between the words of a turn."""

    token: str


@dataclass(frozen=True)
class Turn:
    """One turn of the conversation. Each part is tokenised on its own."""

    role: Role
    parts: Sequence[Part]
    recipient: str | None = None  # whom an assistant addresses


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
            system: your own system text instead of the one made here; may hold ``MARKERS``.
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
        opening = with_markers(system) if system else _opening(voices, scene, in_system, speakers)
        turns = [Turn("system", opening)] if opening else []
        turns += [] if in_system else _reference_turns(voices)
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
        turns = [_marked(turn) for turn in turns]
        start = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
        turns[start:start] = _reference_turns(voices)
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
        clips = [part for turn in turns[:start] for part in turn.parts if _is_clip(part)]
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
        if not _is_clip(turns[-1].parts[-1]):
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
        turns = [_trusted(turn, scene if i == 0 else "") for i, turn in enumerate(turns)]
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


def with_markers(text: str) -> list[Part]:
    """Cut a trusted text at its ``MARKERS``: the parts of a `Turn` that may hold them."""
    pieces = re.split(f"({'|'.join(map(re.escape, MARKERS))})", text)
    return [Marker(piece) if i % 2 else piece for i, piece in enumerate(pieces) if piece]


def _is_clip(part: Part) -> bool:
    return not isinstance(part, (str, Marker))


def _marked(turn: Turn) -> Turn:
    """A turn of the caller's with its texts cut at their markers."""
    if turn.role == "assistant":
        return turn
    parts = [[part] if not isinstance(part, str) else with_markers(part) for part in turn.parts]
    return replace(turn, parts=[piece for some in parts for piece in some])


def _trusted(turn: Turn, scene: str) -> Turn:
    """A turn whose texts are cut at their markers if it is the system's, with the scene in it."""
    if turn.role != "system":
        return turn
    parts: list[Part] = []
    for part in turn.parts:
        parts += with_markers(part) if isinstance(part, str) else [part]
    if scene and Marker(SCENE_START) not in [p for p in parts if isinstance(p, Marker)]:
        parts += _system("", scene, [])
    return replace(turn, parts=_joined(parts))


def _opening(
    voices: Sequence[Voice | Profile],
    scene: str | None,
    in_system: bool,
    speakers: Sequence[str],
) -> list[Part]:
    """The reference's system text; empty when cloning without a scene."""
    scene = (scene or "").strip()
    if in_system:
        return _system(ONE_SPEAKER, scene, _voice_lines(voices))
    if voices and not scene:
        return []
    if not voices and len(speakers) > 1:
        return _system(MANY_SPEAKERS, scene, _alternating_lines(speakers))
    return _system(ONE_SPEAKER, scene, [])


def _alternating_lines(speakers: Sequence[str]) -> list[Part]:
    """One line for each speaker of a smart voice."""
    kinds = ("feminine", "masculine")
    return [f"{speaker}: {kinds[index % 2]}\n" for index, speaker in enumerate(speakers)]


def _voice_lines(voices: Sequence[Voice | Profile]) -> list[Part]:
    """One line for each voice: its description or its clip."""
    parts: list[Part] = []
    for index, voice in enumerate(voices):
        clip = isinstance(voice, Voice)
        who = Recording(voice.codes, voice.wave) if clip else voice.description
        parts += [f"SPEAKER{index}: ", who, "\n"]
    return parts


def _system(instruction: str, scene: str, lines: Sequence[Part]) -> list[Part]:
    """The instruction, then a block with the scene and the speakers' lines, if there are any."""
    if not scene and not lines:
        return [instruction]
    scene_lines = [scene, "\n", "\n" if lines else ""] if scene else []
    block = _joined(["\n", *scene_lines, *lines])
    return [instruction + "\n\n", Marker(SCENE_START), *block, Marker(SCENE_END)]


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Neighbouring words as one part, because the reference tokenises them in one go."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, str) and isinstance(last, str):
            joined[-1] = last + part
        else:
            joined.append(part)
    return joined


def _reference_turns(voices: Sequence[Voice | Profile]) -> list[Turn]:
    """Each reference as a user turn with its transcript and an assistant turn with its clip."""
    turns = []
    for index, voice in enumerate(voices):
        assert isinstance(voice, Voice)  # profiles went into the system turn
        tag = f"[SPEAKER{index}] " if len(voices) > 1 else ""
        turns += [Turn("user", [tag + voice.transcript.strip()]), Turn("assistant", [voice.codes])]
    return turns
