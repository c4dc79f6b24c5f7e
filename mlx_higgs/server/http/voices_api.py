"""``/v1/audio/voices``: list the voices, add one, listen to it, take it away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...types import InputError
from ...voices.clip import read_clip
from ...voices.folders import UnknownVoice
from ...voices.library import (
    MAX_WORDS,
    LibraryFull,
    StoredVoice,
    VoiceExists,
    VoiceLibrary,
    checked_name,
    checked_words,
)
from .errors import ApiError
from .media import off_loop
from .openapi import answers, json_answer
from .settings import Settings

PATH = "/v1/audio/voices"
MAX_FIELDS = 16
MAX_FIELD = 16_384  # bytes of a field that is no file
MAX_ABOUT = 2048  # characters of consent and description
ABOUT = {"consent": "consent", "speaker_description": "description"}  # field -> what is kept
FORM = "multipart/form-data"


async def list_voices(request: Request) -> Response:
    """In all shapes at once: OpenAI's ``data``, and ``voices`` as Open WebUI reads it."""
    library: VoiceLibrary = request.app.state.library
    found = await run_in_threadpool(_all, library)
    return JSONResponse({"object": "list", "voices": found, "data": found, "has_more": False})


async def add_voice(request: Request) -> Response:
    """A new voice from a multipart form; it is there whole, or not at all."""
    state = request.app.state
    form = await read_form(request)
    sample = form.get("audio_sample")
    if not isinstance(sample, UploadFile):
        raise _refused("audio_sample", "The form lacks the recording, as the file audio_sample.")
    if _field(form, "type") not in ("", "audio_sample"):
        raise _refused("type", "Only the type audio_sample is known here: send a recording.")
    name, words = _field(form, "name"), _field(form, "ref_text", MAX_WORDS)
    _check("name", checked_name, name)
    _check("ref_text", checked_words, words)
    about = {kept: _field(form, field) for field, kept in ABOUT.items() if field in form}
    data = await sample.read()
    stored = await off_loop(_add, state, name, data, words, about)
    return JSONResponse(_shown(stored, state.library))


async def remove_voice(request: Request) -> Response:
    library: VoiceLibrary = request.app.state.library
    name = request.path_params["voice_id"]
    await run_in_threadpool(_remove, library, name)
    return JSONResponse({"id": name, "object": "audio.voice.deleted", "deleted": True})


async def one_voice(request: Request) -> Response:
    library: VoiceLibrary = request.app.state.library
    return JSONResponse(await run_in_threadpool(_one, library, request.path_params["voice_id"]))


async def sample_of(request: Request) -> Response:
    """The clip of a voice, for listening."""
    library: VoiceLibrary = request.app.state.library
    data, media_type = await run_in_threadpool(_sample, library, request.path_params["voice_id"])
    return Response(data, media_type=media_type, headers={"Cache-Control": "no-store"})


async def read_form(request: Request) -> FormData:
    """A multipart form, kept in memory and counted while it comes: nothing of it touches a disk.

    Raises:
        ApiError: 400, 408, 413 or 415.
    """
    settings = request.app.state.settings
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != FORM:
        raise ApiError(415, f"A voice is sent as {FORM}.", code="unsupported_media_type")
    limit = settings.max_body_bytes
    parser = _Form(request.headers, _counted(request, limit), limit)
    try:
        async with asyncio.timeout(settings.body_timeout):
            return await parser.parse()
    except TimeoutError as error:
        raise ApiError(408, "The form took too long to come.", code="timeout") from error
    except MultiPartException as error:
        raise ApiError(400, f"The form cannot be read: {error.message}") from error
    except ClientDisconnect as error:
        raise ApiError(400, "The form ended before its end.") from error


class _Form(MultiPartParser):
    """One file, few fields, and no temporary file however large it is."""

    def __init__(self, headers: Headers, stream: AsyncIterator[bytes], limit: int):
        super().__init__(
            headers,
            stream,  # pyright: ignore[reportArgumentType]  (it is only iterated)
            max_files=1,
            max_fields=MAX_FIELDS,
            max_part_size=MAX_FIELD,
        )
        self.spool_max_size = limit + 1


async def _counted(request: Request, limit: int) -> AsyncIterator[bytes]:
    count = 0
    async for chunk in request.stream():
        count += len(chunk)
        if count > limit:
            message = f"The recording is larger than {limit} bytes: cut it to 5 to 12 seconds."
            close = {"Connection": "close"}  # what still comes is not even read
            raise ApiError(413, message, None, "audio_sample", "too_large", close)
        yield chunk


def _field(form: FormData, name: str, longest: int = MAX_ABOUT) -> str:
    value = form.get(name, "")
    if not isinstance(value, str):
        raise _refused(name, f"{name} must be a text, not a file.")
    if len(value) > longest:
        raise _refused(name, f"{name} has {len(value)} characters: at most {longest} can be kept.")
    if "\0" in value:
        raise _refused(name, f"{name} holds a NUL.")
    return value.strip()


def _check(param: str, check: Callable[[str], str], value: str) -> None:
    try:
        check(value)
    except InputError as error:
        raise _refused(param, str(error)) from error


def _refused(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param)


# -- on a thread: these read and write files ------------------------------------------------------


def _all(library: VoiceLibrary) -> list[dict[str, Any]]:
    return [_shown(voice, library) for voice in library.all()]


