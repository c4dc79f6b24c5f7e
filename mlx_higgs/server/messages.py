"""Messages as OpenAI's chat API has them, or with Python's own values in them -> what is said."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from .. import audio
from ..types import InputError, Voice
from ..voices import Reference
from ..voices.clip import read_clip

if TYPE_CHECKING:
    import mlx.core as mx

Role = Literal["system", "user", "assistant"]
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name
    "user": "user",
    "assistant": "assistant",
}
FIELDS = {"role", "content", "recipient", "name", "refusal"}  # the last two: of no effect
KNOWN = "text, input_audio or audio"


@dataclass(frozen=True)
class Message:
    """What somebody said.

    Attributes:
        parts: words; clips as samples float32 ``[N]``; clips as codes ``[T, K]``.
        recipient: whom an assistant addresses.
    """

    role: Role
    parts: tuple[str | np.ndarray, ...]
    recipient: str | None = None


def read_messages(messages: Any, sampling_rate: int) -> list[Message]:
    """A conversation, oldest first.

    Args:
        messages: dicts of ``role`` (system, developer, user, assistant) and ``content``: a text, or
            a list of parts, which are ``{"type": "text", "text": ...}``,
            ``{"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}}``,
            ``{"type": "audio", "path" | "wave" | "codes": ...}`` (a wave with its
            ``sampling_rate``), or simply texts, paths (``Path``), arrays (samples ``[N]`` at
            ``sampling_rate``, codes ``[T, K]``) and ``Voice``.
        sampling_rate: what clips are brought to, in Hz.

    Raises:
        InputError: what cannot be read, by the place of its message.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise InputError("The messages must be a list of objects with a role and a content.")
    if not messages:
        raise InputError("There are no messages: a conversation begins with one of a user.")
    return [_message(one, index, sampling_rate) for index, one in enumerate(messages)]


def _message(message: Any, index: int, rate: int) -> Message:
    if isinstance(message, Message):
        return message
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise InputError(f"{where} is {message!r:.40}: it must be an object with role and content.")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InputError(f"{where}.role is {role!r:.40}: it must be one of {', '.join(ROLES)}.")
    for field, value in message.items():
        if field not in FIELDS and value:
            raise InputError(f"{where}.{field!s:.40} is not understood here: leave it out.")
    content = message.get("content")
    alone = isinstance(content, (str, Mapping)) or not isinstance(content, Sequence)
    given = [content] if alone else cast(Sequence, content)
    parts = tuple(_part(part, f"{where}.content", rate) for part in given if part is not None)
    if not any(len(part) for part in parts):
        raise InputError(f"{where}.content says nothing: give it a text or a clip.")
    return Message(ROLES[role], parts, _recipient(message, where))


def _recipient(message: Mapping, where: str) -> str | None:
    name = message.get("recipient")
    if name is None:
        return None
    if not isinstance(name, str) or not name.strip() or message["role"] != "assistant":
        raise InputError(f"{where}.recipient must be a name, in a message of the assistant.")
    return name


def _part(part: Any, where: str, rate: int) -> str | np.ndarray:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping):
        return _described(part, where, rate)
    if isinstance(part, os.PathLike):
        return audio.read_reference(Path(part), rate)
    if isinstance(part, Reference):
        return part.wave if part.wave is not None else audio.read_reference(part.path, rate)
    if isinstance(part, Voice):
        return _codes(part.codes, where)
    if hasattr(part, "shape"):
        return _codes(part, where) if len(part.shape) == 2 else _wave(part, rate, rate, where)
    raise InputError(f"{where} holds {part!r:.40}: its parts are {KNOWN}.")


def _described(part: Mapping, where: str, rate: int) -> str | np.ndarray:
    """A part that says its type."""
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind == "input_audio" and isinstance(part.get("input_audio"), Mapping):
        return _sent(part["input_audio"].get("data"), where, rate)
    if kind == "audio":
        if part.get("codes") is not None:
            return _codes(part["codes"], where)
        if part.get("wave") is not None:
            return _wave(part["wave"], part.get("sampling_rate", rate), rate, where)
        if part.get("path") is not None:
            return audio.read_reference(part["path"], rate)
    raise InputError(f"{where} holds a part of type {kind!r:.40}: a part is {KNOWN}, with its own.")


def _sent(data: Any, where: str, rate: int) -> np.ndarray:
    """A file's bytes, or base64 of them, alone or in a ``data:`` URI."""
    if isinstance(data, str):
        try:
            encoded = data.partition(",")[2] if data[:5].lower() == "data:" else data
            data = base64.b64decode("".join(encoded.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"{where} has an input_audio of no valid base64 ({error}).") from error
    if not isinstance(data, bytes):
        raise InputError(f"{where} has an input_audio without data.")
    return audio.to_rate(*read_clip(data), rate)


def _wave(wave: Any, its_rate: Any, rate: int, where: str) -> np.ndarray:
    samples = np.asarray(wave)
    if type(its_rate) is not int or not audio.MIN_RATE <= its_rate <= audio.MAX_RATE:
        bounds = f"from {audio.MIN_RATE} to {audio.MAX_RATE}"
        raise InputError(f"{where} has a sampling_rate of {its_rate!r:.40}: it must be {bounds}.")
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise InputError(
            f"{where} holds samples {samples.dtype} {samples.shape}: they must be floats [N]."
        )
    seconds = len(samples) / its_rate
    if not audio.MIN_REFERENCE_SECONDS <= seconds <= audio.MAX_REFERENCE_SECONDS:
        raise InputError(
            f"{where} holds a clip of {seconds:.2f} s: it must last from "
            f"{audio.MIN_REFERENCE_SECONDS} to {audio.MAX_REFERENCE_SECONDS:.0f} s."
        )
    if not np.all(np.isfinite(samples)):
        raise InputError(f"{where} holds samples that are not numbers.")
    return audio.to_rate(samples, its_rate, rate)


def _codes(codes: mx.array | np.ndarray | Sequence, where: str) -> np.ndarray:
    found = np.asarray(codes)
    if found.ndim != 2 or not len(found) or not np.issubdtype(found.dtype, np.integer):
        raise InputError(
            f"{where} holds codes {found.dtype} {found.shape}: they must be whole numbers [T, K]."
        )
    return found.astype(np.int32)
