"""What ``POST /v1/chat/completions`` takes: one table, which checks a body and documents it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...audio import MAX_REFERENCE_SECONDS, to_rate
from ...delivery import EXACT, STEADY, Delivery
from ...types import InputError
from ..chat import ChatRequest
from ..encoders import STREAMABLE
from ..messages import ROLES, Message, read_messages
from .errors import ApiError
from .fields import listed_as_ignored, one_name_each, spoken_in
from .schema import Schema, check, nullable
from .settings import Settings

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from ...voices import Reference
    from .answers import Answers

FORMATS = {"wav": "wav", "mp3": "mp3", "flac": "flac", "opus": "opus", "pcm16": "pcm"}
HEARD = ("wav", "mp3", "flac", "ogg", "opus")  # that a clip may say it is
DEFAULT_FORMAT, DEFAULT_STREAMED = "wav", "pcm16"
MAX_MESSAGES, MAX_PARTS, MAX_CLIPS = 64, 16, 8
MAX_TEXTS = 4  # times what one text may hold, in all messages together
OTHER_NAMES = {"max_completion_tokens": "max_tokens", "max_new_tokens": "max_tokens"}
NOT_HERE = {  # what would change the answer and is not made here; value that changes nothing
    "logprobs": False,
    "n": 1,
    "stop": None,
    "tools": None,
    "functions": None,
    "response_format": None,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": None,
}


@dataclass(frozen=True)
class ParsedChat:
    """A body that can be answered.

    Args:
        request: with its seed drawn and its clips decoded.
        format: of the audio, as encoders call it.
        voice: the name of the voice; "" for the model's own.
        with_usage: a stream ends with what it took.
        ignored: fields of the body that change nothing here.
    """

    request: ChatRequest
    format: str
    stream: bool
    with_usage: bool
    delivery: Delivery
    voice: str = ""
    ignored: tuple[str, ...] = ()


def chat_schema(settings: Settings) -> Schema:
    """The JSON Schema of a body."""
    fields = {name: nullable(schema) for name, schema in _fields(settings).items()}
    fields["messages"] = _messages(settings)
    for other, name in OTHER_NAMES.items():
        fields[other] = fields[name] | {"description": f"The same as `{name}`."}
    return {"type": "object", "properties": fields, "required": ["messages"]}


def _messages(settings: Settings) -> Schema:
    text = {"type": "string", "maxLength": settings.max_input_chars}
    data = {
        "type": "object",
        "properties": {
            "data": {"type": "string", "minLength": 1, "maxLength": settings.max_body_bytes},
            "format": nullable({"type": "string", "enum": list(HEARD)})
            | {"description": "The first bytes decide."},
        },
        "required": ["data"],
    }
    part = {
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": ["text", "input_audio"]},
            "text": text,
            "input_audio": data,
        },
        "required": ["type"],
    }
    parts = {"type": "array", "items": part, "maxItems": MAX_PARTS}
    kept = {
        "type": "object",
        "properties": {"id": {"type": "string", "maxLength": 64}},
        "required": ["id"],
    }
    message = {
        "type": "object",
        "properties": {
            "role": {"type": "string", "enum": list(ROLES)},
            "content": {"anyOf": [text, parts, {"type": "null"}]},
            "audio": nullable(kept)
            | {"description": "Of an assistant: an earlier answer, by the `id` of its audio."},
            "recipient": nullable({"type": "string", "maxLength": 64}),
        },
        "required": ["role"],
    }
    return {
        "type": "array",
        "items": message,
        "minItems": 1,
        "maxItems": MAX_MESSAGES,
        "description": "The conversation. A clip is an `input_audio` of base64, in WAV, MP3, FLAC "
        "or OGG. Texts of the system's and of users may hold the model's scene and instruction "
        "markers.",
    }


def _fields(settings: Settings) -> dict[str, Schema]:
    name = {"type": "string", "minLength": 1, "maxLength": 64}
    voice = {
        "description": "A voice of `/v1/audio/voices`, or an OpenAI name.",
        "anyOf": [
            name,
            {"type": "object", "properties": {"id": name}, "required": ["id"]},
            {"type": "null"},
        ],
    }
    kind = {
        "type": "string",
        "enum": list(FORMATS),
        "description": f"`{DEFAULT_FORMAT}`, of a stream `{DEFAULT_STREAMED}`; `aac` is not made.",
    }
    most = {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}
    return {
        "model": {"type": "string", "minLength": 1, "maxLength": 256, "description": "Any name."},
        "modalities": {
            "type": "array",
            "items": {"type": "string", "enum": ["text", "audio"]},
            "minItems": 1,
            "maxItems": 2,
            "description": "`text` alone is the default; `audio` alone opens with speech; with "
            "both, the model decides.",
        },
        "audio": {"type": "object", "properties": {"voice": voice, "format": nullable(kind)}},
        "stream": {"type": "boolean"},
        "stream_options": {
            "type": "object",
            "properties": {"include_usage": nullable({"type": "boolean"})},
        },
        "max_tokens": most | {"description": "Ids and frames of speech (25 a second), together."},
        "temperature": {"type": "number", "minimum": 0, "maximum": 100},
        "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "top_k": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
        "seed": {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
        "preset": {"type": "string", "maxLength": 64},
        "force_audio_gen": {"type": "boolean", "description": "Open with speech all the same."},
        "continue_final_message": {
            "type": "boolean",
            "description": "The last message, an assistant's, is the beginning of the answer.",
        },
    }


def has_clips(body: dict[str, Any]) -> bool:
    """Whether something must be decoded: parts other than texts, or a voice."""
    audio, messages = body.get("audio"), body.get("messages")
    listed = messages if isinstance(messages, list) else []
    contents = [one.get("content") for one in listed if isinstance(one, dict)]
    return bool(audio) or any(isinstance(content, list) for content in contents)


def parse_chat(body: dict[str, Any], app: Starlette) -> ParsedChat:
    """A request from a body; it may read clips and voices, so keep it off the event loop.

    Raises:
        ApiError: 400, what is wrong with which field.
    """
    state, settings = app.state, app.state.settings
    body = one_name_each(body, OTHER_NAMES)
    schema = chat_schema(settings)
    known = schema["properties"]
    asked = body.get("audio") if isinstance(body.get("audio"), dict) else {}
    if asked and asked.get("format") == "aac":
        raise ApiError(400, "aac is not made here: take mp3.", param="audio.format")
    check({key: value for key, value in body.items() if key in known}, schema)
    _refuse_what_is_not_here(body)
    if why := state.worker.defaults.no_chat:
        raise ApiError(400, why, param="model", code="chat_not_available")
    stream = body.get("stream", False)
    kind = FORMATS[(asked or {}).get("format") or (DEFAULT_STREAMED if stream else DEFAULT_FORMAT)]
    if stream and kind not in STREAMABLE:
        able = ", ".join(name for name, one in FORMATS.items() if one in STREAMABLE)
        message = f"{kind} cannot be streamed: take one of {able}, or no stream."
        raise ApiError(400, message, param="audio.format")
    request, voice = _request(body, asked or {}, state)
    options = body.get("stream_options") or {}
    return ParsedChat(
        request,
        kind,
        stream,
        bool(options.get("include_usage")),
        EXACT if stream else STEADY,
        voice,
        listed_as_ignored(body, known),
    )


def _refuse_what_is_not_here(body: dict[str, Any]) -> None:
    """Rather than to answer with something else than was asked for."""
    for name, harmless in NOT_HERE.items():
        value = body.get(name, harmless)
        if value != harmless and value not in ([], {}, {"type": "text"}):
            way_out = "leave it out" if harmless is None else f"only {harmless} is"
            raise ApiError(400, f"{name} is not supported here: {way_out}.", param=name)


def _request(body: dict[str, Any], audio: dict[str, Any], state: Any) -> tuple[ChatRequest, str]:
    modalities = tuple(dict.fromkeys(body.get("modalities") or ["text"]))
    voice: list[Reference | str] = []
    name = ""
    if "audio" in modalities:
        voice, name = spoken_in(audio.get("voice"), state)
    try:
        request = ChatRequest(
            _conversation(body, state),
            modalities=modalities,
            force_audio_gen=body.get("force_audio_gen", False),
            voice=voice or None,
            continue_final_message=body.get("continue_final_message", False),
            preset=body.get("preset"),
            temperature=body.get("temperature"),
            top_p=body.get("top_p"),
            top_k=_int(body.get("top_k")),
            max_new_tokens=_int(body.get("max_tokens")),
            seed=_int(body.get("seed", secrets.randbelow(2**32))),
        )
    except InputError as error:
        raise ApiError(400, str(error)) from error
    return request, name


def _conversation(body: dict[str, Any], state: Any) -> list[Message]:
    """The messages, with their clips decoded and with what was kept of earlier answers."""
    settings = state.settings
    texts, clips = _contents(body["messages"])
    if sum(map(len, texts)) > (most := MAX_TEXTS * settings.max_input_chars):
        raise ApiError(400, f"The messages hold more than {most} characters.", param="messages")
    if any("\0" in text for text in texts):
        raise ApiError(400, "A message holds a NUL character: leave it out.", param="messages")
    if clips > MAX_CLIPS:
        raise ApiError(400, f"The messages hold more than {MAX_CLIPS} clips.", param="messages")
    plain = []
    for message in body["messages"]:
        rest = {key: value for key, value in message.items() if key != "audio"}
        plain.append(_kept(message, state.answers) or rest)
    rate = state.worker.defaults.sample_rate
    longest = min(settings.max_reference_seconds, MAX_REFERENCE_SECONDS)
    try:
        read = read_messages(plain, rate, longest)
    except InputError as error:
        raise ApiError(400, str(error), param="messages") from error
    return [_slim(message, rate) for message in read]


def _slim(message: Message, rate: int) -> Message:
    """Its clips at no more than a codec's rate: it may wait for a while, and others with it."""
    parts = [
        (to_rate(*part, rate), rate) if isinstance(part, tuple) and part[1] > rate else part
        for part in message.parts
    ]
    return replace(message, parts=tuple(parts))


def _contents(messages: list[dict[str, Any]]) -> tuple[list[str], int]:
    """All texts, and how many clips."""
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    texts = [content for content in contents if isinstance(content, str)]
    texts += [part["text"] for part in parts if isinstance(part.get("text"), str)]
    return texts, sum(part["type"] == "input_audio" for part in parts)


def _kept(message: dict[str, Any], answers: Answers) -> Message | None:
    """The earlier answer that a message names by its audio's id."""
    audio = message.get("audio")
    if not audio:
        return None
    if message["role"] != "assistant":
        raise ApiError(400, "Only an assistant's message has an audio id.", param="messages")
    known = answers.find(audio["id"])
    if known is None:
        raise ApiError(
            400,
            "There is no audio with this id (any more): send the clip itself, or its transcript.",
            param="messages",
            code="audio_not_found",
        )
    return replace(known, recipient=message.get("recipient") or known.recipient)


def _int(value: float | None) -> int | None:
    return None if value is None else int(value)
