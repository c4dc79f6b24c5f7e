"""Dialogue scripts: who says what, one generation a turn.

``[Alice] Hello.`` at the start of a line begins Alice's turn, which lasts until the next one; what
comes before the first is the narrator's. ``[pause:1.5s]`` is silence, ``# …`` a comment.
docs/dialogue.md has every rule.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ..pieces import Piece
from ..text import is_blank, normalize, speaker_tags
from ..types import InputError

MAX_PAUSE = 60.0  # seconds
BEAT = 1.0  # seconds: a [pause] that does not say how long
MAX_NAME = 64  # characters
NARRATOR = "narrator"  # [Narrator], in any capitals, gives the word back

_LINE_END = re.compile(r"\r\n|\r|\n")  # as editors count lines
_TAG = re.compile(r"\[([^\[\]]*)\]")
_PREFIX = re.compile(r"([^\[\]:：]{1,64}?)\s*(?:：|:(?=\s|$))\s*")  # Alice: Hello
_LINK = re.compile(r"\[[^\[\]]*\](?:\(|: ?(?:<|#|\S+/\S*$))")  # of Markdown
_NAME = re.compile(r"\w[\w .'’·\u200c\u200d-]*")
_PAUSE = re.compile(r"pause(?![^\W\d_])", re.IGNORECASE)  # not [Pauline]; [pause 2s] is one, wrong
_LENGTH = re.compile(r"pause(?:\s*:\s*(\d{1,9}(?:\.\d{1,9})?)\s*(m?s))?", re.I | re.A)
_CLOSING = re.compile(r"[\s.,;:!?…)\]。，、！？；：」』”’]+")  # ends what came before
_WIDE = re.compile(r"[\u2e80-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uff60]")  # has no spaces
_UNSEEN = dict.fromkeys([0xFEFF, 0x200B, 0x00AD])  # byte order mark, break marks
_BRACKETS = str.maketrans("【】", "[]")  # as text.normalize reads them


@dataclass(frozen=True)
class Script:
    """A dialogue.

    Attributes:
        pieces: as they follow each other; a turn with a pause inside has several.
        names: who speaks beside the narrator, in the order of their first turns.
        tail: seconds of silence after the last piece.
    """

    pieces: list[Piece]
    names: list[str]
    tail: float = 0.0


def parse(text: str, names: Iterable[str] = ()) -> Script:
    """Read a script.

    Args:
        names: who is known to speak, as a cast has them. ``Alice: Hello`` is then her turn as well,
            and ``[alice]`` another spelling of her name.

    Raises:
        InputError: with its number, the line of a turn without words, a pause that is none or is
            too long, a name that cannot be one, a control character; or nothing to say at all.
    """
    lines = list(_lines(text))
    known = {_key(name): _tidy(name) for name in names}
    turns = _tagged(lines)
    for name in turns or ([] if known else _prefixed(lines)):
        known.setdefault(_key(name), name)
    reader = _Reader()
    for line in lines:
        if not line.text:
            reader.new_paragraph()
        for event in _events(line, known):
            reader.take(event, line.number)
    return reader.finish()


def is_script(text: str) -> bool:
    """Whether ``text`` has turns: a line that begins with ``[Alice]``, or ``Alice:`` before all."""
    try:
        lines = list(_lines(text))
        return bool(_tagged(lines) or _prefixed(lines))
    except InputError:
        return False


def begins_as_script(text: str) -> bool:
    """Whether it is one beyond doubt: it begins with a turn in brackets, and has two or more.

    ``[words](address)`` is a link, and ``[Illustration]`` on its own no turn.
    """
    if not text.lstrip("\ufeff \t\r\n").startswith("["):
        return False
    try:
        lines = list(_lines(text))
        tagged = [line for line in lines if not _LINK.match(line.text)]
        names = _tagged(tagged)
    except InputError:
        return False
    first = next(at for at, line in enumerate(lines) if line.text)
    said = _TAG.sub("", " ".join(line.text for line in lines[first : first + 2]))
    return len(names) > 1 and not _LINK.match(lines[first].text) and bool(said.strip(" :："))


# -- lines ----------------------------------------------------------------------------------------


class _Line(NamedTuple):
    number: int  # from 1
    text: str  # "" where it is blank
    literal: bool  # its first bracket is no tag


def _lines(text: str) -> Iterator[_Line]:
    """The lines that are no comments, their white space single."""
    for number, raw in enumerate(_LINE_END.split(text), start=1):
        line = " ".join(raw.translate(_UNSEEN).translate(_BRACKETS).split())
        for char in line:
            if unicodedata.category(char) in {"Cc", "Cs"}:
                raise _fault(number, f"holds the control character U+{ord(char):04X}: remove it")
        if not line.startswith("#"):
            literal = line.startswith((r"\[", r"\#"))
            yield _Line(number, line[literal:], literal)


def _tagged(lines: Iterable[_Line]) -> list[str]:
    """The names in brackets that begin a line, pauses aside."""
    names = []
    for line in lines:
        rest = "" if line.literal else line.text
        while (tag := _TAG.match(rest)) and _pause(tag[1], line.number) is not None:
            rest = rest[tag.end() :].lstrip()
        if tag and not _sound(tag[1]):
            names.append(_name(tag[1], line.number))
        elif rest.startswith("[") and not tag:
            raise _fault(line.number, r"begins with a [ that is not closed (write \[ to say it)")
    return names


def _prefixed(lines: Iterable[_Line]) -> list[str]:
    """The names when two lines or more say something and each begins with ``Alice:``."""
    names = []
    for line in lines:
        said = _TAG.sub("", line.text).strip()  # a pause or a sound may stand alone
        if not said:
            continue
        prefix = _PREFIX.match(line.text)
        if not prefix or not _is_name(prefix[1]) or len(prefix[1].split()) > 3:
            return []
        names.append(_tidy(prefix[1]))
    return names if len(names) > 1 else []


# -- what a line says -----------------------------------------------------------------------------


class _Turn(NamedTuple):
    speaker: str  # "" is the narrator


Event = _Turn | float | str  # who speaks now, a pause in seconds, words


def _events(line: _Line, known: dict[str, str]) -> Iterator[Event]:
    text, start, begins = line.text, 0, not line.literal
    prefix = _PREFIX.match(text)
    if begins and prefix and _key(prefix[1]) in known:
        yield _turn(known[_key(prefix[1])])
        start, begins = prefix.end(), False
    said = start
    for tag in _TAG.finditer(text, start):
        begins = begins and not text[said : tag.start()].strip()
        if _sound(tag[1]):
            yield text[said : tag.start()] + _sound(tag[1])
            begins = False
        elif (pause := _pause(tag[1], line.number)) is not None:
            yield text[said : tag.start()]
            yield pause
        elif begins or _key(tag[1]) in known or speaker_tags(tag[0]):
            yield text[said : tag.start()]
            name = _name(tag[1], line.number)
            yield _turn(known.get(_key(name), name))
            begins = False
        else:
            continue
        said = tag.end()
    yield text[said:]


def _turn(name: str) -> _Turn:
    return _Turn("" if _key(name) == NARRATOR else name)


def _sound(tag: str) -> str:
    """A sound as the model's texts spell it, ``[laugh]``; "" for anything else."""
    sound = f"[{_key(tag)}]"
    return sound if normalize(sound).startswith("<SE") else ""


