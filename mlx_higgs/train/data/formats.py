"""Any accepted form of training data -> conversations; the form is told by the content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from ...text import read_text
from ...types import InputError
from . import chatml, swift
from .conversation import Conversation
from .fields import Line
from .folders import METADATA, folder_clips, read_folder, read_metadata

Form = Literal["chatml", "swift", "conversations", "metadata", "folder"]
FORMS: tuple[Form, ...] = get_args(Form)
Lines = Iterator[tuple[Line, Conversation]]
SPLITS = ("train", "valid", "test")
ACCEPTED = (
    "JSON lines with messages or conversations, a metadata.json with samples, or a folder of "
    "NAME.wav with NAME.txt"
)


def read_conversations(path: Path) -> Iterator[Conversation]:
    """The conversations of a file or folder, whichever form it has.

    Raises:
        InputError: nothing there, or the first entry that cannot be used, by ``file:line``.
    """
    for line, conversation in read_lines(path):
        if line.problems:
            raise InputError(f"{line.source}: {line.problems[0]}.")
        yield conversation


def read_lines(path: Path) -> Lines:
    """As ``read_conversations``, with everything that is wrong or ignored beside each.

    Raises:
        InputError: no training data there.
    """
    path = Path(path)
    if path.is_dir():
        yield from _folder(path)
    elif not path.exists():
        raise InputError(f"There is no training data at {path}.")
    elif isinstance(whole := _whole(path), dict) and "samples" in whole:
        yield from read_metadata(path)
    elif whole is not None:
        entries = whole if isinstance(whole, list) else [whole]
        for number, record in enumerate(entries, start=1):
            line = Line(path.parent, f"{path}: entry {number}")
            yield line, parse(record, line)
    else:
        yield from _json_lines(path)


def _folder(folder: Path) -> Lines:
    if (folder / METADATA).is_file():
        yield from read_metadata(folder / METADATA)
    elif parts := sorted(_parts(folder), key=_split_order):
        for part in parts:
            yield from read_lines(part)
    elif folder_clips(folder):
        yield from read_folder(folder)
    else:
        raise InputError(f"{folder} holds no training data: {ACCEPTED}.")


def _parts(folder: Path) -> list[Path]:
    """Its JSON lines, or its subfolders for training, validation and test."""
    files = [*folder.glob("*.jsonl"), *(folder / f"{name}.json" for name in SPLITS)]
    found = [path for path in files if path.is_file()]
    return found or [folder / name for name in SPLITS if (folder / name).is_dir()]


def _split_order(path: Path) -> tuple[int, str]:
    return (SPLITS.index(path.stem) if path.stem in SPLITS else len(SPLITS), path.name)


def _whole(path: Path) -> object:
    """The value of a file that is one JSON document; None for JSON lines."""
    with path.open("rb") as file:
        first = next((text for text in file if text.strip()), b"")
    try:
        value = json.loads(first)
        if not isinstance(value, list):
            return value if isinstance(value, dict) and "samples" in value else None
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(read_text(path), parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return None


def _json_lines(path: Path) -> Lines:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                line = Line(path.parent, f"{path}:{number}")
                yield line, _decoded(raw, line)


def _decoded(raw: bytes, line: Line) -> Conversation:
    try:  # pandas writes NaN for what is not there
        record = json.loads(raw.decode("utf-8-sig"), parse_constant=lambda name: None)
    except (ValueError, RecursionError) as error:
        line.problems.append(f"not JSON ({error})")
        return Conversation((), source=line.source)
    return parse(record, line)


def parse(record: object, line: Line) -> Conversation:
    """One entry of a JSON file, in whichever form; problems are added to ``line``."""
    if not isinstance(record, dict):
        line.problems.append(f"not a JSON object but {record!r:.60}")
    elif _is_swift(record):
        return swift.parse(record, line)
    elif "messages" in record:
        return chatml.parse(record, line)
    else:
        line.problems.append(f"neither messages nor conversations: accepted are {ACCEPTED}")
    return Conversation((), source=line.source)


def _is_swift(record: dict) -> bool:
    if any(name in record for name in ("conversations", "conversation", "audios", "audio")):
        return True
    messages = record.get("messages")
    entries = messages if isinstance(messages, list) else []
    return any(isinstance(entry, dict) and "from" in entry for entry in entries)
