"""The autoregressive loop for many requests at once; they join and leave at frame boundaries."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx
import numpy as np

from .delay import DelayState
from .frames import MAX_IDENTICAL_ROWS, RowReader, begin
from .models.cache import Slots
from .sampling import SamplingParams
from .step import AudioStep, StepState
from .types import GenerationError, HiggsError, InputError, Prompt, StopReason

if TYPE_CHECKING:
    from .models.base import SpeechModel
    from .prefix import Prefix

MAX_ROWS = 8


class BatchRows:
    """The delayed rows of one request in a ``Batch``: the twin of ``frames.Rows``.

    Iterating it drives the whole batch; what the others say meanwhile waits for them.
    """

    def __init__(
        self,
        batch: Batch,
        prompt: Prompt,
        params: SamplingParams,
        prefix: Prefix | None,
        reader: RowReader,
    ):
        self.stop_reason: StopReason | None = None
        self.prompt, self.params, self.prefix = prompt, params, prefix
        self.ended = False  # nothing more will come
        self._batch, self._reader = batch, reader
        self._ready: deque[np.ndarray] = deque()
        self._error: HiggsError | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Raises GenerationError and InputError as ``Rows`` does."""
        try:
            while self._ready or not self.ended:
                if not self._ready:
                    self._batch.step()
                    continue
                row = self._ready.popleft()
                if self.ended and not self._ready:
                    self.stop_reason = self._reader.stop_reason
                yield row
            if self._error is not None:
                raise self._error
        finally:
            self.close()

    @property
    def num_ready(self) -> int:
        """Rows that were made and not read yet."""
        return len(self._ready)

    def close(self) -> None:
        """Leave the batch at the next frame."""
        self.ended = True

    def take(self, report: np.ndarray) -> None:
        """What the batch made for this request."""
        try:
            self._ready.append(self._reader.read(report))
            self.ended = self._reader.stop_reason is not None
        except GenerationError as error:
            self.fail(error)

    def fail(self, error: HiggsError) -> None:
        """Say so to whoever reads the rows, after those there are."""
        self._error, self.ended = error, True


class _Group(NamedTuple):
    """Requests under way together, and the frame of theirs that the device is making."""

    members: list[BatchRows]
    state: StepState
    slots: Slots


class Batch:
    """Requests side by side in one model. Each says what it would say alone.

    All are of one ``machine``: those of the other wait until these have ended.

    Args:
        max_rows: requests at once; more wait for their turn.
    """

    def __init__(self, model: SpeechModel, max_rows: int = MAX_ROWS):
        if max_rows < 1:
            raise InputError(f"A batch of {max_rows} has no room: it must be 1 or more.")
        self._model, self.max_rows = model, max_rows
        self._group: _Group | None = None
        self._step: AudioStep | None = None
        self._waiting: deque[BatchRows] = deque()
        self._members: list[BatchRows] = []  # under way, or about to be

    def join(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        prefix: Prefix | None = None,
        max_identical_rows: int = MAX_IDENTICAL_ROWS,
    ) -> BatchRows:
        """A request more, from the next frame on or as soon as there is room."""
        if params.seed is None:
            raise ValueError("A batch needs params.seed: draw one first.")
        reader = RowReader(params.max_frames, max_identical_rows)
        rows = BatchRows(self, prompt, params, prefix, reader)
        self._waiting.append(rows)
        return rows

    def step(self) -> None:
        """One frame of every request; launched before the frame before it is read.

        What goes wrong here ends all that are under way: each of them says so to its reader.
        """
        try:
            self._regroup()
            self._advance()
        except BaseException as error:
            self._end(GenerationError(f"The batch broke off: {error!r}."))
            raise

    def close(self) -> None:
        """Give up all requests, those that wait, too."""
        self._end(GenerationError("The batch was closed."))
        for member in self._waiting:
            member.close()
        self._waiting.clear()

    def _advance(self) -> None:
        if self._group is None or self._step is None:
            return
        members, state, slots = self._group
        slots.begin()
        upcoming = self._step(state, slots.layers)
        slots.advance()
        mx.async_eval(upcoming.report)
        mx.eval(state.report)  # as in frames.Rows
        for member, report in zip(members, np.array(state.report), strict=True):
            if not member.ended:
                member.take(report)
        self._group = _Group(members, upcoming, slots)
        if all(member.ended for member in members):
            self._group, self._step, self._members = None, None, []

    def _end(self, error: GenerationError) -> None:
        for member in self._members:
            if not member.ended:
                member.fail(error)
        self._group, self._step, self._members = None, None, []

    def _regroup(self) -> None:
        """Let go of those who have ended and let in those who wait."""
        members = [] if self._group is None else self._group.members
        kept = [slot for slot, member in enumerate(members) if not member.ended]
        staying = [members[slot] for slot in kept]
        joining = self._admit(staying)
        self._members = [*staying, *joining]
        groups = [group for group in map(self._enter, joining) if group is not None]
        if len(kept) == len(members) and not groups:
            return
        if self._group is not None and kept:
            groups.insert(0, _taken(self._group, kept))
        self._group = self._step = None  # what they hold is copied if it is held twice
        if groups:
            self._group = _joined(groups)
            requests = [member.params for member in self._group.members]
            self._step = AudioStep.of(self._model, requests)
            mx.async_eval(self._group.state.report)

    def _admit(self, staying: list[BatchRows]) -> list[BatchRows]:
        """Those who wait and whom there is room for."""
        company = list(staying)
        while self._waiting and len(company) < self.max_rows:
            if company and self._waiting[0].params.machine != company[0].params.machine:
                break
            member = self._waiting.popleft()
            if not member.ended:
                company.append(member)
        return company[len(staying) :]

    def _enter(self, member: BatchRows) -> _Group | None:
        """A request's prompt computed: a group of its own; None if it cannot be."""
        try:
            caches, state = begin(self._model, member.prompt, member.params, member.prefix)
        except HiggsError as error:  # the others go on
            member.fail(error)
            return None
        return _Group([member], state, Slots.of(caches))


def _taken(group: _Group, kept: list[int]) -> _Group:
    """Some of a group's members."""
    members, state, slots = group
    index = mx.array(kept)
    taken = StepState(
        state.row[index],
        DelayState(*(field[index] for field in state.delay)),
        None if state.window is None else state.window[index],
        state.report[index],
    )
    slots.take(kept)
    return _Group([members[slot] for slot in kept], taken, slots)


def _joined(groups: list[_Group]) -> _Group:
    """All members in one group."""
    members = [member for group in groups for member in group.members]
    states = [group.state for group in groups]
    delays = [state.delay for state in states]
    length = max(member.params.ras_window for member in members)
    windows = [_stretched(state, length) for state in states] if length else []
    state = StepState(
        mx.concatenate([state.row for state in states]),
        DelayState(*(mx.concatenate(list(parts)) for parts in zip(*delays, strict=True))),
        mx.concatenate(windows) if windows else None,
        mx.concatenate([state.report for state in states]),
    )
    slots, *others = (group.slots for group in groups)
    for other in others:
        slots.join(other)
    return _Group(members, state, slots)


def _stretched(state: StepState, length: int) -> mx.array:
    """The RAS windows ``[B, length, K]``: what is further back is forgotten, or was never said."""
    B, K = state.row.shape
    unsaid = mx.full((B, length, K), -1, dtype=mx.int32)
    known = unsaid if state.window is None else mx.concatenate([unsaid, state.window], axis=1)
    return known[:, -length:]