def _pause(tag: str, number: int) -> float | None:
    """Seconds; None for what is no pause."""
    tag = tag.strip()
    if not _PAUSE.match(tag):
        return None
    length = _LENGTH.fullmatch(tag)
    if not length:
        raise _fault(number, f"[{_short(tag)}] is no pause: write [pause:1.5s] or [pause:500ms]")
    if length[1] is None:
        return BEAT
    seconds = float(length[1]) / (1000 if length[2].lower() == "ms" else 1)
    if seconds > MAX_PAUSE:
        raise _fault(number, f"[{_short(tag)}] is too long: a pause lasts 0 to {MAX_PAUSE:.0f} s")
    return seconds


def _name(tag: str, number: int) -> str:
    """Raises InputError for what cannot be one."""
    if not _is_name(tag):
        raise _fault(
            number,
            f"[{_short(tag)}] is neither a sound nor a name: a name is at most {MAX_NAME} letters, "
            r"digits, spaces and _ - ' . (to say the bracket, begin the line with \[)",
        )
    return _tidy(tag)


def _is_name(text: str) -> bool:
    name = _tidy(text)
    marks = {"Mn", "Mc"}  # the vowel signs of Hindi and Thai are no \\w for Python
    plain = "".join(char for char in name if unicodedata.category(char) not in marks)
    return len(name) <= MAX_NAME and bool(_NAME.fullmatch(plain))


