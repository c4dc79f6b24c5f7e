"""Reference clips as requests bring them: in the request, in an allowed folder, at an address.

Everything here may wait for a disk or a network and decodes what strangers sent: it runs on threads
of its own (``off_loop``), never on the event loop and never on the one that owns MLX.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
import re
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ...text import decode
from ...types import InputError
from ...voices import Reference
from ...voices.clip import read_clip
from ...voices.library import MAX_WORDS, checked_words
from ...voices.prepare import prepare
from .errors import ApiError
from .fetch import fetch

T = TypeVar("T")

THREADS = 4
MAX_WAITING = 32  # calls that wait for a thread; each may hold a body
MAX_CLIPS = 4  # in one request
FETCH_SECONDS = 20.0
BASE64 = re.compile(r"[A-Za-z0-9+/\s]{256}")  # no path begins like this, and no clip is smaller
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
DATA = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)

_pool = ThreadPoolExecutor(THREADS, thread_name_prefix="media")
_inside = 0  # counted on the event loop alone


async def off_loop(function: Callable[..., T], *arguments: Any) -> T:
    """``function(*arguments)`` on a thread that may wait.

    Raises:
        ApiError: 429, too many are waiting already.
    """
    global _inside
    if _inside >= THREADS + MAX_WAITING:
        raise ApiError(
            429,
            "Too many clips are being read: try again soon.",
            code="server_busy",
            headers={"Retry-After": "2"},
        )
    _inside += 1
    try:
        return await asyncio.get_running_loop().run_in_executor(_pool, function, *arguments)
    finally:
        _inside -= 1


def clips(body: dict[str, Any], state: Any) -> list[Reference]:
    """The clips a request names in ``ref_audio`` (with ``ref_text``) or in ``references``.

    Raises:
        ApiError: 400, one that cannot be used, and the field.
    """
    listed = body.get("references")
    if body.get("ref_audio") is not None:
        if listed:
            raise ApiError(400, "Give ref_audio or references, not both.", param="references")
        return [resolve(body["ref_audio"], body.get("ref_text"), state)]
    if body.get("ref_text") is not None and not listed:
        raise ApiError(400, "There is a ref_text without its ref_audio.", param="ref_text")
    return [_listed(entry, state) for entry in _several(listed)]


def resolve(value: Any, text: Any, state: Any, param: str = "ref_audio") -> Reference:
    """One clip, decoded: a ``data:`` URI, bare base64, a local path or an https address.

    Args:
        text: its exact words; None reads ``CLIP.txt`` beside a local path.
        state: holds ``settings`` and the ``worker``.

    Raises:
        ApiError: 400, the field ``param`` or the one of its words.
    """
    settings = state.settings
    try:
        if not isinstance(value, str) or not value:
            raise InputError(f"{param} must be a data: URI, base64, a path or an address.")
        data, beside = _bytes(value, settings)
        wave = decoded(data, settings.max_reference_seconds)
    except InputError as error:
        raise ApiError(400, str(error), param=param) from error
    words = _words(text if text is not None else beside, state)
    name = hashlib.sha256(wave.tobytes()).hexdigest()  # no two clips are taken for one
    return Reference(Path(name), words, "clip", wave)


def decoded(data: bytes, max_seconds: float) -> np.ndarray:
    """A clip's bytes as mono float32 ``[N]`` at 24 kHz, prepared as voices are, read-only.

    Raises:
        InputError: no audio in a known format, too long, too short, or silent.
    """
    wave = prepare(*read_clip(data, max_seconds=max_seconds)).wave
    wave.flags.writeable = False
    return wave


def _several(listed: Any) -> list[Any]:
    if listed is None:
        return []
    if not isinstance(listed, list) or len(listed) > MAX_CLIPS:
        message = f"references must be a list of at most {MAX_CLIPS} clips."
        raise ApiError(400, message, param="references")
    return listed


def _listed(entry: Any, state: Any) -> Reference:
    if not isinstance(entry, dict) or entry.keys() - {"audio_path", "text"}:
        message = "Each of references is an object of audio_path and text."
        raise ApiError(400, message, param="references")
    return resolve(entry.get("audio_path"), entry.get("text"), state, param="references")


def _words(text: Any, state: Any) -> str:
    """A transcript; a checkpoint that leaves clips out, or clones without, needs none."""
    if text is not None and not isinstance(text, str):
        raise ApiError(400, "ref_text must be a text.", param="ref_text")
    facts = state.worker.defaults
    if not (text or "").strip() and not (facts.clones and facts.needs_words):
        return ""
    try:
        return checked_words(text or "")
    except InputError as error:
        message = "The reference clip lacks its exact words: give them in ref_text."
        raise ApiError(400, str(error) if text else message, param="ref_text") from error


def _bytes(value: str, settings: Any) -> tuple[bytes, str | None]:
    """What a value stands for, and the words found beside it."""
    limit = settings.max_body_bytes
    if value[:5].lower() == "data:":
        return _from_data(value), None
    if BASE64.match(value):
        return _from_base64(value), None
    if value[:7].lower() == "file://":
        return _from_disk(value[7:], settings.allowed_local_media_path, limit)
    if SCHEME.match(value):
        return _from_address(value, settings.allow_urls, limit), None
    return _from_disk(value, settings.allowed_local_media_path, limit)


def _from_data(value: str) -> bytes:
    head = DATA.match(value[:256])
    if head is None:
        raise InputError("The data: URI is not of the form data:audio/wav;base64,... .")
    return _from_base64(value[head.end() :])


def _from_base64(value: str) -> bytes:
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError) as error:  # a ValueError for what is not ASCII
        raise InputError(f"The clip is no valid base64 ({error}).") from error


def _from_address(value: str, allowed: bool, limit: int) -> bytes:
    if not allowed:
        raise InputError(
            "Addresses are off here (--allow-urls): send the clip as a data: URI, or add it as a "
            "voice."
        )
    return fetch(value, max_bytes=limit, seconds=FETCH_SECONDS)


def _from_disk(value: str, root: Path | None, limit: int) -> tuple[bytes, str | None]:
    """A clip and the words beside it.

    Raises:
        InputError: the same for a file elsewhere, one that is missing and one that cannot be read:
            nobody learns which files there are.
    """
    if root is None:
        raise InputError(
            "Local paths are off here (--allowed-local-media-path): send the clip as a data: URI, "
            "or add it as a voice."
        )
    try:
        data = read_inside(root, value, limit)
    except (OSError, ValueError, RuntimeError):  # a RuntimeError for links in a circle
        message = "There is no such clip under the folder of --allowed-local-media-path."
        raise InputError(message) from None
    try:
        return data, decode(read_inside(root, _sidecar(value), 4 * MAX_WORDS), "CLIP.txt")
    except (OSError, ValueError, RuntimeError):
        return data, None


def _sidecar(value: str) -> str:
    return str(Path(value).with_suffix(".txt"))


def read_inside(root: Path, value: str, limit: int) -> bytes:
    """A regular file under ``root``, which symbolic links cannot leave.

    Raises:
        OSError, ValueError: elsewhere, no file, unreadable, or more than ``limit`` bytes.
    """
    root = root.resolve(strict=True)
    path = (root / value).resolve(strict=True)
    if path == root or not path.is_relative_to(root):
        raise ValueError("outside")
    handle = _open_below(root, path.relative_to(root).parts)
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("no file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError("too large")
    return data


def _open_below(root: Path, parts: tuple[str, ...]) -> int:
    """A handle, opened folder by folder: a link put there after the check is not followed."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        # Not blocking, so that a named pipe is refused rather than waited for.
        return os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
