"""The second stage of a stream: a payload of frames -> its samples, in one of three ways.

``Incremental`` remembers what it needs, computes nothing twice and is exact. ``Windowed``
remembers nothing and decodes each payload with its context. ``Early`` is ``Incremental`` but for
the first payload, which it guesses the end of.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import mlx.core as mx
import numpy as np

from .delivery import Delivery, Payload

if TYPE_CHECKING:
    from .codec import HiggsCodec

Columns = list[np.ndarray]  # frames' codes [K], all of them so far
SEAM = 0.010  # seconds over which a guess turns into what was to come


class Stage(Protocol):
    def decode(self, payload: Payload, columns: Columns) -> Iterator[np.ndarray]:
        """The payload's samples, mono float32, in pieces: after each, one can stop."""
        ...


def stage_for(codec: HiggsCodec, delivery: Delivery) -> tuple[Stage, int]:
    """What a delivery needs, and the frames that a sample depends on to either side."""
    incremental = Incremental(codec)
    if delivery.left is not None:
        return Windowed(codec), incremental.context
    if delivery.right is not None and delivery.right < incremental.context:
        return Early(codec), incremental.context
    return incremental, incremental.context


class Incremental:
    """Every sample as soon as it is final; together bit for bit the whole decode."""

    def __init__(self, codec: HiggsCodec):
        self._decoder = codec.decoder()
        self._pushed = 0  # frames
        self.lookahead = self._decoder.lookahead_samples
        self.context = -(-self.lookahead // codec.hop)

    def decode(self, payload: Payload, columns: Columns) -> Iterator[np.ndarray]:
        # frame by frame, so that one can stop: the decoder works them off one by one anyway
        for frame in range(self._pushed, payload.frames.stop):
            self._pushed += 1
            yield _samples(self._decoder.push(columns[frame][None]))
        if payload.finished:
            yield _samples(self._decoder.finish())


class Windowed:
    """A payload's frames and their neighbours decoded, the neighbours' samples cut off.

    Equal to the whole decode to rounding where there are enough neighbours on both sides.
    """

    def __init__(self, codec: HiggsCodec):
        self._codec = codec

    def decode(self, payload: Payload, columns: Columns) -> Iterator[np.ndarray]:
        if payload.start < payload.stop:
            window = np.stack(columns[payload.frames])
            yield _window(self._codec, window, payload.left, len(window) - payload.right)


class Early(Incremental):
    """The first payload before its samples are final: approximate, and exact from there on.

    What is not final is guessed as if the last frame known went on; a short cross-fade leads over
    to the exact samples.
    """

    def __init__(self, codec: HiggsCodec):
        super().__init__(codec)
        self._codec = codec
        self._guessed = 0  # samples that were out before they were final
        self._ending = np.zeros(0, np.float32)  # how the guess would have gone on

    def decode(self, payload: Payload, columns: Columns) -> Iterator[np.ndarray]:
        exact = super().decode(payload, columns)
        if not payload.start and not payload.finished:
            yield from self._guess(payload, columns, exact)
        else:
            yield from map(self._join, exact)

    def _guess(
        self, payload: Payload, columns: Columns, exact: Iterator[np.ndarray]
    ) -> Iterator[np.ndarray]:
        final = 0
        for piece in exact:
            final += len(piece)
            yield piece
        hop, stop = self._codec.hop, payload.stop
        known = columns[payload.frames]
        guess = np.stack(known + [known[-1]] * self.context)
        wave = _window(self._codec, guess, 0, stop + 1)
        fade = round(SEAM * self._codec.sample_rate)
        self._ending = wave[stop * hop :][:fade]
        self._guessed = stop * hop - final
        yield wave[final : stop * hop]

    def _join(self, wave: np.ndarray) -> np.ndarray:
        """Without what is out already, faded in where the guess ended."""
        skipped = min(self._guessed, len(wave))
        self._guessed -= skipped
        wave = wave[skipped:].copy()
        count = min(len(self._ending), len(wave))
        if count:
            share = self._share[-len(self._ending) :][:count]
            wave[:count] = share * wave[:count] + (1 - share) * self._ending[:count]
            self._ending = self._ending[count:]
        return wave

    @property
    def _share(self) -> np.ndarray:
        """Of the exact samples in the seam, rising."""
        fade = round(SEAM * self._codec.sample_rate)
        return (np.arange(fade, dtype=np.float32) + 0.5) / fade


def _window(codec: HiggsCodec, codes: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Frames ``[start, stop)`` of a clip that is all there is."""
    return _samples(codec.decode_window(codes, start, stop, context=len(codes)))


def _samples(wave: mx.array) -> np.ndarray:
    return np.array(wave, dtype=np.float32)
