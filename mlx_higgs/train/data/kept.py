"""What a form of training data did not keep: the written data read back, and compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .conversation import Clip, Conversation, Message
from .formats import Form, read_conversations


def not_kept(written: list[Conversation], path: Path, form: Form) -> list[str]:
    """One line for each kind of thing that does not come back from ``path``."""
    found: dict[str, list[str]] = {}
    for before, after in zip(written, read_conversations(path), strict=True):
        for what in differences(before, after):
            found.setdefault(what, []).append(before.source)
    return [
        f"the form {form} does not keep {what}: {len(sources)} of {len(written)} "
        f"(the first is {sources[0]})"
        for what, sources in found.items()
    ]


def differences(before: Conversation, after: Conversation) -> Iterator[str]:
    """What is not in ``after`` as it was in ``before``, by name."""
    for name in ("speaker", "scene"):
        if getattr(before, name) != getattr(after, name):
            yield f"the {name}"
    kept = after.misc or {}
    lost = [key for key, value in (before.misc or {}).items() if kept.get(key) != value]
    if lost:
        yield f"misc ({', '.join(sorted(map(str, lost)))})"
    if _roles(before) != _roles(after):
        yield "the turns (a system text or references)"
        return
    if _trained(before) != _trained(after):
        yield "which turns are trained"
    pairs = list(zip(before.messages, after.messages, strict=True))
    for what, same in SAME.items():
        if not all(same(*pair) for pair in pairs):
            yield what


SAME = {
    "the recipient": lambda a, b: a.recipient == b.recipient,
    "the system text": lambda a, b: a.role != "system" or _text(a) == _text(b),
    "the words": lambda a, b: a.role == "system" or _text(a) == _text(b),
    "where a text is cut into parts": lambda a, b: len(a.parts) == len(b.parts),
    "the clips": lambda a, b: [_sound(c) for c in a.clips] == [_sound(c) for c in b.clips],
    "row_id": lambda a, b: [c.row_id for c in a.clips] == [c.row_id for c in b.clips],
}


def _roles(conversation: Conversation) -> list[str]:
    return [message.role for message in conversation.messages]


def _trained(conversation: Conversation) -> list[int]:
    start, messages = conversation.start_index, conversation.messages
    return [i for i in range(start, len(messages)) if messages[i].role == "assistant"]


def _text(message: Message) -> str:
    return "".join(part if isinstance(part, str) else "\0" for part in message.parts)


def _sound(clip: Clip) -> tuple:
    path = None if clip.path is None else clip.path.absolute()
    return path, clip.offset, clip.duration, clip.data
