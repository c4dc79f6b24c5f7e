"""What ``POST /v1/audio/speech`` takes: one table, which checks a body and is its documentation."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...delivery import EXACT, STEADY, Delivery
from ...text import is_blank
from ...types import InputError
from ...voices import UnknownVoice
from ..encoders import MEDIA_TYPES, STREAMABLE
from ..request import PROFILE, SpeechRequest
from . import names
from .errors import ApiError
from .schema import Schema, check, nullable
from .settings import Settings

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from ...voices import Reference
    from ...voices.library import VoiceLibrary

Form = Literal["whole", "audio", "sse"]
OTHER_NAMES = {  # how some clients spell it -> its name here
    "max_tokens": "max_new_tokens",
    "lang_code": "language",
    "instruct": "instructions",
    "speaker": "voice",
}
FORMATS = list(MEDIA_TYPES)
DEFAULT_FORMAT = "mp3"
LONGEST_FIRST_CHUNK = 250  # frames: 10 s
MAX_ALIASES = 100
NO_EFFECT = ("language",)  # the model hears it from the text
SHOWN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MAX_SHOWN_NAMES = 20


@dataclass(frozen=True)
class Parsed:
    """A body that can be spoken.

    Args:
        request: with its seed drawn and its clips decoded.
        form: ``whole`` when it is done, raw ``audio`` while it is made, or the same as ``sse``.
        voice: the name of the voice it is spoken in; "" for the model's own or a clip.
        ignored: fields of the body that change nothing here.
    """

    request: SpeechRequest
    format: str = DEFAULT_FORMAT
    form: Form = "whole"
    delivery: Delivery = STEADY
    voice: str = ""
    ignored: tuple[str, ...] = ()


def speech_schema(settings: Settings) -> Schema:
    """The JSON Schema of a body."""
    fields = {name: nullable(schema) for name, schema in _fields(settings).items()}
    fields["input"] = _fields(settings)["input"]
    for other, name in OTHER_NAMES.items():
        fields[other] = fields[name] | {"description": f"The same as `{name}`."}
    return {"type": "object", "properties": fields, "required": ["input"]}


def _fields(settings: Settings) -> dict[str, Schema]:
    name = _text(names.MAX_NAME, minLength=1)
    clip = _text(settings.max_body_bytes, minLength=1)
    words = _text(settings.max_input_chars)
    return {
        "input": _text(settings.max_input_chars, "What to say.", minLength=1),
        "model": _text(256, "Any name: the model that is loaded answers to all.", minLength=1),
        "voice": {
            "description": "A voice of `/v1/audio/voices`, an OpenAI name, or `profile:` with a "
            "description; left out, the first voice.",
            "anyOf": [
                _text(names.MAX_VOICE, minLength=1),
                {"type": "object", "properties": {"id": name}, "required": ["id"]},
            ],
        },
        "instructions": _text(
            settings.max_instructions_chars, "Where and how it is spoken: the scene."
        ),
        "emotion": _text(
            64,
            "Of models with control tags, as are `style`, `pace`, `pitch` and "
            "`expressive`: of the whole input. As `anger`; what there is, an error lists.",
        ),
        "style": _text(64, "As `whispering`."),
        "pace": _text(64, "As `slow`; OpenAI's `speed` is a number."),
        "pitch": _text(64, "As `low`."),
        "expressive": _text(64, "As `high`."),
        "response_format": {
            "type": "string",
            "enum": FORMATS,
            "default": DEFAULT_FORMAT,
            "description": "`aac` is not made here. `pcm` is signed 16 bit, little-endian, mono.",
        },
        "speed": _number("Only 1.0: see `pace`.", minimum=0.25, maximum=4, default=1),
        "stream_format": {
            "type": "string",
            "enum": ["audio", "sse"],
            "description": "Send it while it is made, raw or as server-sent events. `flac` cannot "
            "be sent so.",
        },
        "stream": _flag("true alone is `stream_format: audio`; `pcm` streams unless it is false."),
        "ref_audio": clip | {"description": "A clip to clone: data: URI, base64, path, https URL."},
        "ref_text": words | {"description": "Its exact words."},
        "references": {
            "type": "array",
            "maxItems": 4,
            "items": {
                "type": "object",
                "properties": {"audio_path": clip, "text": nullable(words)},
                "required": ["audio_path"],
                "additionalProperties": False,
            },
            "description": "Clips for [SPEAKER0], [SPEAKER1], ...",
        },
        "seed": _whole("The same seed, the same audio.", 0, 2**64 - 1),
        "preset": _text(
            64, "`reference`: as the model's reference draws, but for the fields below."
        ),
        "temperature": _number("0 takes the most likely code.", minimum=0, maximum=100),
        "top_p": _number("", exclusiveMinimum=0, maximum=1),
        "top_k": _whole("0 is off.", 0, 2**31 - 1),
        "max_new_tokens": _whole("Frames at most, 25 a second, of each piece.", 1, 2**31 - 1),
        "language": _text(64, "Of no effect: the model hears it from the text."),
        "sample_rate": _whole("Only the model's own.", 1, 768_000),
        "initial_codec_chunk_frames": _whole(
            "Frames of 40 ms in the first chunk of a stream.", 1, LONGEST_FIRST_CHUNK
        ),
        "normalization_options": {
            "type": "object",
            "properties": {"normalize": nullable(_flag("false takes the text as it is."))},
        },
        "voice_aliases": {
            "type": "object",
            "maxProperties": MAX_ALIASES,
            "additionalProperties": name,
            "description": "Other names for voices, for this request.",
        },
        "allow_voice_tags": _flag("Only false: tags are not read."),
        "word_timestamps": _flag("Only false: there are none."),
        "return_timing": _flag("Only false: there is none."),
    }


def parse_speech(body: dict[str, Any], app: Starlette) -> Parsed:
    """A request from a body; it may read clips and voices, so keep it off the event loop.

    Raises:
        ApiError: 400, what is wrong with which field.
    """
    state = app.state
    body = one_name_each(body, OTHER_NAMES)
    schema = speech_schema(state.settings)
    known = schema["properties"]
    if body.get("response_format") == "aac":
        raise ApiError(400, "aac is not made here: take mp3.", param="response_format")
    check({key: value for key, value in body.items() if key in known}, schema)
    _check_texts(body)
    _refuse_what_is_not_here(body, state)
    form = _form(body)
    voice, name = _voice(body, state)
    return Parsed(
        request=_request(body, voice, state),
        format=body.get("response_format", DEFAULT_FORMAT),
        form=form,
        delivery=STEADY if form == "whole" else _delivery(body),
        voice=name,
        ignored=listed_as_ignored(body, known),
    )


def one_name_each(body: dict[str, Any], others: Mapping[str, str]) -> dict[str, Any]:
    """What a body gives, each field by its name here.

    Raises:
        ApiError: 400, two names with different values.
    """
    body = {key: value for key, value in body.items() if value is not None}
    for other, name in others.items():
        if other in body:
            value = body.pop(other)
            if body.setdefault(name, value) != value:
                raise ApiError(400, f"{other} and {name} differ: give one of them.", param=other)
    return body


def _check_texts(body: dict[str, Any]) -> None:
    for name in ("input", "instructions", "ref_text"):
        if "\0" in body.get(name, ""):
            raise ApiError(400, f"The {name} holds a NUL character: leave it out.", param=name)
    if is_blank(body["input"]):
        raise ApiError(400, "There is nothing to say in the input.", param="input", code="blank")


def _refuse_what_is_not_here(body: dict[str, Any], state: Any) -> None:
    """Rather than to answer with something else than was asked for."""
    rate = state.worker.defaults.sample_rate
    if body.get("speed", 1) != 1:
        message = "speed must be 1.0: a stretched voice is another; see pace."
        raise ApiError(400, message, param="speed")
    if body.get("sample_rate", rate) != rate:
        raise ApiError(400, f"sample_rate must be {rate}, the model's own.", param="sample_rate")
    for name, instead in (
        ("word_timestamps", "word times need an aligner"),
        ("return_timing", "times are not measured"),
        ("allow_voice_tags", "send a request for each voice"),
    ):
        if body.get(name):
            raise ApiError(400, f"{name} must be false: {instead}.", param=name)


def _form(body: dict[str, Any]) -> Form:
    kind = body.get("response_format", DEFAULT_FORMAT)
    form: Form = body.get("stream_format") or "whole"
    if form == "whole" and body.get("stream", kind == "pcm"):
        form = "audio"
    if form != "whole" and kind not in STREAMABLE:
        able = ", ".join(one for one in FORMATS if one in STREAMABLE)
        message = f"{kind} cannot be streamed: take one of {able}, or no stream."
        raise ApiError(400, message, param="response_format")
    return form


def _delivery(body: dict[str, Any]) -> Delivery:
    first = int(body.get("initial_codec_chunk_frames", EXACT.first))
    return Delivery(first, max(first, EXACT.chunk), max(first, EXACT.largest))


def _voice(body: dict[str, Any], state: Any) -> tuple[list[Reference | str], str]:
    """The voices of the request and their name; clips come before names."""
    if body.keys() & {"ref_audio", "ref_text", "references"}:
        from .media import clips

        if found := clips(body, state):
            return list(found), ""
    return spoken_in(body.get("voice"), state, body.get("voice_aliases", {}))


def spoken_in(
    wanted: Any, state: Any, aliases: Mapping[str, str] = {}
) -> tuple[list[Reference | str], str]:
    """The voice that a field names, as a request takes it, and its name.

    Raises:
        ApiError: 400, an unknown one, or one that cannot be read.
    """
    wanted = wanted["id"] if isinstance(wanted, dict) else wanted
    if wanted is not None and wanted.startswith(PROFILE):
        if is_blank(wanted.removeprefix(PROFILE)):
            raise ApiError(400, "The voice profile: lacks its description.", param="voice")
        return [wanted], "profile"
    name = names.find(wanted, state, aliases)
    if name is None:
        return [], ""
    return [_heard(name, state.library)], name


def _heard(name: str, library: VoiceLibrary) -> Reference:
    """A voice as it is now, with its clip: a request that waits is spoken in no later one."""
    try:
        return library.heard(name)
    except UnknownVoice:
        raise
    except InputError as error:
        clip = library.get(name).clip
        message = str(error).replace(str(clip), clip.name)  # no path of this machine
        raise ApiError(400, message, param="voice") from error


def _request(body: dict[str, Any], voice: list[Reference | str], state: Any) -> SpeechRequest:
    try:
        request = SpeechRequest(
            body["input"],
            voice=voice or None,
            scene=body.get("instructions", "").strip() or None,
            emotion=body.get("emotion"),
            style=body.get("style"),
            speed=body.get("pace"),
            pitch=body.get("pitch"),
            expressive=body.get("expressive"),
            preset=body.get("preset"),
            temperature=body.get("temperature"),
            top_p=body.get("top_p"),
            top_k=_int(body.get("top_k")),
            max_new_frames=_int(body.get("max_new_tokens")),
            seed=_int(body.get("seed", secrets.randbelow(2**32))),
            normalize=body.get("normalization_options", {}).get("normalize"),
        )
    except InputError as error:
        raise ApiError(400, str(error)) from error
    return request


def _int(value: float | None) -> int | None:
    return None if value is None else int(value)


def listed_as_ignored(body: dict[str, Any], known: dict[str, Schema]) -> tuple[str, ...]:
    """Fields of a body that change nothing; names that could be anything are left out."""
    without_effect = [name for name in body if name not in known or name in NO_EFFECT]
    shown = [name for name in without_effect if SHOWN_NAME.fullmatch(name)]
    return tuple(sorted(shown)[:MAX_SHOWN_NAMES])


def _text(longest: int, description: str = "", **more: Any) -> Schema:
    return {"type": "string", "maxLength": longest, **_said(description), **more}


def _number(description: str, **bounds: float) -> Schema:
    return {"type": "number", **_said(description), **bounds}


def _whole(description: str, least: int, most: int) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most, **_said(description)}


def _flag(description: str) -> Schema:
    return {"type": "boolean", **_said(description)}


def _said(description: str) -> Schema:
    return {"description": description} if description else {}
