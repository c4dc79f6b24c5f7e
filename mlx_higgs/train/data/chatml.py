"""Boson's ChatML, one object per line, as ``boson_multimodal/data_types.py`` defines it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .conversation import ROLES, Clip, Conversation, Message, Part
from .fields import Line

FIELDS = frozenset({"messages", "start_index", "misc", "speaker", "scene"})
MESSAGE = frozenset({"role", "content", "recipient"})
TEXT = frozenset({"type", "text"})
# Where a clip's name stands: Boson's field, then transformers' and Qwen's.
NAMES = ("audio_url", "url", "audio", "path")
AUDIO = frozenset({"type", "raw_audio", "offset", "duration", "row_id", *NAMES})
SCENE = "scene"  # transformers' chat template gives it a role


def parse(record: dict, line: Line) -> Conversation:
    """One object -> a conversation; what is wrong with it is added to ``line``."""
    line.unknown(record, FIELDS, "the line")
    scene = line.value(record, "scene", str)
    messages = []
    entries = line.value(record, "messages", list, [])
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            line.problems.append(f"message {number} is {entry!r:.60}, not an object")
        elif entry.get("role") == SCENE:
            scene = _text(entry, line)
        else:
            messages.append(_message(entry, line))
    misc = line.value(record, "misc", dict)
    speaker = line.value(record, "speaker", str) or (misc or {}).get("speaker")
    conversation = Conversation(
        tuple(messages),
        speaker=None if speaker is None else str(speaker),
        scene=scene,
        misc=misc,
        source=line.source,
    )
    return _started(conversation, line.value(record, "start_index", int, 0), entries, line)


def _started(conversation: Conversation, start: int, entries: list, line: Line) -> Conversation:
    """``start_index`` counts the messages as written, a scene's included."""
    if not 0 <= start <= len(entries):
        line.problems.append(f"start_index is {start}, for {len(entries)} messages")
        start = 0
    scenes = sum(isinstance(e, dict) and e.get("role") == SCENE for e in entries[:start])
    return replace(conversation, start_index=start - scenes)


def _message(entry: dict, line: Line) -> Message:
    line.unknown(entry, MESSAGE, "a message")
    role = entry.get("role")
    if role not in ROLES:
        line.problems.append(f"the role {role!r:.60} is none of {', '.join(ROLES)}")
        role = "user"
    recipient = line.value(entry, "recipient", str)
    if recipient and role != "assistant":
        line.problems.append(f"a {role} message has the recipient {recipient!r:.60}")
    return Message(role, parts(entry.get("content"), line), recipient)


def _text(entry: dict, line: Line) -> str:
    return Message("system", parts(entry.get("content"), line)).text


def parts(content: Any, line: Line) -> tuple[Part, ...]:
    """``content``: text, a part, or a list of either; empty texts say nothing and are left out."""
    if content is None:
        return ()
    entries = content if isinstance(content, list) else [content]
    found = [_part(entry, line) for entry in entries]
    return tuple(part for part in found if part is not None and part != "")


def _part(entry: Any, line: Line) -> Part | None:
    if isinstance(entry, str):
        return entry
    if isinstance(entry, dict) and entry.get("type") == "text":
        line.unknown(entry, TEXT, "a text part")
        return line.value(entry, "text", str, "")
    if isinstance(entry, dict) and entry.get("type") == "audio":
        line.unknown(entry, AUDIO, "an audio part")
        names = [line.value(entry, name, str) for name in NAMES]
        return line.clip(next((name for name in names if name), None), entry)
    line.problems.append(f"a part is {entry!r:.60}: its type must be text or audio")
    return None


def dump(conversation: Conversation, names: dict[Clip, str]) -> dict:
    """A conversation as one object. ``names``: what each clip's path is written as."""
    record: dict[str, Any] = {
        "messages": [_dump_message(message, names) for message in conversation.messages]
    }
    if conversation.start_index:
        record["start_index"] = conversation.start_index
    for name in ("speaker", "scene", "misc"):
        if getattr(conversation, name) is not None:
            record[name] = getattr(conversation, name)
    return record


def _dump_message(message: Message, names: dict[Clip, str]) -> dict:
    content = [_dump_part(part, names) for part in message.parts]
    single = len(content) == 1
    record = {"role": message.role, "content": content[0] if single else content}
    if message.recipient is not None:
        record["recipient"] = message.recipient
    return record


def _dump_part(part: Part, names: dict[Clip, str]) -> str | dict:
    if isinstance(part, str):
        return part
    record: dict[str, Any] = {"type": "audio", "audio_url": names.get(part, "")}
    return record | clip_fields(part)


def clip_fields(clip: Clip) -> dict[str, Any]:
    """What a clip says beside its name."""
    import base64

    record: dict[str, Any] = {}
    if clip.data is not None:
        record["raw_audio"] = base64.b64encode(clip.data).decode()
    if clip.offset:
        record["offset"] = clip.offset
    if clip.duration is not None:
        record["duration"] = clip.duration
    if clip.row_id is not None:
        record["row_id"] = clip.row_id
    return record
