"""Delayed rows in, waveform chunks out, while the talker is still speaking."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

import mlx.core as mx
import numpy as np

from .delay import DelayPattern, RowReverter
from .types import StopReason

if TYPE_CHECKING:
    from .codec import HiggsCodec

QUIET = 1e-3  # -60 dBFS: the RMS of a block that counts as silence
MAX_SILENCE = 4.0  # seconds; a spoken pause is shorter


class RowSource(Protocol):
    """Rows with a reason for their end (see ``frames.Rows``)."""

    stop_reason: StopReason | None

    def __iter__(self) -> Iterator[np.ndarray]: ...

    def close(self) -> None:
        """Stop making them, begun or not."""
        ...


class SpeechStream:
    """The waveform of a row stream, chunk by chunk, equal to decoding all of it at once.

    A sample is final once the decoder has seen the frames it depends on: chunks run behind the
    rows by the delay pattern (K - 1 rows) and the decoder's look-ahead (9458 samples).

    Args:
        chunk_frames: frames in a chunk; the last also brings what the decoder held back.
        max_silence: stop after so many seconds below -60 dBFS; 0 never does.

    Attributes:
        num_rows: rows taken so far, the all-BOS row included.
        codes: aligned codes ``[T, K]`` decoded so far.
        stop_reason: set once the iteration ends.
    """

    def __init__(
        self,
        rows: RowSource,
        codec: HiggsCodec,
        pattern: DelayPattern,
        *,
        chunk_frames: int = 25,
        max_silence: float = MAX_SILENCE,
    ):
        self._rows, self._decoder = rows, codec.decoder()
        self._reverter = RowReverter(pattern)
        self._chunk = chunk_frames
        self._ahead = -(-self._decoder.lookahead_samples // codec.hop)  # frames
        self._silence = SilenceMeter(codec.hop, codec.sample_rate, max_silence)
        self._decoded: list[np.ndarray] = [np.zeros((0, pattern.num_codebooks), np.int32)]
        self.on_row: Callable[[int], None] | None = None  # told the number of rows so far
        self.num_rows = 0
        self.stop_reason: StopReason | None = None

    @property
    def codes(self) -> np.ndarray:
        return np.concatenate(self._decoded)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Mono float32 chunks ``[N]``, N > 0."""
        for codes in self._code_chunks(self._columns(self._rows)):
            yield from self._decode(codes)
            if self._silence.exceeded:
                self.stop_reason = "silence"
                return
        yield from _non_empty(self._decoder.finish())
        self.stop_reason = self._rows.stop_reason

    def _columns(self, rows: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for row in rows:
            self.num_rows += 1
            if self.on_row is not None:
                self.on_row(self.num_rows)
            yield self._reverter.push(row)

    def _code_chunks(self, columns: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The first holds the look-ahead as well, so that every chunk of samples is a full one."""
        waiting: list[np.ndarray] = []
        wanted = self._chunk + self._ahead
        for column in columns:
            waiting.append(column)
            if sum(map(len, waiting)) >= wanted:
                yield np.concatenate(waiting)
                waiting, wanted = [], self._chunk
        if sum(map(len, waiting)):
            yield np.concatenate(waiting)

    def _decode(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        self._decoded.append(codes)
        for wave in _non_empty(self._decoder.push(mx.array(codes))):
            self._silence.hear(wave)
            yield wave


def _non_empty(wave: mx.array) -> Iterator[np.ndarray]:
    if wave.size:
        yield np.array(wave, dtype=np.float32)


class SilenceMeter:
    """Counts how long a waveform has been near-silent without a break."""

    def __init__(self, block: int, sample_rate: int, max_seconds: float):
        self._block, self._limit = block, max_seconds * sample_rate
        self._quiet = 0  # samples
        self._rest = np.zeros(0, np.float32)

    def hear(self, wave: np.ndarray) -> None:
        wave = np.concatenate([self._rest, wave])
        count = len(wave) // self._block
        self._rest = wave[count * self._block :]
        for block in wave[: count * self._block].reshape(count, self._block):
            quiet = float(np.sqrt(np.mean(np.square(block)))) < QUIET
            self._quiet = self._quiet + self._block if quiet else 0

    @property
    def exceeded(self) -> bool:
        return self._limit > 0 and self._quiet >= self._limit
