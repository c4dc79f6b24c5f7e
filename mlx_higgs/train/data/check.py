"""What is wrong with training data, entry by entry, and what there is of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from ...text import frame_cap, is_blank, normalize
from ...types import FRAME_RATE, InputError
from .clips import decode, duration
from .conversation import Clip, Conversation, Message
from .formats import read_lines
from .swift import PLACEHOLDER

Level = Literal["error", "warning"]
CONTROL = re.compile(r"<\|[^<>|\s]*\|>")
FULL_SCALE = 0.999
CLIPPED = 1e-3  # share of samples at full scale that is heard
Finding = tuple[Level, str]
Progress = Callable[[Iterable], Iterable]


def _error(text: str) -> Finding:
    return "error", text


def _warning(text: str) -> Finding:
    return "warning", text


@dataclass(frozen=True)
class Problem:
    """Something about one entry. An error keeps it from being trained."""

    source: str
    level: Level
    message: str

    def __str__(self) -> str:
        return f"{self.source}: {self.level}: {self.message}"


@dataclass
class Report:
    """All problems, and sums over what can be used."""

    problems: list[Problem] = field(default_factory=list)
    entries: int = 0
    usable: int = 0
    turns: int = 0
    trained_clips: int = 0
    trained_seconds: float = 0.0
    reference_seconds: float = 0.0
    longest_seconds: float = 0.0
    longest: str = ""
    speakers: Counter[str] = field(default_factory=Counter)
    not_normalized: int = 0  # texts that generation would write differently

    def count(self, level: Level) -> int:
        return sum(problem.level == level for problem in self.problems)


def check(path: Path, *, audio: bool = True, progress: Progress = iter) -> Report:
    """Read a data set and everything in it.

    Args:
        audio: decode every clip; otherwise their headers are read alone.

    Raises:
        InputError: no data there.
    """
    checker = Checker(audio)
    for line, conversation in progress(read_lines(path)):
        checker.add(conversation, line.problems, line.warnings)
    return checker.report


class Checker:
    """Looks at one conversation after the other; each clip once."""

    def __init__(self, audio: bool = True):
        self.report = Report()
        self._audio = audio
        self._clips: dict[Clip, tuple[float | None, list[Finding]]] = {}
        self._targets: dict[Clip, str] = {}

    def add(self, conversation: Conversation, problems: list[str], warnings: list[str]) -> None:
        """Check one entry that was read with these problems and warnings."""
        found = [_error(text) for text in problems] + [_warning(text) for text in warnings]
        if not problems:
            found += self._turns(conversation)
            found += self._texts(conversation)
        for clip in conversation.clips:
            found += self._clip(clip)[1]
        if not problems:
            found += self._lengths(conversation)
        source = conversation.source
        self.report.problems += [Problem(source, level, text) for level, text in found]
        self.report.entries += 1
        if not any(level == "error" for level, _ in found):
            self._sum(conversation)

    def _turns(self, conversation: Conversation) -> list[Finding]:
        start = conversation.start_index
        if not conversation.targets:
            return [_error(f"no assistant message from start_index {start} on")]
        if not any(message.clips for message in conversation.targets):
            return [_error(f"no assistant audio from start_index {start} on")]
        found: list[Finding] = []
        for message in conversation.targets:
            for clip in message.clips:
                first = self._targets.setdefault(clip, conversation.source)
                if first != conversation.source:
                    found.append(_warning(f"the same target as {first}: {clip}"))
        return found

    def _texts(self, conversation: Conversation) -> list[Finding]:
        from ...prompts.chatml import MARKERS, SCENE_START

        found: list[Finding] = []
        for message in conversation.messages:
            text = message.text
            if message.role != "assistant" and not message.clips and is_blank(text):
                found.append(_error(f"a {message.role} message says nothing ({text!r:.40})"))
            allowed = MARKERS if message.role == "system" else ()
            if control := sorted(set(CONTROL.findall(text)) - set(allowed)):
                found.append(_error(f"control tokens in a text: {', '.join(control)}"))
            if PLACEHOLDER in text:
                found.append(_error(f"{PLACEHOLDER} in a text, but the line has no audios"))
            if any("\ud800" <= char <= "\udfff" for char in text):
                found.append(_error("a text holds half a character (a lone surrogate)"))
            if message.role == "system" and conversation.scene and SCENE_START in text:
                found.append(_warning("scene is not used: the system text has one"))
        return found

    def _clip(self, clip: Clip) -> tuple[float | None, list[Finding]]:
        """Seconds, None when it cannot be used, and what is wrong with it."""
        if clip not in self._clips:
            try:
                self._clips[clip] = self._heard(clip) if self._audio else (duration(clip), [])
            except InputError as error:
                self._clips[clip] = None, [_error(str(error).removesuffix("."))]
        return self._clips[clip]

    def _heard(self, clip: Clip) -> tuple[float, list[Finding]]:
        wave, rate = decode(clip)
        loud = float(np.mean(np.abs(wave) >= FULL_SCALE))
        text = f"the clip {clip} is clipped: {loud:.1%} of its samples are at full scale"
        return len(wave) / rate, [_warning(text)] if loud > CLIPPED else []

    def _lengths(self, conversation: Conversation) -> list[Finding]:
        """Spoken turns that last too long or too short for their words."""
        from ...server.request import CHARACTERS_PER_SECOND

        found: list[Finding] = []
        for clip, words in spoken(conversation):
            seconds = self._clip(clip)[0]
            if seconds is None:
                continue
            said = f"{seconds:.1f} s for {len(words)} characters"
            if len(words) > seconds * CHARACTERS_PER_SECOND:
                found.append(_warning(f"{said}, faster than anybody speaks: {clip}"))
            if seconds > frame_cap(words) / FRAME_RATE:
                found.append(_warning(f"{said}, far slower than anybody speaks: {clip}"))
        return found

    def _sum(self, conversation: Conversation) -> None:
        report = self.report
        report.usable += 1
        report.turns += len(conversation.messages)
        if conversation.speaker is not None:
            report.speakers[conversation.speaker] += 1
        users = [message.text for message in conversation.messages if message.role == "user"]
        report.not_normalized += sum(text != normalize(text) for text in users if text)
        targets = [clip for message in conversation.targets for clip in message.clips]
        lengths = [self._clip(clip)[0] or 0.0 for clip in targets]
        every = sum(self._clip(clip)[0] or 0.0 for clip in conversation.clips)
        report.trained_clips += len(targets)
        report.trained_seconds += sum(lengths)
        report.reference_seconds += every - sum(lengths)
        if every > report.longest_seconds:
            report.longest_seconds, report.longest = every, conversation.source


def spoken(conversation: Conversation) -> list[tuple[Clip, str]]:
    """Each assistant clip that stands alone, and its words: its turn's own, or those before it."""
    found = []
    before: Message | None = None
    for message in conversation.messages:
        words = message.text or (before.text if before and before.role == "user" else "")
        if message.role == "assistant" and len(message.clips) == 1 and words.strip():
            found.append((message.clips[0], words.strip()))
        before = message
    return found
