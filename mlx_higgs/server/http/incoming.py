"""Text that arrives in arbitrary pieces -> sentences or clauses, once their end is certain.

What is certain depends on the text alone and never on how it was cut: a mark ends a sentence by
what stands before it in the sentence and by the next character that is no space.
``sentences.split`` knows more languages, but needs the whole.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from ...text import is_blank
from ...types import InputError

Granularity = Literal["none", "sentence", "clause"]
LONGEST = 600  # characters of a unit whose text has no marks: some 40 s of speech
SHORTEST_CLAUSE = 24  # characters: a shorter one goes with the next
WIDE = "。！？｡।॥"  # end a sentence without a space behind them
CLOSERS = "\"'”’»」』)）】》\\]"
ENDS = {
    "sentence": re.compile(rf"\n[ \t\r]*\n|[.!?…؟۔{WIDE}]+[{CLOSERS}]*"),
    "clause": re.compile(rf"\n[ \t\r]*\n|[.!?…؟۔{WIDE},;:—،؛、，；：]+[{CLOSERS}]*"),
}
WIDE_CLAUSE = WIDE + "、，；：—"
INNER = ",;:—،؛、，；："
ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'“‘])(?:[A-Z]|(?:[A-Za-z]\.)+[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Gen|Col|Lt|Sgt|"
    r"Capt|Rev|Hon|Mt|vs|Fig|approx|Nr|Hr|Fr|Mme|Sra|bzw|ca|cf)\.$"
)
NUMBERED = re.compile(r"(?:^|\n)\s*\d{1,3}\.$")  # "1. First"
NUMBER = re.compile(r"\b[Nn]o\.$")  # "No. 5"


class Incoming:
    """The units of a text that is still arriving. ``none`` keeps all until ``flush``.

    Raises:
        InputError: an unknown granularity.
    """

    def __init__(self, granularity: str = "none"):
        if granularity not in get_args(Granularity):
            known = ", ".join(get_args(Granularity))
            raise InputError(f"split_granularity is {granularity!r:.40}: use one of {known}.")
        self._granularity, self._text = granularity, ""

    def __len__(self) -> int:
        """Characters that wait."""
        return len(self._text)

    def feed(self, text: str) -> list[str]:
        """What is complete with ``text``; none is blank."""
        self._text += text
        return [] if self._granularity == "none" else self._units(final=False)

    def flush(self) -> list[str]:
        """All the rest."""
        if self._granularity == "none":
            text, self._text = self._text.strip(), ""
            return [] if is_blank(text) else [text]
        return self._units(final=True)

    def _units(self, *, final: bool) -> list[str]:
        found: list[str] = []
        while (end := self._end(final)) is not None:
            unit, self._text = self._text[:end].strip(), self._text[end:]
            if not is_blank(unit):
                found.append(unit)
        return found

    def _end(self, final: bool) -> int | None:
        """Where the first unit ends; None while that is open."""
        if not self._text:
            return None
        window = self._text[: LONGEST + 1]
        full = len(window) > LONGEST
        for match in ENDS[self._granularity].finditer(window):
            verdict = _ends(window, match)
            if verdict is None and not (full or final):
                return None
            if verdict is not False:
                return match.end()
        if full:
            space = max(window.rfind(" "), window.rfind("\n"))
            return space + 1 or LONGEST
        return len(window) if final else None


def _ends(text: str, match: re.Match[str]) -> bool | None:
    """Whether a mark ends the unit that begins with ``text``; None: what follows is not there."""
    before = text[: match.end()]
    if is_blank(before):
        return False
    marks = match.group()
    rest = text[match.end() :].lstrip()
    if not rest:
        return None
    if marks[0] == "\n":
        return True
    inner = all(mark in INNER for mark in marks.rstrip(CLOSERS))
    if inner and len(before.strip()) < SHORTEST_CLAUSE:
        return False
    if any(mark in WIDE_CLAUSE for mark in marks):
        return True
    if not text[match.end()].isspace():
        return False
    if inner:
        return True
    if rest[0].islower() or (rest[0].isdigit() and NUMBER.search(before)):
        return False
    return not (ABBREVIATION.search(before) or NUMBERED.search(before))
