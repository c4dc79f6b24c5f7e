"""A text of several pieces as one speech: in one voice, each piece with a seed of its own, joined.

A piece that runs to its cap, repeats itself or falls silent is drawn again with another seed, and
reported if no attempt ended well. It is never left out without a word.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import mlx.core as mx
import numpy as np

from . import audio
from .joints import Joint
from .pieces import Chunking, piece_seed
from .takes import FAULTS, RANKS, Attempts, Context, Job, Request, Start, Take
from .text import speaker_tags
from .types import SAMPLE_RATE, GenerationError, Speech, SpeechChunk, StopReason

AnyJob = TypeVar("AnyJob", bound=Job)


@dataclass(frozen=True)
class Said:
    """A piece that was said, and where it is in the whole: samples ``[start, stop)``."""

    text: str
    start: int
    stop: int
    seed: int
    attempts: int
    stop_reason: StopReason | None

    @property
    def fault(self) -> str:
        """What is wrong with it; "" if nothing is."""
        return FAULTS[self.stop_reason]


def speak(
    start: Callable[[Request], AnyJob],
    request: Request,
    chunking: Chunking,
    *,
    sampling_rate: int = SAMPLE_RATE,
    live: bool = True,
    anchor: bool = False,
    alone: int = 0,
) -> AnyJob | LongJob:
    """A request's text, cut into pieces; one that is a single piece is simply started.

    Args:
        start: makes a job of a request.
        chunking: with all that it leaves to the checkpoint settled.
        sampling_rate, live, anchor: as `LongJob` takes them.
        alone: other seeds for a single piece that failed.

    Raises:
        InputError: a request that cannot be met.
    """
    texts = chunking.cut(request.target_text)
    if len(texts) < 2:
        if not alone:
            return start(request)
        chunking = replace(chunking, retries=alone)
    return LongJob(
        start, request, texts, chunking, sampling_rate=sampling_rate, live=live, anchor=anchor
    )


class LongJob:
    """A speech of pieces under way, with the surface of ``server.SpeechJob``.

    Iterated, once, it hands out samples as they come, and what went out is not drawn again. `run`,
    and an iteration that is not ``live``, hold a piece until it is whole and draw it again if it
    failed; where none fails, both give the same samples.

    Args:
        start: makes a job of a request for one piece.
        texts: the pieces, as ``Chunking.cut`` makes them.
        live: hand out chunks before their piece is whole.
        anchor: keep the first piece in every context: where no clip says whose voice it is.

    Attributes:
        said: the pieces done, with their places in the whole.
        stop_reason: the worst of all pieces' at the end; None if it was given up.
        first_audio: seconds until the first chunk; None before there is one.

    Raises:
        InputError: a request that cannot be met.
    """

    def __init__(
        self,
        start: Start,
        request: Request,
        texts: Sequence[str],
        chunking: Chunking,
        *,
        sampling_rate: int = SAMPLE_RATE,
        live: bool = True,
        anchor: bool = False,
    ):
        self.seed: int = secrets.randbelow(2**32) if request.seed is None else request.seed
        tags = speaker_tags(request.target_text)
        self.request = replace(request, seed=self.seed, speakers=request.speakers or tags)
        self.said: list[Said] = []
        self.stop_reason: StopReason | None = None
        self.first_audio: float | None = None
        self._start, self._texts, self._chunking, self._live = start, texts, chunking, live
        self._context: Context[mx.array] = Context(chunking.context or 0, anchor=anchor)
        self._told: Callable[[int], None] | None = None
        self._rows = self._frames = self._samples = 0  # of pieces done, of those, sent
        self._codes: np.ndarray | None = None  # of a single piece
        self._rate, self._closed, self._begun = sampling_rate, False, False
        self._started = time.perf_counter()
        self._job = start(self._request(0))

    @property
    def num_edge_rows(self) -> int:
        """Rows beyond one per frame, of the pieces so far."""
        return self._job.num_edge_rows * (len(self.said) + 1)

    @property
    def faults(self) -> list[Said]:
        """The pieces that no attempt said well."""
        return [piece for piece in self.said if piece.fault]

    def on_row(self, callback: Callable[[int], None]) -> None:
        """Have ``callback`` told the number of rows so far after every one."""
        self._told = callback
        self._watch(self._job)

    def close(self) -> None:
        """Give it up, begun or not, from any thread: it ends within a frame, without a chunk."""
        self._closed = True
        self._job.close()

    def __iter__(self) -> Iterator[SpeechChunk]:
        """Chunks as they become final; closing the iterator closes the job.

        Raises:
            GenerationError: the first piece made no sound, whatever its seed.
            InputError: a later piece cannot be met.
        """
        return (chunk for chunk in self.turns() if chunk is not None)

    def turns(self) -> Iterator[SpeechChunk | None]:
        """As the iteration, with None wherever it has to wait for rows without a chunk.

        Where a piece has just begun, or what was made of it is held back: in a batch, others may
        have their turn meanwhile.
        """
        return self._play(self._live)

    def run(self) -> Speech:
        """All pieces as one speech, faded as the request wants it; codes of a single one alone.

        Raises:
            GenerationError, InputError: as the iteration; it was closed meanwhile.
        """
        return next(speech for speech in self.steps() if speech is not None)

    def steps(self) -> Iterator[Speech | None]:
        """None for every chunk made and every piece begun, then the whole speech."""
        waves = [np.zeros(0, np.float32)]
        for chunk in self._play(live=False):
            if chunk is not None:
                waves.append(chunk.pcm)
            yield None
        yield self.speech(np.concatenate(waves))

    def speech(self, pcm: np.ndarray) -> Speech:
        """The result, once the iteration ended, of whose chunks ``pcm`` is the sum.

        Raises:
            GenerationError: the job was closed before.
        """
        if self.stop_reason is None:
            raise GenerationError(f"The speech was given up (seed {self.seed}).")
        return Speech(
            pcm=audio.fade(pcm, self._rate, self.request.fade_in_ms, self.request.fade_out_ms),
            sampling_rate=self._rate,
            num_frames_raw=self._rows,
            num_frames_aligned=self._frames,
            stop_reason=self.stop_reason,
            seed=self.seed,
            seconds=time.perf_counter() - self._started,
            codes=self._codes,
        )

    def _play(self, live: bool) -> Iterator[SpeechChunk | None]:
        if self._begun:
            raise RuntimeError("A job is iterated once: start another for the same request.")
        self._begun = True
        try:
            for place in range(len(self._texts)):
                take = yield from self._piece(place, live)
                if take is None:
                    return
                if not self._samples:
                    raise GenerationError(take.error)
            worst = max(self.said, key=lambda piece: RANKS.index(piece.stop_reason))
            self.stop_reason = worst.stop_reason or "silence"
        finally:
            self.close()

    def _piece(self, place: int, live: bool) -> Generator[SpeechChunk | None, None, Take | None]:
        """One piece after its gap; None if it was given up."""
        if self._closed:
            return None
        if place:
            yield from self._sent(np.zeros(self._length(self._chunking.gap_ms), np.float32))
        begin, fade = self._samples, self._length(self._chunking.fade_ms)
        joint = Joint(fade if place else 0, fade if place + 1 < len(self._texts) else 0)
        attempts = Attempts(
            self._start,
            self._request(place),
            [piece_seed(self.seed, 0, place, n) for n in range(self._chunking.attempts)],
            live=live,
            watch=self._watch,
            first=None if place else self._job,
        )
        for wave in attempts:
            if wave is None:
                yield None
            else:
                yield from self._sent(joint.push(wave))
        take = attempts.take
        if take is None or self._closed:
            return None
        if self._samples == begin and not joint.holds:  # nothing of it went out live
            yield from self._sent(joint.push(take.pcm))
        yield from self._sent(joint.finish())
        self._note(place, begin, take)
        return take

    def _note(self, place: int, begin: int, take: Take) -> None:
        text = self._texts[place]
        self.said.append(
            Said(text, begin, self._samples, take.seed, take.attempts, take.stop_reason)
        )
        self._rows, self._frames = self._rows + take.rows, self._frames + len(take.codes)
        self._codes = take.codes if len(self._texts) == 1 else None
        if take.good:
            self._context.keep(text, mx.array(take.codes))

    def _sent(self, wave: np.ndarray) -> Iterator[SpeechChunk]:
        if len(wave) and not self._closed:
            if self.first_audio is None:
                self.first_audio = time.perf_counter() - self._started
            self._samples += len(wave)
            yield SpeechChunk(wave, self._rate, self._rows + self._job.stream.num_rows)

    def _length(self, milliseconds: float) -> int:
        return round(milliseconds / 1000 * self._rate)

    def _request(self, place: int) -> Request:
        return replace(
            self.request,
            target_text=self._texts[place],
            seed=piece_seed(self.seed, 0, place, 0),
            history=[*self.request.history, *self._context.history()],
            fade_in_ms=0.0,
            fade_out_ms=0.0,
        )

    def _watch(self, job: Job) -> None:
        """The job that is under way now."""
        self._job = job
        if self._closed:
            job.close()
        told = self._told
        if told is not None:
            job.on_row(lambda rows: told(self._rows + rows))
