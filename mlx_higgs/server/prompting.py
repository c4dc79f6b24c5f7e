"""What is asked of a checkpoint -> a request's prompt, or a conversation's turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ..audio import to_rate
from ..hearing import longest
from ..loading import Higgs
from ..text import normalize
from ..types import Prompt, Recording
from .known import KnownVoices
from .messages import Part, read_messages
from .request import SpeechRequest


def prompt(request: SpeechRequest, higgs: Higgs, known: KnownVoices) -> tuple[Prompt, str]:
    """A request's prompt, and the text that is said.

    Raises:
        InputError: a voice that cannot be used, something this model lacks.
    """
    wanted = request.normalize
    wanted = higgs.defaults.normalize if wanted is None else wanted

    def read(text: str) -> str:
        return normalize(text.strip()) if wanted else text.strip()

    text = read(request.target_text)
    voices, scene = known.asked(request), request.scene
    if scene is None and not request.system and not voices:
        scene = higgs.defaults.scene
    built = higgs.prompts.build(
        text,
        voices=voices,
        scene=scene or None,
        system=request.system,
        references_in_system=request.references_in_system,
        history=[(read(said), codes) for said, codes in request.history],
        speakers=request.speakers,
        controls=request.controls,
    )
    return built, text


def turns(messages: Sequence[Any], higgs: Higgs, known: KnownVoices) -> list[Any]:
    """A conversation's turns: the model's own clips are codes, others are heard.

    Args:
        messages: as ``messages.read_messages`` takes them.

    Raises:
        InputError: what cannot be read, or a clip for a checkpoint that hears none.
    """
    rate = higgs.codec.sample_rate

    def part(said: Part, own: bool) -> str | mx.array | Recording:
        if isinstance(said, (str, Recording)):  # of an assistant's, the prompt takes the codes
            return said
        if not isinstance(said, tuple):
            return mx.array(said)
        return known.codes(to_rate(*said, rate)) if own else known.hear(said)

    found = []
    for message in read_messages(messages, rate, longest(higgs.talker.hearing)):
        parts = [part(said, own=message.role == "assistant") for said in message.parts]
        found.append(higgs.prompts.turn(message.role, parts, message.recipient))
    return found
