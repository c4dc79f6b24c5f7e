"""A request for speech, and the bounds it is held to."""

from __future__ import annotations

import inspect
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from .. import audio
from ..delay import DelayPattern
from ..prefix import positions
from ..sampling import SamplingParams
from ..text import frame_cap, is_blank
from ..types import FRAME_RATE, InputError, Profile, Prompt, Voice
from ..voices import Reference, find_voice, reference

if TYPE_CHECKING:
    import mlx.core as mx

    from .chat import ChatRequest

Method = TypeVar("Method", bound=Callable)
Clips = str | os.PathLike | Sequence[str | os.PathLike]
MAX_POSITIONS = 8192  # what the reference serves; prompt and speech share them
PROFILE = "profile:"
CONTROLS = ("emotion", "style", "speed", "pitch", "expressive")  # fields of a request
CHARACTERS_PER_SECOND = 40.0  # faster than anybody speaks


@dataclass(frozen=True)
class SpeechRequest:
    """What to say, in which voice, drawn how. None leaves a choice to the checkpoint.

    Args:
        target_text: what to say; ``[SPEAKER0]`` tags change the speaker.
        reference_audio_path: a clip to clone, or several (SPEAKER0 first).
        reference_text: their exact words; None reads ``CLIP.txt`` beside each clip; "" is none,
            for models that clone without.
        voice: names, ``Voice`` or ``Reference`` objects, or ``profile:DESCRIPTION``; after the
            clips above.
        references_in_system: put the clips into the system turn, without transcripts.
        scene: where it is spoken; "" for none.
        system: the whole system turn instead of the one made from the scene.
        emotion, style, speed, pitch, expressive: control tags for the whole text, by name
            (``emotion="anger"``, ``speed="slow"``), where the model has them; "" for none. A
            sentence with a tag of its own keeps that.
        preset: how rows are drawn where the fields below leave it open, ``reference`` for one.
        max_new_frames: rows at most, 25 a second.
        ras_win_len, ras_max_repeat: repetition-aware sampling; a window of 0 switches it off.
        history: what was said before, oldest first: pairs of text and codes ``[T, K]``.
        speakers: the tags of the whole text, if this is a piece of it; None: those it has.
        fade_in_ms, fade_out_ms: linear fades on the result.
        seed: None draws one.
        normalize: full-width marks, ``[laugh]`` tags and the ending, as Boson's examples do it.
        machine: whose end-of-speech rules apply, ``boson`` or ``transformers``.
        guards: stop runaways (silence, repetition, far too long for the text).
    """

    target_text: str
    reference_audio_path: Clips | None = None
    reference_text: str | Sequence[str] | None = None
    voice: str | Voice | Reference | Sequence[str | Voice | Reference] | None = None
    references_in_system: bool = False
    scene: str | None = None
    system: str | None = None
    emotion: str | None = None
    style: str | None = None
    speed: str | None = None
    pitch: str | None = None
    expressive: str | None = None
    preset: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_new_frames: int | None = None
    ras_win_len: int | None = None
    ras_max_repeat: int | None = None
    history: Sequence[tuple[str, mx.array]] = ()
    speakers: Sequence[str] | None = None
    fade_in_ms: float = 0.0
    fade_out_ms: float = 0.0
    seed: int | None = None
    normalize: bool | None = None
    machine: str | None = None
    guards: bool = True

    def __post_init__(self):
        if is_blank(self.target_text):
            raise InputError(f"There is nothing to say in the text {self.target_text[:60]!r}.")
        audio.check_fades(self.fade_in_ms, self.fade_out_ms)
        for name in (*CONTROLS, "preset"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InputError(f"{name} is {value!r:.60}: it must be a name.")

    @property
    def controls(self) -> dict[str, str]:
        """The controls asked for, by name."""
        return {name: value for name in CONTROLS if (value := getattr(self, name))}

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """The checkpoint's defaults, with this request's choices and a seed."""
        return settled(defaults, self, max_frames=self.max_new_frames, machine=self.machine)


def settled(defaults: SamplingParams, request: Any, **more: Any) -> SamplingParams:
    """``defaults`` with what a request of any kind chose (None: nothing was), and with a seed."""
    seed = secrets.randbelow(2**32) if request.seed is None else request.seed
    chosen = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "ras_window": request.ras_win_len,
        "ras_max_repeats": request.ras_max_repeat,
        **more,
    }
    return replace(defaults, seed=seed, **{k: v for k, v in chosen.items() if v is not None})


def spelled_out(method: Method) -> Method:
    """Show the request's fields where a signature says ``**options`` (for help() and editors)."""
    shown = inspect.signature(method)
    own = [p for p in shown.parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default)
        for f in fields(SpeechRequest)
        if f.name not in shown.parameters
    ]
    vars(method)["__signature__"] = shown.replace(parameters=[*own, *options])
    return method


def references(request: SpeechRequest | ChatRequest) -> list[Reference | Voice | Profile]:
    """The voices a request names, clips first; none is decoded yet.

    Raises:
        InputError: a clip or a transcript that is missing, an unknown name.
    """
    clips, words = _listed(request.reference_audio_path), _listed(request.reference_text)
    if words and len(words) != len(clips):
        raise InputError(
            f"{len(words)} reference texts for {len(clips)} clips: each clip needs its own "
            "(--ref-audio with --ref-text), or all theirs beside them."
        )
    pairs = zip(clips, words or [None] * len(clips), strict=True)
    found = [reference(*pair, wordless=True) for pair in pairs]
    return [*found, *(_voice(v) for v in _listed(request.voice))]


def check_clips(asked: Iterable[Reference | Voice | Profile]) -> None:
    """Raises InputError for a clip that cannot be used."""
    for voice in asked:
        if isinstance(voice, Reference) and voice.wave is None:
            audio.read_reference(voice.path)


def _voice(voice: str | Voice | Reference) -> Reference | Voice | Profile:
    if isinstance(voice, (Voice, Reference)):
        return voice
    if not voice.startswith(PROFILE):
        return find_voice(voice)
    if not (description := voice.removeprefix(PROFILE).strip()):
        raise InputError(f"The voice {voice!r} lacks its description.")
    return Profile(description)


def _listed(value) -> list:
    if value is None:
        return []
    alone = (str, os.PathLike, Voice, Reference)
    return [value] if isinstance(value, alone) else list(value)


def fit(
    params: SamplingParams,
    request: SpeechRequest,
    text: str,
    prompt: Prompt,
    delay: DelayPattern,
    *,
    share: float = 1.0,
) -> SamplingParams:
    """Bound the frames by the room there is and, guarded, by what the text can last.

    Args:
        share: of ``text.frame_cap``, for a model that is known to run on.

    Raises:
        InputError: a text that cannot fit.
    """
    room = MAX_POSITIONS - positions(prompt, delay)
    frames = min(params.max_frames, room)
    shortest = len(text) / CHARACTERS_PER_SECOND * FRAME_RATE
    if shortest > frames and (request.max_new_frames is None or frames < params.max_frames):
        left = max(room if shortest > room else frames, 0)
        why, mend = "", "raise --max-frames (max_new_frames)"
        if shortest > room:
            why = f" of the {MAX_POSITIONS} positions that prompt and speech share"
            mend = "shorten the references"
        raise InputError(
            f"The text of {len(text)} characters cannot fit: {left} frames "
            f"({left / FRAME_RATE:.0f} s){why} are left for it. Split it, or {mend}."
        )
    if request.guards and request.max_new_frames is None:
        frames = min(frames, round(share * frame_cap(text)))
    return replace(params, max_frames=frames)
