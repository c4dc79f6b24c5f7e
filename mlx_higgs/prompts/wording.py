"""The ids of an answer -> its words, as soon as they are certain."""

from __future__ import annotations

from .tokenizer import PromptTokenizer

RECIPIENT = "<|recipient|>"
HEADER, HEADER_END = "<|start_header_id|>", "<|end_header_id|>"
SHOWN = ("<SE>", "</SE>", "<SE_s>", "</SE_s>", "<SE_e>", "</SE_e>")  # sounds, heard and written
HALF = "\ufffd"  # what half a character is decoded to
LONGEST_CHARACTER = 4  # tokens
LONGEST_NAME = 40  # characters of a recipient's


class Wording:
    """Reads the ids of one answer. Control tokens are no words, but for those of sounds.

    The first word of a turn is held back until what follows tells that it is not whom the turn
    is for (``NAME<|recipient|>``).

    Args:
        fresh: a turn begins, which may name its recipient.

    Attributes:
        recipient: whom the answer is for; None where it does not say so.
    """

    def __init__(self, tokens: PromptTokenizer, *, fresh: bool = True):
        self._tokens = tokens
        self._pending: list[int] = []  # of a character that is not whole
        self._before: list[int] = []  # what went out last: some tokenizers part words by it
        self._held: str | None = "" if fresh else None
        self._in_header = False
        self.recipient: str | None = None

    def push(self, token: int) -> str:
        """The words that are certain with one id more."""
        control = self._tokens.control(token)
        if control is None or control in SHOWN:
            said = self._ended_character() if control else ""
            return "" if self._in_header else self._kept(said + (control or self._decoded(token)))
        if control == RECIPIENT and self._held is not None:
            name = (self._held + self._ended_character()).strip()
            self.recipient, self._held = name or None, None
            return ""
        said = self.flush()
        if control == HEADER:
            self._in_header = True
        elif control == HEADER_END:
            self._in_header, self._held = False, ""
        return said

    def flush(self) -> str:
        """All that was held back: something else than words comes."""
        said = (self._held or "") + self._ended_character()
        self._held = None
        return said

    def _decoded(self, token: int) -> str:
        self._pending.append(token)
        text = self._tail()
        if text.endswith(HALF) and len(self._pending) < LONGEST_CHARACTER:
            return ""
        self._before, self._pending = self._pending, []
        return text

    def _ended_character(self) -> str:
        text = self._tail() if self._pending else ""
        self._before, self._pending = [], []
        return text

    def _tail(self) -> str:
        """What the pending ids add to those before."""
        before = self._tokens.decode(self._before)
        return self._tokens.decode([*self._before, *self._pending]).removeprefix(before)

    def _kept(self, text: str) -> str:
        """What may go out of some words more."""
        if self._held is None:
            return text
        held = (self._held + text).lstrip("\n")  # a header of its own ends with a blank line
        if len(held) <= LONGEST_NAME and not any(char.isspace() for char in held):
            self._held = held
            return ""
        self._held = None
        return held
