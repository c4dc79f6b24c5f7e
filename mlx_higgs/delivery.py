"""How a stream is cut into chunks; everything is counted in frames of 40 ms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Delivery:
    """The chunks of a stream: a small one first, so that it begins early, then larger ones.

    Args:
        first: frames in the first chunk.
        chunk: frames in the second; each later one is twice as long, up to ``largest``.
    """

    first: int = 5
    chunk: int = 25
    largest: int = 50


STEADY = Delivery(25, 25, 25)
