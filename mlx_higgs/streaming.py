"""Delayed rows in, waveform chunks out, while the talker is still speaking.

Two stages: the talker makes rows, whose delay is reverted one by one into frames; whenever the
delivery's schedule finds a payload complete, the codec makes it into samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .code2wave import Columns, Stage, stage_for
from .delay import DelayPattern, RowReverter
from .delivery import STEADY, Delivery, Payload, Schedule
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
    """The waveform of a row stream, chunk by chunk.

    Where the delivery is exact, the chunks joined are what decoding all rows at once gives. A
    sample is final once the decoder has seen the frames it depends on: chunks run behind the rows
    by the delay pattern (K - 1 rows) and the decoder's look-ahead (9458 samples).

    Args:
        max_silence: stop after so many seconds below -60 dBFS, whose end is the waveform's; 0
            never does.

    Attributes:
        on_row: told the number of rows so far.
        num_rows: rows taken so far, the all-BOS row included.
        stop_reason: set once the iteration ends; None if it was closed before.
    """

    def __init__(
        self,
        rows: RowSource,
        codec: HiggsCodec,
        pattern: DelayPattern,
        delivery: Delivery = STEADY,
        *,
        max_silence: float = MAX_SILENCE,
    ):
        self._rows, self._pattern, self._hop = rows, pattern, codec.hop
        self._reverter = RowReverter(pattern)
        self._stage: Stage | None
        self._stage, context = stage_for(codec, delivery)
        self._schedule = Schedule(delivery, context)
        self._silence = SilenceMeter(codec.hop, codec.sample_rate, max_silence)
        self._columns: Columns = []
        self._closed = False
        self.on_row: Callable[[int], None] | None = None
        self.num_rows = 0
        self.stop_reason: StopReason | None = None

    @property
    def codes(self) -> np.ndarray:
        """Aligned codes ``[T, K]`` so far; at the end those of the waveform."""
        return np.array(self._columns, np.int32).reshape(-1, self._pattern.num_codebooks)

    def close(self) -> None:
        """Stop, from any thread: no row and no frame of sound is begun after the one at hand."""
        self._closed = True
        self._rows.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Mono float32 chunks ``[N]``, N > 0."""
        return (wave for wave in self.steps() if wave is not None)

    def steps(self) -> Iterator[np.ndarray | None]:
        """The same, with None for every row that completes no chunk."""
        stage, self._stage, sent = self._stage, None, 0  # what it remembers ends with the iterator
        for payload in self._payloads():
            if payload is None:
                yield None
                continue
            wave = self._decode(stage, payload)
            if self._closed:
                return
            kept = self._silence.hear(wave)
            sent += kept
            if kept < len(wave) or self._silence.exceeded:
                self.stop_reason = "silence"
                del self._columns[sent // self._hop :]
            elif payload.finished:
                self.stop_reason = self._rows.stop_reason
            if kept:
                yield wave[:kept]
            if self.stop_reason is not None:
                return

    def _payloads(self) -> Iterator[Payload | None]:
        for row in self._rows:
            if self._closed:
                return
            self.num_rows += 1
            if self.on_row is not None:
                self.on_row(self.num_rows)
            self._columns.extend(self._reverter.push(row))
            yield self._schedule.next(len(self._columns))
        if not self._closed:
            yield self._schedule_end()

    def _schedule_end(self) -> Payload:
        payload = self._schedule.next(len(self._columns), finished=True)
        assert payload is not None
        return payload

    def _decode(self, stage: Stage | None, payload: Payload) -> np.ndarray:
        if stage is None:
            raise RuntimeError("A stream is iterated once.")
        pieces = [np.zeros(0, np.float32)]
        for piece in stage.decode(payload, self._columns):
            pieces.append(piece)
            if self._closed:
                break
        return np.concatenate(pieces)


class SilenceMeter:
    """Finds where a waveform has been near-silent for too long without a break."""

    def __init__(self, block: int, sample_rate: int, max_seconds: float):
        self._block, self._limit = block, max_seconds * sample_rate
        self._quiet = 0  # samples
        self._rest = np.zeros(0, np.float32)
        self.exceeded = False

    def hear(self, wave: np.ndarray) -> int:
        """How many samples of ``wave`` come before that place, which is the end of a block."""
        if not self._limit:
            return len(wave)
        heard = np.concatenate([self._rest, wave])
        count = len(heard) // self._block
        for end, block in enumerate(
            heard[: count * self._block].reshape(count, self._block), start=1
        ):
            quiet = float(np.sqrt(np.mean(np.square(block)))) < QUIET
            self._quiet = self._quiet + self._block if quiet else 0
            if self._quiet >= self._limit:
                self.exceeded = True
                return max(0, end * self._block - len(self._rest))
        self._rest = heard[count * self._block :]
        return len(wave)
