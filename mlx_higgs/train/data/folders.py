"""Folders of clips with their words: the community's ``metadata.json``, or ``NAME.wav`` + ``.txt``.

Both hold one answer to one text, after reference clips if there are any.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...text import read_text
from ...types import InputError
from ...voices import SUFFIXES
from .conversation import Clip, Conversation, Message
from .fields import Line

METADATA = "metadata.json"
FIELDS = (
    "audio_file",
    "transcript_file",
    "transcript",
    "duration",  # what the file says itself
    "speaker_id",
    "scene",
    "system",
)
REFERENCE = ("ref_audio_file", "ref_transcript", "ref_speakers")
COMPUTED = {"total_samples", "speakers", "languages", "total_duration", "avg_duration"}
SCENE = "Audio is recorded from {}."  # what the community's trainers make of a scene's label
LABEL = re.compile(r"\w+")
TAGGED = re.compile(r"(\[SPEAKER\d+\]) (.*)", re.DOTALL)


@dataclass(frozen=True)
class Reading:
    """A clip and its words."""

    text: str
    clip: Clip


def reading_conversation(
    target: Reading,
    references: tuple[Reading, ...] = (),
    *,
    system: str | None = None,
    scene: str | None = None,
    **about: Any,
) -> Conversation:
    """A conversation as ``generate`` would hold it: system turn, references, then the target.

    Without a scene, a reference and a system text, there is the system text of generation.
    """
    if system == instruction():
        system = None  # made from the scene, and left out before a reference, as for generation
    if system is None and not references and not scene:
        system = instruction()
    messages = [Message("system", (system,))] if system else []
    for reading in (*references, target):
        words = (reading.text,) if reading.text else ()
        messages += [Message("user", words), Message("assistant", (reading.clip,))]
    start = len(messages) - 2 if references else 0
    return Conversation(tuple(messages), start, scene=scene, **about)


def instruction() -> str:
    """The system text of generation without a voice."""
    from ...prompts.chatml import ONE_SPEAKER

    return ONE_SPEAKER


def readings(conversation: Conversation) -> tuple[str | None, tuple[Reading, ...]] | None:
    """The system text, and the references with the target last; None for any other shape."""
    messages = list(conversation.messages)
    system = None
    if messages and messages[0].role == "system":
        first = messages.pop(0)
        if first.clips or first.recipient:
            return None
        system = first.text
    found = []
    for user, answer in zip(messages[::2], messages[1::2], strict=False):
        spoken = len(answer.parts) == len(answer.clips) == 1 and not answer.recipient
        if (user.role, answer.role) != ("user", "assistant") or user.clips or not spoken:
            return None
        found.append(Reading(user.text, answer.clips[0]))
    if not found or len(messages) % 2 or conversation.targets != conversation.messages[-1:]:
        return None
    return system, tuple(found)


def rebuilt(
    conversation: Conversation,
    *,
    references: tuple[Reading, ...] | None = None,
    scene: str | None = None,
) -> Conversation:
    """The same readings after other references or in another scene; other shapes stay."""
    found = readings(conversation)
    if found is None:
        return conversation if scene is None else replace(conversation, scene=scene)
    system, (*before, target) = found
    return reading_conversation(
        target,
        tuple(before) if references is None else references,
        system=system,
        scene=conversation.scene if scene is None else scene,
        speaker=conversation.speaker,
        misc=conversation.misc,
        source=conversation.source,
    )


def read_metadata(path: Path) -> Iterator[tuple[Line, Conversation]]:
    """The samples of a ``metadata.json``.

    Raises:
        InputError: it is no such file.
    """
    try:
        record = json.loads(read_text(path), parse_constant=lambda name: None)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}).") from error
    samples = record.get("samples") if isinstance(record, dict) else None
    if not isinstance(samples, list):
        raise InputError(f"{path} has no list of samples: it is no metadata of a data set.")
    information = record.get("dataset_info")
    for number, sample in enumerate(samples, start=1):
        line = Line(path.parent, f"{path}: sample {number}")
        if number == 1 and isinstance(information, dict):
            line.unknown(information, COMPUTED, "dataset_info")
        if isinstance(sample, dict):
            yield line, _sample(sample, line)
        else:
            line.problems.append(f"it is {sample!r:.60}, not an object")
            yield line, Conversation((), source=line.source)


def _sample(record: dict, line: Line) -> Conversation:
    references = _references(record, line)
    target = _reading(record, "audio_file", "transcript", line)
    about = {
        "speaker": line.value(record, "speaker_id", str),
        "misc": _misc(record) or None,
        "source": line.source,
    }
    if target is None:
        return Conversation((), **about)
    scene = line.value(record, "scene", str)
    return reading_conversation(
        target,
        references,
        system=line.value(record, "system", str),
        scene=scene_line(scene) if scene else None,
        **about,
    )


def _misc(record: dict) -> dict:
    """What nothing reads; an id that the clip's name says is left out."""
    rest = {key: value for key, value in record.items() if key not in (*FIELDS, *REFERENCE)}
    if rest.get("id") == Path(str(record.get("audio_file"))).stem:
        del rest["id"]
    return rest


