"""How a stream is cut into chunks, and which frames are decoded for which; all counted in frames.

One generation is handed from the talker to the codec in payloads (T = 100, first 1, chunk 25,
left 25, right 4; the last frames come with the end of the stream)::

    frames     0 1          26         51         76        100
    sent       [0)[  1..25  )[ 26..50  )[ 51..75  )[ 76..99  )
    decoded    [0..4]
               [0 ..............29]                             left 1, all there is
               [   1 ......................54]                  left 25, right 4
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, get_args

from .types import FRAME_RATE, InputError

Latency = Literal["exact", "low"]
ALL = 2**31 - 1  # frames: nobody speaks for so long
MAX_WINDOW = 250  # frames: a window is decoded in one piece, of 2 MB a frame


@dataclass(frozen=True)
class Delivery:
    """The chunks of a stream: a small one first, so that it begins early, then larger ones.

    With ``left`` and ``right`` None, the chunks joined are bit for bit the whole decode.

    Args:
        first: frames in the first chunk, at most ``largest``.
        chunk: frames in the second, at most ``largest``; each later one is twice as long, up to
            ``largest``.
        left: frames decoded once more before each chunk, by a decoder that remembers nothing;
            None: a decoder that remembers what it needs.
        right: frames beyond a chunk that it waits for. None: all that its samples depend on. Fewer
            make them approximate: those of every chunk where ``left`` is given, else those of the
            first alone.

    Raises:
        InputError: a number out of its bounds.
    """

    first: int = 5
    chunk: int = 25
    largest: int = 50
    left: int | None = None
    right: int | None = None

    def __post_init__(self):
        most = ALL if self.left is None else MAX_WINDOW
        self._check("largest", 1, most)
        self._check("chunk", 1, self.largest)
        self._check("first", 1, self.largest)
        for name in ("left", "right"):
            if getattr(self, name) is not None:
                self._check(name, 0, MAX_WINDOW)
        if self.whole and not self.exact:
            raise InputError("A delivery of all at once has no left or right: leave them out.")

    def _check(self, name: str, least: int, most: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or not least <= value <= most:
            others = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if f.name != name]
            raise InputError(
                f"{name} is {value!r}: it must be a whole number of frames from {least} to {most} "
                f"(with {', '.join(others)})."
            )

    @property
    def exact(self) -> bool:
        """Whether the chunks joined are bit for bit the whole decode."""
        return self.left is None and self.right is None

    @property
    def whole(self) -> bool:
        """Whether everything is sent at once, at the end."""
        return self.first == ALL

    def sizes(self) -> Iterator[int]:
        """Frames in one chunk after the other, without end."""
        yield self.first
        size = self.chunk
        while True:
            yield size
            size = min(2 * size, self.largest)


EXACT = Delivery(5, 5, 50)  # played without a pause up to a real-time factor of 0.5
STEADY = Delivery(25, 25, 25)
WHOLE = Delivery(ALL, ALL, ALL)  # one chunk
LOW = Delivery(4, 2, 50, right=4)  # approximate: seven rows earlier than EXACT, as smooth


def choose(
    latency: Latency = "exact", chunk_ms: float | None = None, delivery: Delivery | None = None
) -> Delivery:
    """A delivery by name, by the length of its chunks in milliseconds, or as it is given.

    Raises:
        InputError: an unknown name, a length that is none, more than one of the three.
    """
    if latency not in get_args(Latency):
        raise InputError(f"latency is {latency!r}: it must be exact or low.")
    if (latency != "exact") + (chunk_ms is not None) + (delivery is not None) > 1:
        raise InputError(
            "A stream has one of latency, chunk_ms and delivery: leave out the others."
        )
    if delivery is not None:
        return delivery
    if chunk_ms is None:
        return LOW if latency == "low" else EXACT
    if not 0 < chunk_ms < math.inf:
        raise InputError(f"chunk_ms is {chunk_ms}: it must be above 0 and finite.")
    size = min(max(1, round(chunk_ms / 1000 * FRAME_RATE)), ALL)
    return Delivery(size, size, size)


class Payload(NamedTuple):
    """Frames ``[start, stop)`` are sent; ``left`` before and ``right`` after them are context."""

    start: int
    stop: int
    left: int
    right: int
    finished: bool

    @property
    def frames(self) -> slice:
        """What is decoded."""
        return slice(self.start - self.left, self.stop + self.right)

    def rows(self, delay: int) -> slice:
        """The delayed rows that hold these frames: ``delay`` is K - 1, edge rows not counted."""
        return slice(self.start - self.left, self.stop + self.right + delay)


class Schedule:
    """Which frames are sent when: told how many there are, it says what goes out now.

    Args:
        context: frames that a sample depends on, to either side (10 for Higgs).
    """

    def __init__(self, delivery: Delivery, context: int):
        self._delivery, self._context = delivery, context
        self._sizes = delivery.sizes()
        self._wanted = next(self._sizes)
        self._sent = 0

    def next(self, frames: int, finished: bool = False) -> Payload | None:
        """What is due once there are so many frames; None: wait.

        The last payload is ``finished`` and may be empty.
        """
        right = 0 if finished else self._right
        stop = max(self._sent, frames - right)
        if not finished and stop - self._sent < self._wanted:
            return None
        left = min(self._delivery.left or 0, self._sent)
        payload = Payload(self._sent, stop, left, right, finished)
        self._sent, self._wanted = stop, next(self._sizes)
        return payload

    @property
    def _right(self) -> int:
        """Frames that the next payload waits for beyond its own."""
        delivery = self._delivery
        early = delivery.left is not None or not self._sent
        return self._context if delivery.right is None or not early else delivery.right