def _tidy(name: str) -> str:
    return unicodedata.normalize("NFC", " ".join(name.split()))


def _key(name: str) -> str:
    """What two spellings of one name have in common."""
    return _tidy(name).casefold()


# -- turns to pieces ------------------------------------------------------------------------------


class _Reader:
    """Takes events, keeps the turn that is open."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.names: dict[str, None] = {}
        self._speaker, self._line, self._named = "", 1, False
        self._parts: list[tuple[float, str]] = []  # pause, then words
        self._pause, self._text, self._break = 0.0, "", False

    def take(self, event: Event, number: int) -> None:
        if isinstance(event, _Turn):
            self._end_turn()
            self._speaker, self._line, self._named = event.speaker, number, True
            if event.speaker:
                self.names[event.speaker] = None
        elif not isinstance(event, str):
            self._end_part()
            self._pause += event
            if self._pause > MAX_PAUSE:
                raise _fault(number, f"the pauses in a row last more than {MAX_PAUSE:.0f} s")
        elif event := self._words(event):
            self._line = self._line if self._text or self._parts or self._named else number
            self._text = _joined(self._text, event, paragraph=self._break)
            self._break = False

    def _words(self, text: str) -> str:
        """Without the colon of ``[Alice]: Hello``."""
        fresh = self._named and not self._text and not self._parts
        return text.strip().lstrip(":：").strip() if fresh else text.strip()

    def new_paragraph(self) -> None:
        self._break = bool(self._text)

    def finish(self) -> Script:
        self._end_turn()
        if not self.pieces:
            raise InputError("The script holds nothing to say.")
        return Script(self.pieces, list(self.names), self._pause)

    def _end_part(self) -> None:
        """What is said up to a pause; lone punctuation goes with the words before or after it."""
        text, self._text, self._break = self._text, "", False
        if not text:
            return
        if self._parts and (marks := _CLOSING.match(text)):
            self._extend(marks[0].strip())
            text = text[marks.end() :]
        if not text or (is_blank(text) and self._parts):
            self._extend(text)
        elif is_blank(text):
            self._text = text
        else:
            self._parts.append((self._pause, text))
            self._pause = 0.0

    def _extend(self, marks: str) -> None:
        pause, text = self._parts[-1]
        self._parts[-1] = pause, text + marks

    def _end_turn(self) -> None:
        self._end_part()
        if not self._parts and (self._named or self._text):
            whose = f"[{self._speaker or 'Narrator'}] has" if self._named else "there is"
            raise _fault(self._line, f"{whose} nothing to say: write words, or remove the turn")
        self.pieces += [Piece(text, self._speaker, pause) for pause, text in self._parts]
        self._parts = []


def _joined(before: str, after: str, *, paragraph: bool) -> str:
    """Two lines of one turn: a space between them, where the script of the words has spaces."""
    if paragraph:
        return f"{before}\n\n{after}"
    no_space = before and _WIDE.match(before[-1]) and _WIDE.match(after[0])
    return before + ("" if no_space or not before else " ") + after


def _short(tag: str) -> str:
    return tag if len(tag) <= MAX_NAME else tag[:MAX_NAME] + "…"


def _fault(number: int, what: str) -> InputError:
    return InputError(f"Line {number}: {what}.")
