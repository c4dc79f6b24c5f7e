"""The control tags of Higgs v3: which there are, and where in a text each of them belongs.

Source: Boson's prompting guide for v3. A tag is one token, ``<|category:name|>``. Moods, styles,
speeds and pitches open a sentence; pauses and sounds stand where they are heard, and a sound is
followed at once by how it is spelt: ``<|sfx:cough|>Ahem, as I said.``

A control is the same asked for by name, for a whole text: ``emotion="anger"`` is written before its
first sentence. A sentence with a tag of its own for that control keeps it; the next one without is
told again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches

from ..text import is_blank
from ..types import InputError

OPENING = {  # category -> names of the tags that open a sentence
    "emotion": [
        "elation",
        "amusement",
        "enthusiasm",
        "determination",
        "pride",
        "contentment",
        "affection",
        "relief",
        "contemplation",
        "confusion",
        "surprise",
        "awe",
        "longing",
        "arousal",
        "anger",
        "fear",
        "disgust",
        "bitterness",
        "sadness",
        "shame",
        "helplessness",
    ],
    "style": [
        "singing",
        "shouting",
        "whispering",
    ],
    "prosody": [
        "speed_very_slow",
        "speed_slow",
        "speed_fast",
        "speed_very_fast",
        "pitch_low",
        "pitch_high",
        "expressive_high",
        "expressive_low",
    ],
}
INLINE = {
    "prosody": [
        "pause",
        "long_pause",
    ],
    "sfx": [
        "cough",
        "laughter",
        "crying",
        "screaming",
        "burping",
        "humming",
        "sigh",
        "sniff",
        "sneeze",
    ],
}


def _tags(table: dict[str, list[str]]) -> tuple[str, ...]:
    return tuple(f"<|{category}:{name}|>" for category, names in table.items() for name in names)


OPENING_TAGS, INLINE_TAGS = _tags(OPENING), _tags(INLINE)
TAGS = OPENING_TAGS + INLINE_TAGS
CONTROLS = {  # how a person asks for one -> the tags' beginning
    "emotion": "emotion:",
    "style": "style:",
    "speed": "prosody:speed_",
    "pitch": "prosody:pitch_",
    "expressive": "prosody:expressive_",
}

_TAG = re.compile(r"<\|(\w+:\w*)\|>")
_SOUND = re.compile(r"(<\|sfx:\w+\|>)\s*")
_SENTENCE = re.compile(
    r".*?(?:[.!?…]+[\"'”’)\]]*(?=\s|<\|)|[。！？]+[”’」』）]*|\n|$)\s*", re.DOTALL
)


def tag(control: str, value: str) -> str:
    """The tag of ``emotion="anger"`` or ``speed="very slow"``.

    Raises:
        InputError: there is none; the message lists those there are, near ones first.
    """
    beginning = "<|" + CONTROLS[control]
    name = re.sub(r"[\s-]+", "_", value.strip().lower())
    found = f"{beginning}{name}|>"
    if found not in TAGS:
        known = [
            t.removeprefix(beginning).removesuffix("|>") for t in TAGS if t.startswith(beginning)
        ]
        near = get_close_matches(name, known, n=3, cutoff=0.5)
        raise InputError(
            f"There is no {control} {value!r:.60}: use one of {', '.join(known)}."
            + (f" Near ones: {', '.join(near)}." if near else "")
        )
    return found


def arrange(text: str, controls: Mapping[str, str] | None = None) -> str:
    """``text`` with each tag where the model expects it.

    Args:
        controls: what holds for every sentence that has no tag of its own for it.

    Raises:
        InputError: a tag or a value that there is not (near ones are named), or a sound without its
            spelling.
    """
    wanted = {control: tag(control, value) for control, value in (controls or {}).items()}
    for name in _TAG.findall(text):
        if f"<|{name}|>" not in TAGS:
            near = [
                f"<|{known}|>"
                for known in get_close_matches(name, [tag[2:-2] for tag in TAGS], n=4, cutoff=0.5)
            ]
            raise InputError(
                f"There is no tag <|{name}|>. "
                + (f"Near ones: {' '.join(near)}." if near else f"Tags: {' '.join(TAGS)}.")
            )
    text = _SOUND.sub(r"\1", text)
    for found in _SOUND.finditer(text):
        if not re.match(r"[\"'“‘(\[]?\w", text[found.end() :]):
            raise InputError(
                f"{found[1]} must be followed by how the sound is spelt, as in <|sfx:cough|>Ahem."
            )
    sentences = map(_parted, _sentences(text))
    return "".join(_told(sentences, wanted) if wanted else map("".join, sentences))


def _sentences(text: str) -> Iterator[str]:
    position = 0
    while position < len(text):
        found = _SENTENCE.match(text, position)
        assert found is not None
        end = found.end() if found.end() > position else len(text)
        yield text[position:end]
        position = end


def _parted(sentence: str) -> tuple[str, str]:
    """The opening tags of a sentence, and the sentence without them."""
    opening = [t for t in (f"<|{name}|>" for name in _TAG.findall(sentence)) if t in OPENING_TAGS]
    if not opening:
        return "", sentence
    rest = _TAG.sub(lambda m: "" if m[0] in OPENING_TAGS else m[0], sentence)
    return "".join(opening), re.sub(r" {2,}", " ", rest).lstrip(" ")


def _told(sentences: Iterable[tuple[str, str]], wanted: Mapping[str, str]) -> Iterator[str]:
    """Sentences, each with those of the ``wanted`` tags that do not hold already when it begins."""
    held: dict[str, str] = {}
    written = ""  # tags of the text, from where it last had a word
    for opening, rest in sentences:
        written += opening
        if is_blank(rest):
            yield opening + rest
            continue
        own = {control for control in wanted if "<|" + CONTROLS[control] in written}
        told = [t for control, t in wanted.items() if control not in own and held.get(control) != t]
        held, written = {c: t for c, t in wanted.items() if c not in own}, ""
        yield "".join(told) + opening + (rest.lstrip(" ") if told else rest)
