"""Turns of a ChatML conversation, before they are ids: words, control tokens and clips."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from ..types import Profile, Recording, Voice

if TYPE_CHECKING:
    import mlx.core as mx

Role = Literal["system", "user", "assistant"]
# words, a control token, a recording that is heard, or a clip's codes [T, K]
Part: TypeAlias = "str | Marker | Recording | mx.array"

SCENE_START, SCENE_END = "<|scene_desc_start|>", "<|scene_desc_end|>"
MARKERS = (
    SCENE_START,
    SCENE_END,
    "<|generation_instruction_start|>",
    "<|generation_instruction_end|>",
)

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


def with_markers(text: str) -> list[Part]:
    """Cut a trusted text at its ``MARKERS``: the parts of a `Turn` that may hold them."""
    pieces = re.split(f"({'|'.join(map(re.escape, MARKERS))})", text)
    return [Marker(piece) if i % 2 else piece for i, piece in enumerate(pieces) if piece]


def is_clip(part: Part) -> bool:
    """Whether a part is sound: codes or a recording."""
    return not isinstance(part, (str, Marker))


def marked(turn: Turn) -> Turn:
    """A turn of the caller's with its texts cut at their markers."""
    if turn.role == "assistant":
        return turn
    parts = [[part] if not isinstance(part, str) else with_markers(part) for part in turn.parts]
    return replace(turn, parts=[piece for some in parts for piece in some])


def trusted(turn: Turn, scene: str) -> Turn:
    """A turn whose texts are cut at their markers if it is the system's, with the scene in it."""
    if turn.role != "system":
        return turn
    parts: list[Part] = []
    for part in turn.parts:
        parts += with_markers(part) if isinstance(part, str) else [part]
    if scene and Marker(SCENE_START) not in [p for p in parts if isinstance(p, Marker)]:
        parts += _system("", scene, [])
    return replace(turn, parts=_joined(parts))


def preamble(
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


def reference_turns(voices: Sequence[Voice | Profile]) -> list[Turn]:
    """Each reference as a user turn with its transcript and an assistant turn with its clip."""
    turns = []
    for index, voice in enumerate(voices):
        assert isinstance(voice, Voice)  # profiles went into the system turn
        tag = f"[SPEAKER{index}] " if len(voices) > 1 else ""
        turns += [Turn("user", [tag + voice.transcript.strip()]), Turn("assistant", [voice.codes])]
    return turns
