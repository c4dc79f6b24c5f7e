"""Progress bars on standard error: a frame at a time for one text, a job at a time for many."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from .types import FRAME_RATE

if TYPE_CHECKING:
    from tqdm import tqdm


@dataclass
class FrameBar:
    """A bar per frame: seconds made, speed, and an ETA guessed from the text's length."""

    text: str
    lag: int  # rows that hold no whole frame
    CHARACTERS_PER_SECOND = 14.0  # of calm English speech

    def __enter__(self) -> FrameBar:
        from tqdm import tqdm

        seconds = 1.0 + len(self.text) / self.CHARACTERS_PER_SECOND
        self._bar: tqdm = tqdm(
            total=round(seconds * FRAME_RATE),
            unit="frame",
            bar_format="{desc} |{bar}| {rate_fmt} ETA {remaining}",
            desc="0.0 s made",
        )
        return self

    def show(self, rows: int) -> None:
        seconds, spent = max(0, rows - self.lag) / FRAME_RATE, self._bar.format_dict["elapsed"]
        self._bar.total = max(self._bar.total, rows)
        speed = f", real-time factor {spent / seconds:.2f}" if seconds else ""
        self._bar.set_description_str(f"{seconds:.1f} s made{speed}", refresh=False)
        self._bar.update()

    def __exit__(self, *exc: object) -> None:
        self._bar.total = self._bar.n
        self._bar.refresh()
        self._bar.close()


@dataclass
class JobBar:
    """One bar over all jobs: seconds of speech made, and how fast."""

    done: int
    total: int
    seconds: float = 0.0  # of speech

    def __enter__(self) -> JobBar:
        from tqdm import tqdm

        self._bar: tqdm = tqdm(
            total=self.total,
            initial=self.done,
            bar_format="{n_fmt} of {total_fmt} |{bar}| {desc} ETA {remaining}",
            desc="0.0 s made",
        )
        return self

    def advance(self, seconds: float) -> None:
        """One job more, with so many seconds of speech."""
        self.seconds += seconds
        spent = self._bar.format_dict["elapsed"]
        speed = f", real-time factor {spent / self.seconds:.2f}" if self.seconds else ""
        self._bar.set_description_str(f"{self.seconds:.1f} s made{speed}", refresh=False)
        self._bar.update()

    def say(self, line: str, file: TextIO | None = None) -> None:
        """A line above the bar, on standard error unless told otherwise."""
        stream = sys.stderr if file is None else file
        self._bar.write(line, file=stream)
        stream.flush()

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
