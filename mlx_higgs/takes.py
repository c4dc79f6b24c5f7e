"""One piece said, with another seed if it went wrong, and what the next piece is told of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from . import audio
from .types import SAMPLE_RATE, GenerationError, SpeechChunk, StopReason

if TYPE_CHECKING:
    from .streaming import SpeechStream

FAULTS: dict[StopReason | None, str] = {  # the better one comes first
    "eos": "",
    "silence": "fell silent",
    "length": "was cut at its longest",
    "repetition": "repeated itself",
    None: "made no sound",
}
RANKS = list(FAULTS)
Sound = TypeVar("Sound")
DOUBTFUL = 3  # exit code
Request = Any  # a ``server.SpeechRequest``; this module stands below the one that has it


class Job(Protocol):
    """One generation under way (see ``server.SpeechJob``)."""

    stream: SpeechStream

    @property
    def seed(self) -> int: ...
    @property
    def stop_reason(self) -> StopReason | None: ...
    @property
    def num_edge_rows(self) -> int: ...
    def __iter__(self) -> Iterator[SpeechChunk]: ...
    def on_row(self, callback: Callable[[int], None]) -> None: ...
    def close(self) -> None: ...


Start = Callable[[Request], Job]


class Doubtful(GenerationError):  # noqa: N818
    """A text was said, and is there, but some of its pieces may be wrong."""

    exit_code = DOUBTFUL

    def __init__(self, faults: int, pieces: int):
        which = f"{faults} of {pieces} pieces" if pieces > 1 else "The speech"
        super().__init__(
            f"{which} may be wrong. The sound is there: listen to it, and "
            "try another --seed or more --retries."
        )


@dataclass(frozen=True)
class Take:
    """A piece as it was said, by the best of its attempts.

    Attributes:
        pcm: mono float32 ``[N]``; nothing if it made no sound.
        codes: ``[T, K]``.
        stop_reason: None: it made no sound.
        seed: of the attempt. attempts: how many were made.
        rows: delayed rows.
        error: why it made no sound.
    """

    pcm: np.ndarray
    codes: np.ndarray
    sampling_rate: int
    stop_reason: StopReason | None
    seed: int
    attempts: int
    rows: int = 0
    error: str = ""

    @property
    def good(self) -> bool:
        return self.stop_reason == "eos"


class Attempts:
    """Say one piece, with one seed after the other until it ends well.

    Iterated once; it yields samples if ``live``, else None, for every chunk made, and None before
    it waits for a job that it started itself: who has more to do than this may do that now.

    Args:
        start: makes the job of a request.
        live: hand out samples as they come. What has been heard is not drawn again.
        watch: told each job before it runs.
        first: the job of the first seed, if it was started already.

    Attributes:
        take: the best, at the end; None if the job was closed.

    Raises, while iterated:
        InputError: a request that cannot be met.
    """

    def __init__(
        self,
        start: Start,
        request: Request,
        seeds: Sequence[int],
        *,
        live: bool = False,
        watch: Callable[[Job], object] = lambda job: None,
        first: Job | None = None,
    ):
        self.take: Take | None = None
        self._start, self._request, self._seeds = start, request, seeds
        self._live, self._watch, self._first = live, watch, first

    def __iter__(self) -> Iterator[np.ndarray | None]:
        best: Take | None = None
        for count, seed in enumerate(self._seeds, start=1):
            begun, self._first = self._first, None
            job = begun or self._start(self._with(seed))
            self._watch(job)
            chunks: list[SpeechChunk] = []
            sent, error = 0, ""
            try:
                if begun is None:
                    yield None
                for chunk in job:
                    chunks.append(chunk)
                    if self._live and (sent or _is_sound(chunk.pcm)):
                        yield from (waiting.pcm for waiting in chunks[sent:])
                        sent = len(chunks)
                    else:
                        yield None
            except GenerationError as failure:
                error = str(failure)
            finally:
                job.close()
            if job.stop_reason is None and not error:
                return
            take = _take(job, chunks if sent or not error else [], count, error)
            best = replace(_better(best, take), attempts=count)
            if sent or is_final(take.stop_reason, self._request):
                break
        self.take = best

    def run(self) -> Take | None:
        """All of it; the take."""
        for _ in self:
            pass
        return self.take

    def _with(self, seed: int) -> Request:
        return replace(self._request, seed=seed)


def is_final(stop_reason: StopReason | None, request: Request) -> bool:
    """Whether another seed cannot help: it is good, or at a cap that was asked for."""
    capped = stop_reason == "length" and request.max_new_frames is not None
    return capped or stop_reason == "eos"


def _take(job: Job, chunks: list[SpeechChunk], count: int, error: str) -> Take:
    pcm = np.concatenate([np.zeros(0, np.float32), *(chunk.pcm for chunk in chunks)])
    rate = chunks[0].sampling_rate if chunks else SAMPLE_RATE
    reason = None if error else job.stop_reason
    return Take(pcm, job.stream.codes, rate, reason, job.seed, count, job.stream.num_rows, error)


def _better(one: Take | None, other: Take) -> Take:
    """The earlier of equals."""
    if one is None or RANKS.index(other.stop_reason) < RANKS.index(one.stop_reason):
        return other
    return one


def _is_sound(wave: np.ndarray) -> bool:
    return float(np.max(np.abs(wave))) >= audio.SILENCE


class Context(Generic[Sound]):
    """What later pieces are told was said before: the last few, and the very first if wanted.

    Texts, and what stands for their sound: codes ``[T, K]``, or where those are kept.

    Args:
        size: pieces at most, beside the first.
        anchor: keep the first: it is the voice of all where no clip is.
    """

    def __init__(self, size: int, *, anchor: bool = False):
        self._anchor = anchor and size > 0
        self._first: list[tuple[str, Sound]] = []
        self._last: deque[tuple[str, Sound]] = deque(maxlen=size)

    def history(self) -> list[tuple[str, Sound]]:
        """Pairs of text and sound, oldest first."""
        last = list(self._last)
        return [one for one in self._first if all(one is not other for other in last)] + last

    @property
    def lacks_first(self) -> bool:
        """Whether the first is still to come, which all later pieces are told of."""
        return self._anchor and not self._first

    def keep(self, text: str, sound: Sound) -> None:
        """To be called for what ended well: a fault would go on."""
        entry = (text, sound)
        if self._anchor and not self._first:
            self._first = [entry]
        self._last.append(entry)

    def new_chapter(self) -> None:
        """Forget all but the first."""
        self._last.clear()