def _add(state: Any, name: str, data: bytes, words: str, about: dict[str, Any]) -> StoredVoice:
    library: VoiceLibrary = state.library
    try:
        read_clip(data, max_seconds=state.settings.max_reference_seconds)
    except InputError as error:
        raise _refused("audio_sample", str(error)) from error
    try:
        return library.add(name, data, words, about=about)
    except VoiceExists as error:
        message = f"There is a voice {name!r} already, in these or other capitals: take another."
        raise ApiError(409, message, param="name", code="voice_exists") from error
    except LibraryFull as error:
        message = "The library holds as many voices as it may: take one away first."
        raise ApiError(409, message, code="library_full") from error
    except InputError as error:
        raise ApiError(400, str(error).replace(str(library.folder), "the voice folder")) from error
    except OSError as error:
        message = f"The voice cannot be kept ({error.strerror})."
        raise ApiError(503, message, code="not_kept") from error


def _remove(library: VoiceLibrary, name: str) -> None:
    try:
        library.remove(name)
    except UnknownVoice as error:
        raise _unknown(name) from error
    except InputError as error:
        message = f"The voice {name!r} came with the server: it cannot be taken away from here."
        raise ApiError(403, message, param="voice_id", code="voice_kept") from error


def _one(library: VoiceLibrary, name: str) -> dict[str, Any]:
    return _shown(_get(library, name), library)


def _sample(library: VoiceLibrary, name: str) -> tuple[bytes, str]:
    clip = _get(library, name).clip
    try:
        return clip.read_bytes(), MEDIA_TYPES.get(clip.suffix.lower(), "application/octet-stream")
    except FileNotFoundError as error:
        raise _unknown(name) from error


MEDIA_TYPES = {
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
}


def _get(library: VoiceLibrary, name: str) -> StoredVoice:
    try:
        return library.get(name)
    except InputError as error:  # unknown, or without its words
        raise _unknown(name) from error


def _unknown(name: str) -> ApiError:
    message = f"There is no voice {name!r:.70}: GET {PATH} lists those there are."
    return ApiError(404, message, param="voice_id", code="voice_not_found")


def _shown(voice: StoredVoice, library: VoiceLibrary) -> dict[str, Any]:
    """OpenAI's object; what the clip says stays here."""
    return {
        "id": voice.name,
        "object": "audio.voice",
        "name": voice.name,
        "created_at": _created(voice),
        "type": "audio_sample",
        "description": str(voice.about.get("description", "")),
        "deletable": voice.clip.parent == library.folder,
    }


def _created(voice: StoredVoice) -> int:
    """Unix seconds."""
    with suppress(ValueError, OverflowError):
        return int(datetime.fromisoformat(str(voice.about.get("created"))).timestamp())
    with suppress(OSError):
        return int(voice.clip.stat().st_mtime)
    return 0


ROUTES = [
    Route(PATH, list_voices, methods=["GET"]),
    Route(PATH, add_voice, methods=["POST"]),
    Route(PATH + "/{voice_id}", one_voice, methods=["GET"]),
    Route(PATH + "/{voice_id}", remove_voice, methods=["DELETE"]),
    Route(PATH + "/{voice_id}/sample", sample_of, methods=["GET"]),
]


VOICE = {
    "type": "object",
    "required": ["id", "object", "name", "created_at", "type", "deletable"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "audio.voice"},
        "name": {"type": "string"},
        "created_at": {"type": "integer"},
        "type": {"const": "audio_sample"},
        "description": {"type": "string"},
        "deletable": {"type": "boolean", "description": "False for those the server came with."},
    },
}
LIST = {
    "type": "object",
    "required": ["object", "voices", "data"],
    "properties": {
        "object": {"const": "list"},
        "voices": {"type": "array", "items": VOICE},
        "data": {"type": "array", "items": VOICE},
    },
}
DELETED = {
    "type": "object",
    "required": ["id", "object", "deleted"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "audio.voice.deleted"},
        "deleted": {"const": True},
    },
}
NEW = {
    "type": "object",
    "required": ["name", "audio_sample", "ref_text"],
    "properties": {
        "name": {
            "type": "string",
            "pattern": "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}$",
            "description": "What requests call it.",
        },
        "audio_sample": {
            "type": "string",
            "format": "binary",
            "description": "The recording: WAV, FLAC, MP3 or OGG, 5 to 12 s of clear speech.",
        },
        "ref_text": {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_WORDS,
            "description": "Its exact words.",
        },
        "consent": {
            "type": "string",
            "maxLength": MAX_ABOUT,
            "description": "Kept with the voice: who agreed to it, and how.",
        },
        "speaker_description": {"type": "string", "maxLength": MAX_ABOUT},
        "type": {"type": "string", "enum": ["audio_sample"], "default": "audio_sample"},
    },
}
ID = {"name": "voice_id", "in": "path", "required": True, "schema": {"type": "string"}}


def docs(settings: Settings) -> dict[str, Any]:
    """This part of the OpenAPI document."""
    voice, clip = json_answer("The voice", VOICE), {"schema": {"type": "string"}}
    sample = {"description": "The clip", "content": dict.fromkeys(set(MEDIA_TYPES.values()), clip)}
    form = {"required": True, "content": {FORM: {"schema": NEW}}}
    adding = _operation("add_voice", "Add a voice", voice, 400, 408, 409, 413, 415, 429, 503)
    listing = _operation("list_voices", "The voices there are", json_answer("All", LIST))
    gone = json_answer("It is gone", DELETED)
    return {
        PATH: {"get": listing, "post": adding | {"requestBody": form}},
        PATH + "/{voice_id}": {
            "parameters": [ID],
            "get": _operation("one_voice", "A voice", voice, 404),
            "delete": _operation("remove_voice", "Take a voice away", gone, 404),
        },
        PATH + "/{voice_id}/sample": {
            "parameters": [ID],
            "get": _operation("voice_sample", "Listen to a voice", sample, 404),
        },
    }


def _operation(name: str, summary: str, good: dict[str, Any], *errors: int) -> dict[str, Any]:
    return {"operationId": name, "summary": summary, "responses": answers(good, *errors)}
