"""ms-swift's forms, ``messages`` and ``conversations``: an ``<audio>`` for each of ``audios``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from ...types import InputError
from . import chatml
from .conversation import Clip, Conversation, Message, Part, Role
from .fields import Line

Key = Literal["messages", "conversations"]
PLACEHOLDER = "<audio>"
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
}
FROM: dict[Role, str] = {"system": "system", "user": "human", "assistant": "gpt"}
TURNS = ("messages", "conversations", "conversation")
OURS = {"speaker", "scene", "misc"}  # ms-swift drops fields it does not know
FIELDS = {*TURNS, "audios", "audio", "system", *OURS}
MESSAGE = {"role", "from", "content", "value", "loss", "recipient"}
OTHER_MEDIA = ("images", "image", "videos", "video")


def parse(record: dict, line: Line) -> Conversation:
    """One object -> a conversation; what is wrong with it is added to ``line``.

    Assistant messages with ``"loss": false`` are those before ``start_index``.
    """
    line.unknown(record, FIELDS | set(OTHER_MEDIA), "the line")
    for name in OTHER_MEDIA:
        if record.get(name):
            line.problems.append(f"the line has {name}: only audio can be used")
    entries = _entries(record, line)
    clips = iter(found := _clips(record, line))
    messages = [_message(entry, clips, line) for entry in entries]
    wanted = sum(_placeholders(entry) for entry in entries)
    if wanted != len(found):
        line.problems.append(f"{wanted} {PLACEHOLDER} placeholders for {len(found)} audios")
    return Conversation(
        tuple(messages),
        start_index=_start(entries, messages, line),
        speaker=line.value(record, "speaker", str),
        scene=line.value(record, "scene", str),
        misc=line.value(record, "misc", dict),
        source=line.source,
    )


def _entries(record: dict, line: Line) -> list[dict]:
    """The turns as written, ``system`` first where it stands outside them."""
    name = next((name for name in TURNS if name in record), TURNS[0])
    entries = []
    for number, entry in enumerate(line.value(record, name, list, [])):
        if isinstance(entry, dict):
            entries.append(entry)
        else:
            line.problems.append(f"message {number} is {entry!r:.60}, not an object")
    system = line.value(record, "system", str)
    given = bool(entries) and _role(entries[0]) == "system"
    return [{"role": "system", "content": system}, *entries] if system and not given else entries


def _role(entry: dict) -> Any:
    return entry.get("role", entry.get("from"))


def _content(entry: dict) -> Any:
    return entry.get("content", entry.get("value"))


def _placeholders(entry: dict) -> int:
    content = _content(entry)
    texts = content if isinstance(content, list) else [content]
    texts = [text.get("text") if isinstance(text, dict) else text for text in texts]
    return sum(text.count(PLACEHOLDER) for text in texts if isinstance(text, str))


def _clips(record: dict, line: Line) -> list[Clip | None]:
    audios = record.get("audios", record.get("audio")) or []
    audios = [audios] if isinstance(audios, str) else audios
    if not isinstance(audios, list):
        line.problems.append(f"audios is {audios!r:.60}, not a list")
        return []
    return [_clip(entry, line) for entry in audios]


def _clip(entry: Any, line: Line) -> Clip | None:
    name = entry.get("path") if isinstance(entry, dict) else entry
    if not isinstance(name, str):
        line.problems.append(f"an entry of audios is {entry!r:.60}, not a path")
        return None
    return line.clip(name, {})


def _message(entry: dict, clips: Iterator[Clip | None], line: Line) -> Message:
    line.unknown(entry, MESSAGE, "a message")
    name = _role(entry)
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        line.problems.append(f"the role {name!r:.60} is none of {', '.join(ROLES)}")
    parts: list[Part] = []
    for part in chatml.parts(_content(entry), line):
        parts += _split(part, clips, line) if isinstance(part, str) else [part]
    return Message(role or "user", tuple(parts), line.value(entry, "recipient", str))


def _split(text: str, clips: Iterator[Clip | None], line: Line) -> Iterator[Part]:
    """The words around the placeholders, and the clips in place of these."""
    if "</audio>" in text:
        line.problems.append(f"</audio> in a text: write a bare {PLACEHOLDER}, its path to audios")
    for index, words in enumerate(text.split(PLACEHOLDER)):
        if index and (clip := next(clips, None)) is not None:
            yield clip
        if words:
            yield words


def _start(entries: list[dict], messages: list[Message], line: Line) -> int:
    """The first message after those whose loss is switched off."""
    trained: list[int] = []
    start = 0
    for index, (entry, message) in enumerate(zip(entries, messages, strict=True)):
        if message.role != "assistant":
            continue
        if entry.get("loss") in (None, True, 1):
            trained.append(index)
        elif entry["loss"] in (False, 0):
            start = index + 1
        else:
            line.problems.append(f"loss is {entry['loss']!r:.60}: it can be true or false here")
    if trained and trained[0] < start:
        line.problems.append("loss is false after a message that is trained: split the line")
    return start


def dump(conversation: Conversation, names: dict[Clip, str], key: Key) -> dict:
    """A conversation as one object. ``names``: the path of each clip's file.

    Raises:
        InputError: a text holds the placeholder itself.
    """
    turns = []
    for index, message in enumerate(conversation.messages):
        if any(isinstance(part, str) and PLACEHOLDER in part for part in message.parts):
            raise InputError(f"{conversation.source}: a text holds {PLACEHOLDER} itself.")
        skipped = message.role == "assistant" and index < conversation.start_index
        turns.append(_dump_message(message, key) | ({"loss": False} if skipped else {}))
    record: dict[str, Any] = {key: turns, "audios": [names[clip] for clip in conversation.clips]}
    for name in sorted(OURS):
        if getattr(conversation, name) is not None:
            record[name] = getattr(conversation, name)
    return record


def _dump_message(message: Message, key: Key) -> dict[str, Any]:
    content = "".join(part if isinstance(part, str) else PLACEHOLDER for part in message.parts)
    record: dict[str, Any] = (
        {"role": message.role, "content": content}
        if key == "messages"
        else {"from": FROM[message.role], "value": content}
    )
    if message.recipient is not None:
        record["recipient"] = message.recipient
    return record
