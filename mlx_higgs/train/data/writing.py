"""Conversations -> any form of training data, and what that form could not hold.

A form that names whole files gets the pieces of files, and the clips inside the JSON, as files of
their own.
"""

from __future__ import annotations

import json
import os
import random
import secrets
from collections.abc import Callable
from pathlib import Path

from ...saving import new_folder
from ...types import InputError
from ...voices import SUFFIXES
from . import chatml, swift
from .clips import duration
from .conversation import Clip, Conversation
from .folders import METADATA, dump_sample, single
from .formats import FORMS, Form
from .kept import not_kept
from .store import Store, absolute, is_file, moved, with_clips

JSON_LINES = ("chatml", "swift", "conversations")
REPLACEABLE = (*SUFFIXES, ".txt", ".jsonl", ".json", ".sqlite")


def convert(
    conversations: list[Conversation],
    source: Path,
    target: Path,
    form: Form,
    *,
    shares: dict[str, float] | None = None,
    seed: int = 0,
    force: bool = False,
) -> list[str]:
    """Write conversations, whole or not at all.

    Args:
        source: where they were read; never written to.
        target: a file for one part in JSON lines, otherwise a folder.
        shares: ``{"valid": 0.05}``: parts to draw from them, with ``seed``; the rest is train.

    Returns:
        What the form could not hold, one line each.

    Raises:
        InputError: it exists (without ``force``), or a conversation that the form cannot hold.
    """
    if not conversations:
        raise InputError(f"{source} holds no conversations.")
    if form not in FORMS:
        raise InputError(f"The form {form!r} is none of {', '.join(FORMS)}.")
    check_target(target, source, folder=bool(shares) or form not in JSON_LINES, force=force)
    if not shares:
        written = _write(conversations, form, target, target, force=force)
        return not_kept(written, target, form)
    return _write_parts(split(conversations, shares, seed), form, target, force=force)


def _write_parts(
    parts: dict[str, list[Conversation]], form: Form, target: Path, *, force: bool
) -> list[str]:
    written = {}
    with new_folder(target, force=force) as partial:
        for name, part in parts.items():
            name = f"{name}.jsonl" if form in JSON_LINES else name
            written[target / name] = _write(part, form, partial / name, target / name)
    return [note for path, part in written.items() for note in not_kept(part, path, form)]


def split(
    conversations: list[Conversation], shares: dict[str, float], seed: int
) -> dict[str, list[Conversation]]:
    """Parts drawn at random, each in the order of the whole.

    Raises:
        InputError: a part would be empty.
    """
    order = list(range(len(conversations)))
    random.Random(seed).shuffle(order)
    chosen: dict[str, list[int]] = {}
    for name, share in shares.items():
        count = max(1, round(share * len(conversations)))
        chosen[name], order = order[:count], order[count:]
    if not order:
        raise InputError(f"{len(conversations)} conversations are too few for a split.")
    chosen = {"train": order, **chosen}
    return {name: [conversations[i] for i in sorted(part)] for name, part in chosen.items()}


def check_target(target: Path, source: Path, *, folder: bool, force: bool) -> None:
    """Whether ``target`` may be written, before any work is done.

    Raises:
        InputError: the source, of the wrong kind, or there already (without ``force``).
    """
    here, there = target.absolute().resolve(), source.absolute().resolve()
    if here == there or (folder and there.is_relative_to(here)):
        raise InputError(f"{target} holds the source {source}: name another place to write to.")
    if not folder and not target.parent.is_dir():
        raise InputError(f"The folder {target.parent} does not exist.")
    if not target.exists():
        return
    if target.is_dir() != folder:
        kind = "folder" if folder else "file"
        raise InputError(f"{target} exists and is no {kind}: name a {kind} to write to.")
    if folder and not any(target.iterdir()):
        return
    if not force:
        raise InputError(f"{target} exists: --force replaces it, or name another.")
    files = [path for path in target.rglob("*") if not path.is_dir()] if folder else []
    if other := next((path for path in files if path.suffix.lower() not in REPLACEABLE), None):
        raise InputError(f"{target} holds {other.name}: --force does not replace it.")


