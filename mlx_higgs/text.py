"""Text before it becomes a prompt: normalisation, speaker tags, and how long it may last."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from .types import InputError

# Full-width marks and curly quotes -> what the model was trained on.
_PUNCTUATION = str.maketrans(
    {
        "，": ", ",
        "、": ",",
        "。": ".",
        "·": ".",
        "…": "...",
        "：": ":",
        "；": ";",
        "？": "?",
        "！": "!",
        "—": "-",
        "【": "[",
        "】": "]",
        "《": "<",
        "》": ">",
        "‘": "'",
        "’": "'",
        **dict.fromkeys("“”「」『』", '"'),
        **dict.fromkeys("()（）", " "),  # brackets are not read out
    }
)

# In this order: a phrase a person writes -> what the model reads.
_PHRASES = {
    "°F": " degrees Fahrenheit",
    "°C": " degrees Celsius",
    "[laugh]": "<SE>[Laughter]</SE>",
    "[humming start]": "<SE_s>[Humming]</SE_s>",
    "[humming end]": "<SE_e>[Humming]</SE_e>",
    "[music start]": "<SE_s>[Music]</SE_s>",
    "[music end]": "<SE_e>[Music]</SE_e>",
    "[music]": "<SE>[Music]</SE>",
    "[sing start]": "<SE_s>[Singing]</SE_s>",
    "[sing end]": "<SE_e>[Singing]</SE_e>",
    "[applause]": "<SE>[Applause]</SE>",
    "[cheering]": "<SE>[Cheering]</SE>",
    "[cough]": "<SE>[Cough]</SE>",
}

_ENDINGS = (".", "!", "?", ",", ";", '"', "'", "</SE_e>", "</SE>")

_SPEAKER = re.compile(r"\[(SPEAKER\d+)\]")
_CONTROL = re.compile(r"<\|\w+:\w+\|> *")
_SOUND = re.compile(r"\[(?!SPEAKER\d+\])[^\[\]\n]+\]")

# Frames (1/25 s) allowed for one character: about twice the slowest natural speech.
_FRAMES_PER_LETTER = 6
_FRAMES_PER_WORD = 20  # a character that is read as a syllable or a word of its own
_FRAMES_PER_SOUND = 100
_FRAMES_TO_START = 100


def read_text(path: Path) -> str:
    """A UTF-8 text file, with or without a byte order mark.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"The text {path} cannot be read ({error.strerror}).") from error


def decode(data: bytes, name: str) -> str:
    """UTF-8 bytes as text; ``name`` says whose, in the error."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"The text {name} is not UTF-8 ({error}).") from error


def normalize(text: str) -> str:
    """What the model reads for ``text``: plain punctuation, sound tags, no blank lines, an ending.

    The same result as the normalisation in ``examples/generation.py`` of Boson's repository.
    Numbers are not spelled out. A blank text becomes ``"."``; ask :func:`is_blank` first.
    """
    text = text.translate(_PUNCTUATION)
    for phrase, reading in _PHRASES.items():
        text = text.replace(phrase, reading)
    lines = (" ".join(line.split()) for line in text.split("\n"))
    text = "\n".join(line for line in lines if line)
    return text if text.endswith(_ENDINGS) else text + "."


def speaker_tags(text: str) -> list[str]:
    """The speakers ``text`` names, each once: ``"[SPEAKER1] Hi"`` -> ``["SPEAKER1"]``.

    Sorted as strings, as the reference does, so SPEAKER10 comes before SPEAKER2.
    """
    return sorted(set(_SPEAKER.findall(text)))


def is_blank(text: str) -> bool:
    """True if ``text`` holds nothing to say: no letter and no digit outside its tags.

    Those are ``[SPEAKER0]`` and ``<|emotion:awe|>``, of whatever names.
    """
    return not any(char.isalnum() for char in _SPEAKER.sub("", _CONTROL.sub("", text)))


def without_controls(text: str) -> str:
    """A text as it is read by people: without its control tags (``<|style:singing|>``)."""
    return _CONTROL.sub("", text).strip()


def frame_cap(text: str) -> int:
    """The most frames (25 per second) a reading of ``text`` may take before it counts as runaway.

    About twice the slowest natural speech. Per character: 6 frames, but 20 where one character is
    a syllable or a word (CJK, Kana, Hangul, digits, symbols such as ``%``, and capitals, which may
    be spelled out). 100 more for each ``[sound]`` tag, and 100 for pauses around a short text.
    """
    spoken = _SPEAKER.sub("", text)
    sounds = len(_SOUND.findall(spoken))
    return _FRAMES_TO_START + _FRAMES_PER_SOUND * sounds + sum(map(_frames, spoken))


def _frames(char: str) -> int:
    """Frames allowed for one character."""
    # Lo: scripts without cases, where a letter is a syllable or a word. Lu: may be spelled out.
    wordy = unicodedata.category(char) in {"Lo", "Lu", "Lt", "Nd", "Nl", "No", "Sc", "Sm", "So"}
    return _FRAMES_PER_WORD if wordy else _FRAMES_PER_LETTER
