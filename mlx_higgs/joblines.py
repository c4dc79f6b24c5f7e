"""``jobs.jsonl``: one JSON object a line -> a request, an output name and a hash of what it asks.

The fields are the options of ``mlx_higgs.generate`` under their names there; an option given on the
command line is the default of every line.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import audio
from .types import HiggsError, InputError, Profile, Voice

if TYPE_CHECKING:
    from .server import SpeechRequest
    from .voices import Reference

STDIN = "-"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")  # safe on every disk; no separator, no ..
NAMES = "up to 96 letters (A-Z), digits, _ - and . without a folder"
TEXT, TEXTS, NUMBER, FLAG = "a text", "a text or a list of texts", "a number", "true or false"
FIELDS = {  # in a line -> in the command's arguments, and what it holds
    "text": ("text", TEXT),
    "input": ("text", TEXT),
    "id": ("id", NAMES),
    "output": ("output", NAMES),
    "ref_audio": ("ref_audio", TEXTS),
    "ref_text": ("ref_text", TEXTS),
    "voice": ("voice", TEXTS),
    "ref_in_system": ("ref_in_system", FLAG),
    "scene": ("scene", TEXT),
    "system": ("system", TEXT),
    "emotion": ("emotion", TEXT),
    "style": ("style", TEXT),
    "speed": ("speed", TEXT),
    "pitch": ("pitch", TEXT),
    "expressive": ("expressive", TEXT),
    "preset": ("preset", TEXT),
    "temperature": ("temperature", NUMBER),
    "top_p": ("top_p", NUMBER),
    "top_k": ("top_k", NUMBER),
    "ras_window": ("ras_window", NUMBER),
    "ras_win_len": ("ras_window", NUMBER),
    "ras_max_repeats": ("ras_max_repeats", NUMBER),
    "ras_max_repeat": ("ras_max_repeats", NUMBER),
    "seed": ("seed", NUMBER),
    "max_frames": ("max_frames", NUMBER),
    "max_tokens": ("max_frames", NUMBER),
    "max_new_frames": ("max_frames", NUMBER),
    "machine": ("machine", TEXT),
    "no_guards": ("no_guards", FLAG),
    "no_normalize": ("no_normalize", FLAG),
    "fade_in_ms": ("fade_in_ms", NUMBER),
    "fade_out_ms": ("fade_out_ms", NUMBER),
}
VOICE = ("ref_audio", "ref_text", "voice")  # a line that names a voice takes none of the command's
HASHED_APART = ("reference_audio_path", "reference_text", "voice", "seed")

Make = Callable[[argparse.Namespace, str], "SpeechRequest"]
Check = Callable[["SpeechRequest"], None]


@dataclass(frozen=True, slots=True)
class Job:
    """A line that can be run. Small: a file may hold a hundred thousand.

    Attributes:
        number: of the line, from 1.
        output: file name. name: how results call it.
        seed: the line's own, or derived from the command's; None draws one.
        content: hash of its text, voice and options, the seed included.
        clones: whether it names a voice.
        line: as it stands in the file.
    """

    number: int
    output: str
    name: str
    seed: int | None
    content: str
    clones: bool
    line: bytes


class JobFile:
    """The lines of a file, or of standard input, each checked without a model.

    Args:
        path: ``-`` is standard input.
        arguments: the command's, defaults of every line.
        make: arguments and a text -> the request.
        check: raises InputError for what the model does not have.
    """

    def __init__(
        self, path: str, arguments: argparse.Namespace, make: Make, check: Check | None = None
    ):
        self._path, self._arguments, self._make = path, arguments, make
        self._check_kind = check
        self._folder = Path() if path == STDIN else Path(path).parent
        self._outputs: dict[str, int] = {}  # casefolded, as some disks know no case -> line
        self._voices: dict[str, str] = {}  # as named -> hash of the clips and their words

    def read(self, refuse: Callable[[int, str], None]) -> Iterator[Job]:
        """The lines that can be run; ``refuse`` is told the number and the fault of any other.

        Raises:
            InputError: the file cannot be read, or an option of the command is bad.
        """
        self._check(self._make(self._arguments, "one"))
        for number, line in enumerate(self._lines(), start=1):
            if not line.strip():
                continue
            try:
                yield self._job(number, line)
            except (HiggsError, OSError) as error:  # the latter for a path no system takes
                refuse(number, " ".join(str(error).split()))

    def request(self, job: Job, seed: int) -> SpeechRequest:
        """What a job asks for, drawn with ``seed``."""
        return replace(self._request(_decoded(job.line)), seed=seed)

    def _lines(self) -> Iterator[bytes]:
        if self._path == STDIN:
            yield from sys.stdin.buffer
            return
        try:
            with open(self._path, "rb") as file:
                yield from file
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error  # its str() says the path again
            raise InputError(f"The jobs {self._path} cannot be read ({why}).") from error

    def _job(self, number: int, line: bytes) -> Job:
        record = _decoded(line)
        request = self._request(record)
        voice = self._check(request)
        name, output = _names(record, number)
        content = _digest(_chosen(request), voice)
        seed = request.seed
        if seed is None and self._arguments.seed is not None:
            own = [record.get("id"), record.get("output")]  # not the number: lines may move
            seed = int(_digest(self._arguments.seed, content, own)[:8], 16)
        given = self._arguments.seed if seed is None else seed
        self._reserve(output, number)
        return Job(number, output, name, seed, _digest(content, given), bool(voice), line)

    def _request(self, record: dict[str, Any]) -> SpeechRequest:
        if "text" not in record:
            raise InputError("There is no text.")
        chosen = vars(self._arguments) | {"seed": None}
        if "ref_audio" in record or "voice" in record:
            chosen |= dict.fromkeys(VOICE)
        chosen |= {name: value for name, value in record.items() if name not in ("id", "output")}
        if "ref_audio" in record:
            chosen["ref_audio"] = [
                str(self._folder / clip) for clip in _listed(record["ref_audio"])
            ]
        return self._make(argparse.Namespace(**chosen), record["text"])

    def _check(self, request: SpeechRequest) -> str:
        """Everything a request can be refused for without a model; returns the voice's hash.

        Raises:
            InputError: an option, a clip, a transcript or the name of a voice.
        """
        from .sampling import SamplingParams
        from .server.request import check_clips, references

        request.sampling(SamplingParams())
        if self._check_kind is not None:
            self._check_kind(request)
        asked = [request.reference_audio_path, request.reference_text, request.voice]
        if (named := _digest(asked)) not in self._voices:
            voices = references(request)
            check_clips(voices)
            self._voices[named] = _digest([_voice(v) for v in voices]) if voices else ""
        return self._voices[named]

    def _reserve(self, output: str, number: int) -> None:
        first = self._outputs.setdefault(output.casefold(), number)
        if first != number:
            raise InputError(f"Its output {output} is that of line {first} as well.")


def _decoded(line: bytes) -> dict[str, Any]:
    """The fields of a line by the arguments' names; null is as good as nothing."""
    try:
        text = line.decode("utf-8-sig")
        record = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
        json.dumps(record, ensure_ascii=False).encode()
    except InputError:
        raise
    except UnicodeEncodeError as error:
        raise InputError("It holds half of a surrogate pair.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"It is not JSON ({error}).") from error
    if not isinstance(record, dict):
        raise InputError(f"It is not a JSON object but {record!r:.60}.")
    return _once([_known(name, value) for name, value in record.items() if value is not None])


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InputError(f"It gives {name} twice.")
        found[name] = value
    return found


def _no_number(name: str) -> NoReturn:
    raise InputError(f"{name} is not a number.")


def _known(name: str, value: Any) -> tuple[str, Any]:
    """A field under the name of the argument it stands for."""
    if (spelled := name.replace("-", "_")) not in FIELDS:
        near = difflib.get_close_matches(spelled, FIELDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(FIELDS)}."
        raise InputError(f"There is no field {name!r:.60}: {hint}")
    argument, kind = FIELDS[spelled]
    if kind == NAMES and type(value) is int:
        value = str(value)
    if not _holds(kind, value):
        raise InputError(f"{name} is {value!r:.60}: it must be {kind}.")
    return argument, value


def _holds(kind: str, value: Any) -> bool:
    if kind == FLAG:
        return isinstance(value, bool)
    if kind == NUMBER:  # whole or not, and how large: SamplingParams says
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == TEXTS and isinstance(value, list):
        return bool(value) and all(isinstance(entry, str) for entry in value)
    return isinstance(value, str) and (kind != NAMES or NAME.fullmatch(value) is not None)


def _names(record: dict[str, Any], number: int) -> tuple[str, str]:
    """What results call a line, and its file name: named by it, or by its number."""
    name = record.get("id", "")
    output = record.get("output", f"{name or f'{number:05}'}.wav")
    if Path(output).suffix.lower() not in audio.FORMATS:
        known = ", ".join(audio.FORMATS)
        raise InputError(f"The output {output} has no known suffix: use one of {known}.")
    return name or Path(output).stem, output


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _chosen(request: SpeechRequest) -> dict[str, Any]:
    """The options that differ from the defaults; voices are hashed by what they hold."""
    return {
        f.name: getattr(request, f.name)
        for f in fields(request)
        if f.name not in HASHED_APART and getattr(request, f.name) != f.default
    }


def _voice(voice: Reference | Voice | Profile) -> list[str]:
    if isinstance(voice, Profile):
        return [voice.description]
    assert not isinstance(voice, Voice)  # a line holds names only
    return [hashlib.sha256(voice.path.read_bytes()).hexdigest(), voice.transcript]


def _digest(*parts: Any) -> str:
    """32 hex digits of the JSON of ``parts``."""
    data = json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()
    return hashlib.sha256(data).hexdigest()[:32]