def _write(
    conversations: list[Conversation], form: Form, path: Path, final: Path, *, force: bool = False
) -> list[Conversation]:
    """Write one part to ``path``, to be found at ``final``; what should be read back there."""
    if form in JSON_LINES:
        return _write_lines(conversations, form, path, final, force)
    writer = _write_metadata if form == "metadata" else _write_folder
    with new_folder(path, force=force) as partial:
        return writer(conversations, partial, final)


def _write_lines(
    conversations: list[Conversation], form: Form, path: Path, final: Path, force: bool
) -> list[Conversation]:
    clips = list(dict.fromkeys(clip for each in conversations for clip in each.clips))
    pieces = [] if form == "chatml" else [clip for clip in clips if not is_file(clip)]
    names = {clip: _name(clip, final.parent, form) for clip in clips}
    if pieces:
        folder = path.with_name(f"{path.stem}_audio")
        check_target(folder, path, folder=True, force=force)
        with new_folder(folder, force=force) as partial:
            store = Store(partial, final.with_name(folder.name))
            names |= {clip: str(store.keep(clip)) for clip in pieces}
    dump: Callable[[Conversation], dict] = {
        "chatml": lambda each: chatml.dump(each, names),
        "swift": lambda each: swift.dump(each, names, "messages"),
        "conversations": lambda each: swift.dump(each, names, "conversations"),
    }[form]
    write_text(path, "".join(f"{as_json(dump(each))}\n" for each in conversations))
    if form == "chatml":
        return [with_clips(each, absolute) for each in conversations]
    return [with_clips(each, lambda clip: moved(clip, names[clip])) for each in conversations]


def _name(clip: Clip, folder: Path, form: Form) -> str:
    """Relative to the data set's folder when inside it, but absolute for ms-swift, as it asks."""
    path = absolute(clip).path
    if path is None:
        return ""
    home = Path(os.path.abspath(folder))
    inside = form == "chatml" and path.is_relative_to(home)
    return str(path.relative_to(home) if inside else path)


def _write_metadata(
    conversations: list[Conversation], folder: Path, final: Path
) -> list[Conversation]:
    store, texts = Store(folder, final), Store(folder, final)
    samples = []
    for each in conversations:
        target = single(each, METADATA)[1][-1]
        names = {clip: store.keep(clip).name for clip in each.clips}
        transcript = texts.free(Path(names[target.clip]).stem, ".txt")
        (folder / transcript).write_text(target.text, encoding="utf-8")
        seconds = duration(Clip(folder / names[target.clip]))
        samples.append(dump_sample(each, names, transcript, seconds))
    write_text(folder / METADATA, as_json({"dataset_info": _info(samples), "samples": samples}, 2))
    return [with_clips(each, store.moved) for each in conversations]


def _info(samples: list[dict]) -> dict:
    seconds = sum(sample["duration"] for sample in samples)
    return {
        "total_samples": len(samples),
        "speakers": sorted({str(s["speaker_id"]) for s in samples if "speaker_id" in s}),
        "languages": sorted({str(s["language"]) for s in samples if s.get("language")}),
        "total_duration": round(seconds, 2),
        "avg_duration": round(seconds / len(samples), 2),
    }


def _write_folder(
    conversations: list[Conversation], folder: Path, final: Path
) -> list[Conversation]:
    stores: dict[str, Store] = {}
    written = []
    for each in conversations:
        target = single(each, "a folder")[1][-1]
        speaker = each.speaker or ""
        if speaker.startswith(".") or Path(speaker).name != speaker:
            raise InputError(f"{each.source}: the speaker {speaker!r} cannot name a folder.")
        (folder / speaker).mkdir(exist_ok=True)
        store = stores.setdefault(speaker, Store(folder / speaker, final / speaker))
        path = store.keep(target.clip, again=True)
        (folder / speaker / f"{path.stem}.txt").write_text(target.text, encoding="utf-8")
        written.append((path, with_clips(each, lambda c, t=target, s=store: s.moved_or(c, t.clip))))
    return [each for _, each in sorted(written, key=lambda pair: pair[0])]


def as_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def write_text(path: Path, text: str) -> None:
    """A UTF-8 file that appears whole or not at all."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except BaseException:  # an interrupt, too
        partial.unlink(missing_ok=True)
        raise
