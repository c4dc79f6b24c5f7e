"""Pieces on a shelf -> one sound file: gaps, fades, one loudness per voice, and who spoke when.

The samples are read piece by piece, so that a book of hours needs no more memory than a page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import audio
from ..joints import faded
from ..loudness import gain, loudness_of, true_peak
from ..pieces import Piece
from ..text import without_controls
from ..types import SAMPLE_RATE, InputError
from .shelf import Kept, Shelf
from .subtitles import Cue

CHAPTER = 1.5  # seconds of silence more between the chapters of one file
PEAK_DB = -1.0  # dBTP
WAV_BYTES = 2**32 - 2**16  # its sizes have 32 bits


class Part(NamedTuple):
    """A piece that was made."""

    piece: Piece
    key: str
    kept: Kept


class Place(NamedTuple):
    """Where a part is in its file: samples ``[start, stop)``."""

    part: Part
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """What is heard when in one file.

    Attributes:
        samples: of the whole.
    """

    places: list[Place]
    samples: int
    rate: int

    @property
    def cues(self) -> list[Cue]:
        """A subtitle for each piece that can be heard."""
        return [
            Cue(
                start / self.rate,
                stop / self.rate,
                without_controls(part.piece.text),
                part.piece.speaker,
            )
            for part, start, stop in self.places
            if stop > start
        ]

    def chapters(self) -> dict[int, tuple[int, int]]:
        """Chapter -> samples from its first word to its last."""
        found: dict[int, tuple[int, int]] = {}
        for part, start, stop in self.places:
            begin, _ = found.get(part.piece.chapter, (start, stop))
            found[part.piece.chapter] = (begin, stop)
        return found


def arrange(parts: Sequence[Part], gap_ms: float, tail: float = 0.0) -> Layout:
    """Put pieces one after the other. A file begins with its first piece's pause, without a gap.

    Args:
        tail: seconds of silence at the end.
    """
    rate = next((part.kept.sampling_rate for part in parts if part.kept.samples), SAMPLE_RATE)
    places: list[Place] = []
    at, chapter = 0, parts[0].piece.chapter
    for index, part in enumerate(parts):
        silence = part.piece.pause + (gap_ms / 1000 if index else 0.0)
        silence += CHAPTER if part.piece.chapter != chapter else 0.0
        start = at + round(silence * rate)
        at, chapter = start + part.kept.samples, part.piece.chapter
        places.append(Place(part, start, at))
    return Layout(places, at + round(tail * rate), rate)


def bind(
    path: Path, layout: Layout, shelf: Shelf, *, fade_ms: float, loudness: float | None
) -> None:
    """Write the file; it appears whole or not at all.

    Args:
        loudness: what every voice is brought to, in LUFS, where its peaks allow; None leaves it.

    Raises:
        InputError: a .wav of more than 4 GB. OSError: a full disk, a damaged piece.
    """
    if path.suffix.lower() == ".wav" and layout.samples * 2 > WAV_BYTES:
        hours = layout.samples / layout.rate / 3600
        raise InputError(
            f"{hours:.0f} hours do not fit into the .wav {path}. Run the same command again with "
            f"-o {path.stem}.mp3, .opus or .flac: it takes the pieces that are made."
        )
    gains = {} if loudness is None else _gains(layout, shelf, loudness)
    audio.write_blocks(path, _blocks(layout, shelf, fade_ms, gains), layout.rate)


def _gains(layout: Layout, shelf: Shelf, loudness: float) -> dict[str, float]:
    """Speaker -> the one factor of all that is said in that voice, its highest peak allowing.

    What went wrong counts for the loudness if all did, and always for the peak.
    """
    speakers = dict.fromkeys(place.part.piece.speaker for place in layout.places)
    gains = {}
    for speaker in speakers:
        theirs = [p.part for p in layout.places if p.part.piece.speaker == speaker]
        good = [part for part in theirs if part.kept.good]
        waves = (shelf.wave(part.key) for part in good or theirs if part.kept.samples)
        level = loudness_of(waves, layout.rate)
        heard = (shelf.wave(part.key) for part in theirs if part.kept.samples)
        peak = max((true_peak(wave, layout.rate) for wave in heard), default=0.0)
        gains[speaker] = gain(level, peak, loudness, PEAK_DB)
    return gains


def _blocks(
    layout: Layout, shelf: Shelf, fade_ms: float, gains: dict[str, float]
) -> Iterator[np.ndarray]:
    fade, at = round(fade_ms / 1000 * layout.rate), 0
    for part, start, stop in layout.places:
        yield from _silence(start - at, layout.rate)
        at = stop
        if part.kept.samples:
            wave = shelf.wave(part.key)
            wave *= np.float32(gains.get(part.piece.speaker, 1.0))
            yield faded(wave, fade, fade)
    yield from _silence(layout.samples - at, layout.rate)


def _silence(samples: int, rate: int) -> Iterator[np.ndarray]:
    while samples > 0:
        yield np.zeros(min(samples, rate), np.float32)
        samples -= rate
