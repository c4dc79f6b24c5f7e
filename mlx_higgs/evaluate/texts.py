"""What is spoken, and what it is compared with: texts, and recordings with transcripts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import audio
from ..text import read_text
from ..types import SAMPLE_RATE, InputError
from ..voices import clips_in, reference
from .words import spoken_words

NUMBER = re.compile(r"_\d+$")

# Said when there is neither a file nor a checkpoint's vocabulary: sentences of common words.
SENTENCES = (
    "The small boat crossed the lake before the storm came in.",
    "Please leave your coat and your wet shoes by the door.",
    "My sister works in a quiet shop on the corner of the street.",
    "We waited for an hour, but the last bus never arrived.",
    "He bought fresh bread, some cheese and a bag of apples.",
    "The children played in the garden until it was dark.",
    "Can you tell me the way to the nearest station?",
    "A cold wind was blowing down from the mountains.",
    "She wrote a long letter to an old friend in the city.",
    "Most people in the village know each other by name.",
    "The doctor asked him to rest for the whole week.",
    "It took them three days to paint the front of the house.",
    "I would rather walk than drive on such a fine morning.",
    "The teacher opened the window and let the bird fly out.",
    "There was nothing left on the table but a broken cup.",
    "Every summer they travel to the coast for a month.",
    "Turn left at the bridge and follow the river south.",
    "Nobody could remember who had planted the tree.",
    "The price of milk went up again at the end of the year.",
    "He closed the book, turned off the light and fell asleep.",
)


def read_texts(path: Path) -> list[str]:
    """One text a line; blank lines and lines that begin with ``#`` are skipped.

    Raises:
        InputError: unreadable, none there, or one without a word.
    """
    lines = [line.strip() for line in read_text(path).splitlines()]
    texts = [line for line in lines if line and not line.startswith("#")]
    if not texts:
        raise InputError(f"There is no text in {path}.")
    for text in texts:
        if not spoken_words(text):
            raise InputError(f"{path}: the line {text[:60]!r} has no word that could be counted.")
    return texts


@dataclass(frozen=True)
class Recording:
    """A clip and its words; ``voice`` is its name without the number: slt_12.wav is of slt."""

    path: Path
    text: str
    voice: str

    def read(self, rate: int = SAMPLE_RATE) -> np.ndarray:
        """Its samples, mono float32 ``[N]`` at ``rate`` Hz."""
        return audio.read_reference(self.path, rate)


def read_recordings(folder: Path) -> list[Recording]:
    """``NAME.wav`` with ``NAME.txt`` (or another sound file), in the order of their names.

    Raises:
        InputError: no folder, no sound file in it, or one without its transcript.
    """
    return [recording(clip) for clip in clips_in(folder)]


def recording(clip: Path, transcript: str | None = None) -> Recording:
    """One clip with its words, read from ``CLIP.txt`` when not given.

    Raises:
        InputError: no clip, no transcript, or no word in it.
    """
    found = reference(clip, transcript)
    if not spoken_words(found.transcript):
        raise InputError(f"The transcript of {clip} has no word that could be counted.")
    return Recording(clip, found.transcript, NUMBER.sub("", clip.stem))
