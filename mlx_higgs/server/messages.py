"""Messages as OpenAI's chat API has them, or with Python's own values in them -> what is said."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np

from .. import audio
from ..hearing import MAX_SAMPLES
from ..types import InputError, Recording, Voice
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

# words; codes [T, K]; samples float32 [N] and their rate in Hz; what was heard before
Part: TypeAlias = "str | np.ndarray | tuple[np.ndarray, int] | Recording"


@dataclass(frozen=True)
class Message:
    """What somebody said.

    Attributes:
        parts: words; clips as samples float32 ``[N]`` with their own rate, as codes ``[T, K]``, or
            as the recordings that ``HiggsAudioServer.hear`` makes.
        recipient: whom an assistant addresses.
    """

    role: Role
    parts: tuple[Part, ...]
    recipient: str | None = None


def read_messages(
    messages: Any, sampling_rate: int, longest: float = audio.MAX_REFERENCE_SECONDS
) -> list[Message]:
    """A conversation, oldest first.

    Args:
        messages: dicts of ``role`` (system, developer, user, assistant) and ``content``: a text, or
            a list of parts, which are ``{"type": "text", "text": ...}``,
            ``{"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}}``,
            ``{"type": "audio", "path" | "wave" | "codes": ...}`` (a wave with its
            ``sampling_rate``), or simply texts, paths (``Path``), arrays (samples ``[N]`` at
            ``sampling_rate``, codes ``[T, K]``), ``Voice`` and ``Recording``.
        sampling_rate: of arrays that do not say theirs, in Hz.
        longest: seconds of a clip, at most; those of an assistant are encoded, and have a minute.

    Raises:
        InputError: what cannot be read, by the place of its message.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise InputError("The messages must be a list of objects with a role and a content.")
    if not messages:
        raise InputError("There are no messages: a conversation begins with one of a user.")
    return [_message(one, index, sampling_rate, longest) for index, one in enumerate(messages)]


def _message(message: Any, index: int, rate: int, longest: float) -> Message:
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
    if ROLES[role] == "assistant":
        longest = min(longest, audio.MAX_REFERENCE_SECONDS)
    reader = _Reader(f"{where}.content", rate, longest)
    parts = tuple(reader.part(part) for part in given if part is not None)
    if not any(isinstance(part, Recording) or len(part) for part in parts):
        raise InputError(f"{where}.content says nothing: give it a text or a clip.")
    return Message(ROLES[role], parts, _recipient(message, where))


def _recipient(message: Mapping, where: str) -> str | None:
    name = message.get("recipient")
    if name is None:
        return None
    if not isinstance(name, str) or not name.strip() or message["role"] != "assistant":
        raise InputError(f"{where}.recipient must be a name, in a message of the assistant.")
    return name


@dataclass(frozen=True)
class _Reader:
    """The parts of one message.

    Args:
        where: what errors call it. rate: of arrays that do not say theirs. longest: seconds.
    """

    where: str
    rate: int
    longest: float

    def part(self, part: Any) -> Part:
        if isinstance(part, str):
            return part
        if isinstance(part, Mapping):
            return self._described(part)
        if isinstance(part, os.PathLike):
            return self._file(part)
        if isinstance(part, Reference):
            return self._file(part.path) if part.wave is None else self._wave(part.wave, self.rate)
        if isinstance(part, Voice):
            return self._recording(Recording(part.codes, part.wave))
        if isinstance(part, Recording):
            return self._recording(part)
        if hasattr(part, "shape"):
            return self._codes(part) if len(part.shape) == 2 else self._wave(part, self.rate)
        raise InputError(f"{self.where} holds {part!r:.40}: its parts are {KNOWN}.")

    def _described(self, part: Mapping) -> Part:
        """A part that says its type."""
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            return part["text"]
        if kind == "input_audio" and isinstance(part.get("input_audio"), Mapping):
            return self._sent(part["input_audio"].get("data"))
        if kind == "audio":
            if part.get("codes") is not None:
                return self._codes(part["codes"])
            if part.get("wave") is not None:
                return self._wave(part["wave"], part.get("sampling_rate", self.rate))
            if isinstance(part.get("path"), (str, os.PathLike)):
                return self._file(part["path"])
        raise InputError(
            f"{self.where} holds a part of type {kind!r:.40}: a part is {KNOWN}, with its own."
        )

    def _sent(self, data: Any) -> tuple[np.ndarray, int]:
        """A file's bytes, or base64 of them, alone or in a ``data:`` URI."""
        if isinstance(data, str):
            try:
                encoded = data.partition(",")[2] if data[:5].lower() == "data:" else data
                data = base64.b64decode("".join(encoded.split()), validate=True)
            except (binascii.Error, ValueError) as error:
                raise InputError(
                    f"{self.where} has an input_audio of no valid base64 ({error})."
                ) from error
        if not isinstance(data, bytes):
            raise InputError(f"{self.where} has an input_audio without data.")
        return self._file(data)

    def _file(self, source: str | os.PathLike | bytes) -> tuple[np.ndarray, int]:
        """A file, or what one holds."""
        source = source if isinstance(source, bytes) else Path(source)
        try:
            wave, rate = read_clip(source, max_seconds=self.longest, max_samples=MAX_SAMPLES)
        except InputError as error:
            raise InputError(f"{self.where}: {error}") from error
        self._check_length(len(wave), rate)
        return wave, rate

    def _wave(self, wave: Any, rate: Any) -> tuple[np.ndarray, int]:
        if type(rate) is not int or not audio.MIN_RATE <= rate <= audio.MAX_RATE:
            bounds = f"from {audio.MIN_RATE} to {audio.MAX_RATE}"
            raise InputError(
                f"{self.where} has a sampling_rate of {rate!r:.40}: it must be {bounds}."
            )
        samples = self._samples(wave)
        self._check_length(len(samples), rate)
        return samples, rate

    def _samples(self, wave: Any) -> np.ndarray:
        samples = np.asarray(wave)
        if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
            raise InputError(
                f"{self.where} holds samples {samples.dtype} {samples.shape}: they must be floats "
                "[N]."
            )
        if not np.all(np.isfinite(samples)):
            raise InputError(f"{self.where} holds samples that are not numbers.")
        return samples.astype(np.float32)

    def _check_length(self, samples: int, rate: int) -> None:
        seconds = samples / rate
        if not audio.MIN_REFERENCE_SECONDS <= seconds <= self.longest:
            raise InputError(
                f"{self.where} holds a clip of {seconds:.2f} s: it must last from "
                f"{audio.MIN_REFERENCE_SECONDS} to {self.longest:.0f} s."
            )

    def _recording(self, heard: Recording) -> Recording:
        """What ``HiggsAudioServer.hear`` makes, as it is."""
        if heard.codes is None and heard.wave is None:
            raise InputError(f"{self.where} holds an empty Recording: let the server hear a clip.")
        if heard.codes is not None:
            self._codes(heard.codes)
        if heard.wave is not None:
            self._samples(heard.wave)
        return heard

    def _codes(self, codes: mx.array | np.ndarray | Sequence) -> np.ndarray:
        found = np.asarray(codes)
        if found.ndim != 2 or not len(found) or not np.issubdtype(found.dtype, np.integer):
            raise InputError(
                f"{self.where} holds codes {found.dtype} {found.shape}: they must be whole numbers "
                "[T, K]."
            )
        return found.astype(np.int32)
