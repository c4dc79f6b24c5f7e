"""The delay pattern: codebook k is shifted k frames to the right.

Aligned codes ``[T, K]`` (what the codec reads) and delayed rows ``[L, K]`` (what the talker
reads and writes), here with K = 3 and T = 4 (``.`` BOS, ``#`` EOS)::

    codes            rows, edge_frames=0      rows, edge_frames=1
    0 0 0            0 . .                    . . .
    1 1 1            1 0 .                    0 . .
    2 2 2            2 1 0                    1 0 .
    3 3 3            3 2 1                    2 1 0
                     # 3 2                    3 2 1
                     # # 3                    # 3 2
                                              # # 3
                                              # # #
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import mlx.core as mx
import numpy as np

from .types import InputError

Machine = Literal["boson", "transformers", "strict", "sglang"]


class DelayState(NamedTuple):
    """Where streams stand, ``[B]`` each; on the device, so that a step never waits for the host."""

    step: mx.array  # rows sampled so far
    ramp: mx.array  # the machine's ramp-out counter; -1 before the first EOS
    done: mx.array  # True once the row just returned was the last


@dataclass(frozen=True)
class DelayPattern:
    """How one model generation lays codes out in time.

    Args:
        num_codebooks: K.
        bos_id, eos_id: stream markers, both outside the codec's own code range.
        edge_frames: all-BOS rows before and all-EOS rows after the codes (v2: 1, v3: 0).
        machine: whose rules ``advance`` follows. Of v2, ``boson``: the lowest codebook that
            says EOS silences those below it at once and those above it one by one
            (HiggsAudioModel._sample_audio_tokens); ``transformers``: any EOS starts a full
            ramp from codebook 0 (HiggsAudioV2DelayPatternLogitsProcessor). Of v3, ``sglang``: an
            EOS of codebook 0 after the ramp-in ends the stream K - 1 rows later, and whatever is
            sampled meanwhile enters it (sglang-omni's sampler); ``strict``: the same, but no
            marker is sampled where it cannot belong, and the ramp-out is EOS.
        shift: rows that each codebook is behind the one before it; 0 for streams without a delay,
            which end with the first EOS of any codebook (HiggsAudioModel itself never ends them).
    """

    num_codebooks: int = 8
    bos_id: int = 1024
    eos_id: int = 1025
    edge_frames: int = 0
    machine: Machine = "boson"
    shift: int = 1

    def under(self, machine: Machine | None) -> DelayPattern:
        """The same layout under the rules that a request asks for; None keeps these.

        Raises:
            InputError: rules of another model generation.
        """
        known = MACHINES[self.edge_frames] if self.shift else ("boson",)
        if machine is not None and machine not in known:
            raise InputError(f"This model's speech ends by {' or '.join(known)}, not {machine!r}.")
        return self if machine is None else replace(self, machine=machine)

    @property
    def codebook_size(self) -> int:
        """Ids below this are codes."""
        return min(self.bos_id, self.eos_id)

    @property
    def num_ending(self) -> int:
        """So many codebooks, from the first on, end the speech by an EOS."""
        return self.num_codebooks if self.edge_frames else 1

    @property
    def longest(self) -> int:
        """Rows that the last codebook is behind the first."""
        return self.shift * (self.num_codebooks - 1)

    def num_rows(self, frames: int) -> int:
        """Rows that a clip of so many frames takes."""
        return frames + 2 * self.edge_frames + self.longest

    def apply(self, codes: mx.array) -> mx.array:
        """Aligned codes ``[T, K]`` -> delayed rows ``[T + 2 * edge_frames + K - 1, K]``."""
        if codes.ndim != 2 or codes.shape[1] != self.num_codebooks or codes.shape[0] < 1:
            raise InputError(f"Expected codes [T, {self.num_codebooks}], got {codes.shape}.")
        T, K = codes.shape
        shift = self.shift * mx.arange(K) + self.edge_frames
        source = mx.arange(self.num_rows(T))[:, None] - shift
        rows = mx.take_along_axis(codes.astype(mx.int32), mx.clip(source, 0, T - 1), axis=0)
        rows = mx.where(source < 0, self.bos_id, rows)
        return mx.where(source >= T, self.eos_id, rows)

    def revert(self, rows: mx.array) -> mx.array:
        """Delayed rows ``[L, K]`` -> aligned columns ``[L - K + 1 - 2 * edge_frames, K]``."""
        e, K = self.edge_frames, self.num_codebooks
        T = rows.shape[0] - self.longest - 2 * e
        if T < 1:
            return rows[:0]
        source = mx.arange(T)[:, None] + self.shift * mx.arange(K) + e
        return mx.take_along_axis(rows, source, axis=0)

    def start(self, batch: int = 1) -> DelayState:
        """The state of so many streams before their first row."""
        still = mx.zeros((batch,), mx.int32)
        return DelayState(still, still - 1, still > 0)

    def allowed(self, logits: mx.array, state: DelayState) -> mx.array:
        """Logits ``[B, K, V]`` with -inf where the ``strict`` machine lets no marker be sampled."""
        if self.machine != "strict":
            return logits
        ids, book = mx.arange(logits.shape[-1]), mx.arange(self.num_codebooks)[:, None]
        may_end = (state.step >= self.num_codebooks)[:, None, None] & (book == 0)
        fits = (ids < self.codebook_size) | ((ids == self.eos_id) & may_end)
        return mx.where(fits, logits, -mx.inf)

    def advance(self, row: mx.array, state: DelayState) -> tuple[mx.array, DelayState]:
        """Freshly sampled rows ``[B, K]`` -> the rows that enter the streams, and what follows.

        Codebook k stays BOS for k rows more (ramp-in); after an EOS the codebooks fall silent
        one by one (ramp-out).
        """
        book = mx.arange(self.num_codebooks)
        if not self.shift:  # what boson's rules come to where no codebook is behind another
            done = mx.any(row == self.eos_id, axis=-1)
            return row.astype(mx.int32), DelayState(state.step + 1, state.ramp, done)
        row = mx.where(book > state.step[:, None], self.bos_id, row)
        row, ramp, done = RAMP_OUT[self.machine](self, book, row, state)
        return row.astype(mx.int32), DelayState(state.step + 1, ramp[:, 0], done)


def _boson_ramp_out(pattern, book, row, state):
    """``ramp`` counts the rows still to come."""
    K, eos, ramp = pattern.num_codebooks, pattern.eos_id, state.ramp[:, None]
    ramping = ramp >= 0
    lowest = mx.min(mx.where(row == eos, book, K), axis=-1, keepdims=True)
    row = mx.where(mx.where(ramping, book < K - ramp, (book < lowest) & (lowest < K)), eos, row)
    fresh = mx.where(lowest < K, K - 1 - lowest, -1)
    ramp = mx.where(ramping, ramp - 1, fresh)
    return row, ramp, ramp[:, 0] == 0


def _transformers_ramp_out(pattern, book, row, state):
    """``ramp`` counts the codebooks already silenced; it starts one row after the first EOS."""
    eos, ramp = pattern.eos_id, state.ramp[:, None]
    ramp = mx.where(ramp >= 0, ramp + 1, ramp)
    row = mx.where(book < ramp, eos, row)
    hit = row == eos
    ramp = mx.where((ramp < 0) & mx.any(hit, axis=-1, keepdims=True), 0, ramp)
    return row, ramp, mx.all(hit, axis=-1)


def _sglang_ramp_out(pattern, book, row, state):
    """``ramp`` counts the rows still to come; the row of the EOS is one of the last K."""
    K, ramp = pattern.num_codebooks, state.ramp[:, None]
    fresh = (row[:, :1] == pattern.eos_id) & (state.step[:, None] >= K)
    ramp = mx.where(ramp >= 0, ramp - 1, mx.where(fresh, K - 2, -1))
    return row, ramp, ramp[:, 0] == 0


def _strict_ramp_out(pattern, book, row, state):
    """As sglang's; codebook k is silent from k rows after the EOS on."""
    row, ramp, done = _sglang_ramp_out(pattern, book, row, state)
    silent = (ramp >= 0) & (book < pattern.num_codebooks - 1 - ramp)
    return mx.where(silent, pattern.eos_id, row), ramp, done


RAMP_OUT = {
    "boson": _boson_ramp_out,
    "transformers": _transformers_ramp_out,
    "strict": _strict_ramp_out,
    "sglang": _sglang_ramp_out,
}
# by edge_frames; the first is the default, the last a reference's
MACHINES: dict[int, tuple[Machine, ...]] = {
    0: ("strict", "sglang"),
    1: ("boson", "transformers"),
}


class RowReverter:
    """The incremental twin of ``revert`` for a stream being made: rows in, sound columns out.

    Takes the rows as the model made them: ``edge_frames`` all-BOS rows first, then the ramp.
    A column that still holds a special id is cut when it trails (that is the EOS ramp, never
    clipped to a code that would sound) and concealed by the code before it when good columns
    follow, so it is held back until one does. A stream cut short loses no good column.
    """

    def __init__(self, pattern: DelayPattern):
        self._pattern = pattern
        self._rows: list[np.ndarray] = []  # as many as the last codebook is behind
        self._skip = pattern.edge_frames
        self._held: list[np.ndarray] = []  # columns with a special id, waiting for a good one
        self._last = np.zeros(pattern.num_codebooks, dtype=np.int32)

    def push(self, row: np.ndarray) -> np.ndarray:
        """One delayed row ``[K]`` -> the columns ``[t, K]`` that became final (t is often 1)."""
        K, shift = self._pattern.num_codebooks, self._pattern.shift
        if self._skip:
            self._skip -= 1
            return np.zeros((0, K), dtype=np.int32)
        self._rows.append(np.asarray(row, dtype=np.int32))
        if len(self._rows) <= self._pattern.longest:
            return np.zeros((0, K), dtype=np.int32)
        column = np.array([self._rows[shift * k][k] for k in range(K)], dtype=np.int32)
        self._rows.pop(0)
        return self._release(column)

    def _release(self, column: np.ndarray) -> np.ndarray:
        self._held.append(column)
        if np.any(column >= self._pattern.codebook_size):
            return np.zeros((0, len(column)), dtype=np.int32)
        ready = []
        for held in self._held:
            self._last = np.where(held >= self._pattern.codebook_size, self._last, held)
            ready.append(self._last)
        self._held = []
        return np.stack(ready)


def codes_from_rows(rows: np.ndarray, pattern: DelayPattern) -> np.ndarray:
    """All rows of a finished or cut stream ``[L, K]`` -> the codes ``[T, K]`` to decode."""
    reverter = RowReverter(pattern)
    columns = [reverter.push(row) for row in rows]
    return np.concatenate([np.zeros((0, pattern.num_codebooks), np.int32), *columns])