def _references(record: dict, line: Line) -> tuple[Reading, ...]:
    speakers = line.value(record, "ref_speakers", list, [])
    found = []
    for number, entry in enumerate(speakers):
        if not isinstance(entry, dict):
            line.problems.append(f"ref_speakers has {entry!r:.60}, not an object")
            continue
        reading = _reading(entry, "ref_audio_file", "ref_transcript", line)
        tag = line.value(entry, "speaker_tag", str, f"[SPEAKER{number}]")
        if reading is not None:
            found.append(Reading(f"{tag} {reading.text}".strip(), reading.clip))
    if record.get("ref_audio_file"):
        found.append(_reading(record, "ref_audio_file", "ref_transcript", line))
    return tuple(reading for reading in found if reading is not None)


def _reading(record: dict, audio: str, words: str, line: Line) -> Reading | None:
    """The clip named by one field and its words: in another, in a file, or beside the clip."""
    name = line.value(record, audio, str)
    clip = line.clip(name, {}) if name else None
    if clip is None or clip.path is None:
        line.problems.append(f"there is no {audio}")
        return None
    text = line.value(record, words, str)
    if text is None:
        file = line.value(record, f"{words}_file", str)
        path = line.path(file) if file else clip.path.with_suffix(".txt")
        text = None if path is None else _words(path, line)
    return Reading((text or "").strip(), clip)


def _words(path: Path, line: Line) -> str | None:
    try:
        return read_text(path)
    except InputError as error:
        line.problems.append(str(error).removesuffix("."))
        return None


def scene_line(label: str) -> str:
    """``quiet_room`` -> what the prompt says; a sentence stays as it is."""
    return SCENE.format(label.replace("_", " ")) if LABEL.fullmatch(label) else label


def scene_label(scene: str) -> str:
    """The label of a scene that has one."""
    start, end = SCENE.split("{}")
    label = scene.removeprefix(start).removesuffix(end).replace(" ", "_")
    return label if scene_line(label) == scene else scene


def read_folder(folder: Path) -> Iterator[tuple[Line, Conversation]]:
    """``NAME.wav`` (or .flac, .mp3, .ogg, .opus) with ``NAME.txt``; a subfolder is a speaker."""
    for path in folder_clips(folder):
        line = Line(path.parent, str(path))
        words = path.with_suffix(".txt")
        text = _words(words, line) if words.is_file() else None
        if not words.is_file():
            line.problems.append(f"it has no transcript: write what it says to {words.name}")
        speaker = None if path.parent == folder else path.parent.name
        target = Reading((text or "").strip(), Clip(path))
        yield line, reading_conversation(target, speaker=speaker, source=line.source)


def folder_clips(folder: Path) -> list[Path]:
    """The clips of a folder and its subfolders, sorted; hidden ones are left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(
        path
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def dump_sample(
    conversation: Conversation, names: dict[Clip, str], transcript_file: str, seconds: float
) -> dict:
    """A conversation as a sample of ``metadata.json``.

    Raises:
        InputError: it is more than one answer to one text.
    """
    system, (*references, target) = single(conversation, "metadata.json")
    record: dict[str, Any] = {"id": Path(transcript_file).stem, **(conversation.misc or {})}
    record |= {
        "audio_file": names[target.clip],
        "transcript_file": transcript_file,
        "duration": round(seconds, 3),
    }
    if conversation.speaker is not None:
        record["speaker_id"] = conversation.speaker
    if conversation.scene is not None:
        record["scene"] = scene_label(conversation.scene)
    if system is not None and system != instruction():
        record["system"] = system
    return record | _dump_references(references, names)


def _dump_references(references: list[Reading], names: dict[Clip, str]) -> dict[str, Any]:
    if len(references) == 1:
        (only,) = references
        return {"ref_audio_file": names[only.clip], "ref_transcript": only.text}
    speakers = []
    for reading in references:
        tag, words = _tagged(reading.text)
        speakers.append(
            {
                "speaker_tag": tag,
                "ref_audio_file": names[reading.clip],
                "ref_transcript": words,
            }
        )
    return {"ref_speakers": speakers} if speakers else {}


def _tagged(text: str) -> tuple[str, str]:
    """``[SPEAKER0] words`` -> its tag and its words."""
    found = TAGGED.fullmatch(text)
    return (found[1], found[2]) if found else ("", text)


def single(conversation: Conversation, form: str) -> tuple[str | None, tuple[Reading, ...]]:
    """As ``readings``.

    Raises:
        InputError: the conversation has another shape.
    """
    found = readings(conversation)
    if found is None:
        raise InputError(
            f"{conversation.source}: {form} holds one spoken answer to one text, after references: "
            "use --to chatml for other conversations."
        )
    return found
