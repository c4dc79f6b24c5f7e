"""Prompt -> an answer in words and speech: the three modes of Boson's ``generate``.

Which mode it is, the host decides id by id::

    words    the last id's position -> text head -> an id
    opening  <|audio_out_bos|> was written: it is read, what follows is not asked; a row of BOS
    speech   the last row's position -> audio head -> a row, until the delay pattern says done
             then <|audio_eos|> is written, and words go on

Words read the text norms, FFN and head alone, rows those of audio (HiggsAudioModel._sample).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from .delay import DelayPattern, DelayState
from .frames import MAX_IDENTICAL_ROWS, PREFILL_POSITIONS, RowReader, heard_window, read_prompt
from .models.cache import KVCache
from .pieces import piece_seed
from .sampling import Sampler, SamplingParams, frame_keys, sample_codes, seed_key, slide_window
from .step import AudioStep, StepState, first_state
from .types import GenerationError, InputError, Prompt, StopReason, Text

if TYPE_CHECKING:
    from .models.base import SpeechModel
    from .prefix import Prefix
    from .prompts.base import Marks

WORDS = 1  # the chapter, in the seeds, that words are drawn from; stretches of speech have 0


class Segment:
    """A stretch of speech in an answer: its delayed rows ``[K]``, made while they are iterated.

    The row after the one being handed out is already under way, as in ``frames.Rows``.

    Args:
        state: at its first row.
        begun: rows ``[L, K]`` that the prompt has of it, handed out first.

    Attributes:
        stop_reason: ``eos`` once it has said all.
        made: rows made here.
        window: what repetition-aware sampling has heard, its last row included.
    """

    def __init__(
        self,
        step: AudioStep,
        state: StepState,
        caches: Sequence[KVCache],
        reader: RowReader,
        begun: mx.array | None = None,
    ):
        self.stop_reason: StopReason | None = None
        self.made = 0
        self.window = state.window
        self._step, self._state, self._caches, self._reader = step, state, caches, reader
        self._begun, self._closed = begun, False

    def close(self) -> None:
        """Make no more rows than the one being handed out."""
        self._closed = True

    def __iter__(self) -> Iterator[np.ndarray]:
        """Raises GenerationError for what is no number."""
        if self._begun is not None:
            rows, self._begun = np.array(self._begun, dtype=np.int32), None
            yield from rows
        state = self._state
        mx.async_eval(state.report)
        while not (self._closed or self.stop_reason):
            places = [cache.offset for cache in self._caches]
            upcoming = self._step(state, self._caches)
            mx.async_eval(upcoming.report)
            row = self._reader.read(np.array(state.report)[0])
            self.made, self.window, ended = self.made + 1, state.window, self._reader.stop_reason
            if ended:  # the last row is never read by the model
                for cache, place in zip(self._caches, places, strict=True):
                    cache.offset = place
            yield row
            self.stop_reason = ended
            state = upcoming


class Answering:
    """The ids and stretches of speech of one answer, made while they are iterated.

    Every id that the model writes is handed out, control tokens and the one that ends it, too; for
    each stretch of speech a ``Segment``, to be iterated before the next is asked for.

    Args:
        prompt: ends where the answer begins; with ``<|audio_out_bos|>`` it begins with speech.
        params: ``seed`` must be set; ``max_frames`` counts ids and rows together.
        marks: what the ids mean.
        begun: delayed rows ``[L, K]`` after the prompt's last id, the all-BOS row first: the answer
            goes on where they end.
        prefix: the first parts of the prompt, already computed.

    Attributes:
        ids: what was written, as the reference's ``sequences``: a stretch of speech is one
            placeholder, and its end an id.
        stop_reason: set once the iteration ends; None if it was closed before.

    Raises:
        InputError: the text head was not loaded.
    """

    def __init__(
        self,
        model: SpeechModel,
        prompt: Prompt,
        params: SamplingParams,
        marks: Marks,
        *,
        begun: mx.array | None = None,
        prefix: Prefix | None = None,
        max_identical_rows: int = MAX_IDENTICAL_ROWS,
    ):
        if params.seed is None:
            raise ValueError("An answer needs params.seed: draw one first.")
        self.stop_reason: StopReason | None = None
        self.ids: list[int] = []
        self._model, self._prompt, self._params, self._marks = model, prompt, params, marks
        self._begun, self._prefix, self._max_identical = begun, prefix, max_identical_rows
        self._pattern = model.delay
        self._left = params.max_frames
        self._segments, self._closed = 0, False
        self._segment: Segment | None = None
        self._words = _Words(model, params, marks.barred)
        self._caches: list[KVCache] = []

    def close(self) -> None:
        """Make no more than what is being handed out."""
        self._closed = True
        if self._segment is not None:
            self._segment.close()

    def __iter__(self) -> Iterator[int | Segment]:
        """Raises GenerationError for what is no number, InputError for ids there are not."""
        self._caches, h = read_prompt(self._model, self._prompt, self._prefix)
        last = self._prompt[-1]
        opened = isinstance(last, Text) and last.ids[-1] == self._marks.opens
        if opened or self._begun is not None:
            h = yield from self._speak(self._begun)
        while h is not None and not self._closed:
            token = self._words.draw(h)
            self._write(token, last=token in self._marks.stops)
            yield token
            if self.stop_reason is not None or self._closed:
                return
            h = self._read(token)
            if token == self._marks.opens:
                h = yield from self._speak()

    def _write(self, token: int, last: bool = False) -> None:
        self.ids.append(token)
        self._left -= 1
        self.stop_reason = "eos" if last else self.stop_reason if self._left else "length"

    def _read(self, token: int) -> mx.array:
        """The last hidden state ``[1, 1, D]`` after one id more."""
        x = self._model.embed_ids(np.array([token]))[None]
        return self._model.hidden(x, self._caches, np.zeros((1, 1), dtype=bool))

    def _speak(self, begun: mx.array | None = None) -> Generator[Segment, None, mx.array | None]:
        """A stretch of speech; returns the hidden state after the id that ends it."""
        segment = self._segment = self._open(begun)
        if begun is None:
            self.ids.append(self._marks.speech)
        yield segment
        for _ in segment:  # what nobody asked for
            pass
        self._left -= segment.made
        if segment.stop_reason != "eos":
            self.stop_reason = segment.stop_reason
            return None
        self.ids.append(self._marks.closes)
        if not self._left:
            self.stop_reason = "length"
            return None
        return self._read(self._marks.closes)

    def _open(self, begun: mx.array | None) -> Segment:
        assert self._params.seed is not None
        seed = piece_seed(self._params.seed, 0, self._segments, int(begun is not None))
        self._segments += 1
        step = AudioStep.of(self._model, [replace(self._params, seed=seed)])
        state = first_state(self._pattern, self._heard(begun))
        if begun is not None:
            state = step.after(self._read_rows(begun), resumed(self._pattern, begun, state))
        reader = RowReader(self._left, self._max_identical)
        return Segment(step, state, self._caches, reader, begun)

    def _heard(self, begun: mx.array | None) -> mx.array | None:
        """The RAS window with the rows that a stretch begins with."""
        pattern = self._pattern
        if self._segment is None:
            window = heard_window(self._prompt, self._params, pattern)
        else:
            bos = mx.full((1, pattern.num_codebooks), pattern.bos_id, dtype=mx.int32)
            window = slide_window(self._segment.window, bos, pattern)
        for row in begun[1:] if begun is not None else ():
            window = slide_window(window, row[None], pattern)
        return window

    def _read_rows(self, rows: mx.array) -> mx.array:
        h = mx.zeros((1, 0, 0))
        for start in range(0, len(rows), PREFILL_POSITIONS):
            x = self._model.embed_rows(rows[None, start : start + PREFILL_POSITIONS])
            h = self._model.hidden(x, self._caches)[:, -1:]
            mx.eval(h)
        return h


def unfinished(codes: mx.array, pattern: DelayPattern) -> mx.array:
    """Codes ``[T, K]`` of a clip that is to go on -> its rows ``[edge + T, K]``, without an end.

    Of the last frames, only the codebooks that were sampled with the last row are kept.
    """
    return pattern.apply(codes)[: pattern.edge_frames + len(codes)]


def resumed(pattern: DelayPattern, rows: mx.array, state: StepState) -> StepState:
    """The state after rows ``[L, K]`` of a stretch that is not over, as the reference takes it up.

    A row that holds EOS is taken for the first of the ramp-out, whichever it is.

    Raises:
        InputError: the last row is the last there can be.
    """
    K, last = pattern.num_codebooks, np.array(rows[-1])
    ended = np.flatnonzero(last == pattern.eos_id)
    ramp = int(K - 1 - ended[0]) if len(ended) else -1
    if not ramp:
        raise InputError("The speech to go on with has ended: continue the words after it.")
    step = int(K - np.count_nonzero(last == pattern.bos_id))
    delay = DelayState(mx.array([step]), mx.array([ramp]), mx.array([False]))
    return state._replace(row=rows[-1:].astype(mx.int32), delay=delay)


class _Words:
    """Draws ids from the text head, with the sampling of the rows but for RAS.

    Args:
        barred: ids that are never drawn.
    """

    def __init__(self, model: SpeechModel, params: SamplingParams, barred: Sequence[int]):
        assert params.seed is not None
        size = model.args.vocab_size
        self._model = model
        self._key = seed_key(piece_seed(params.seed, WORDS, 0, 0))[None]
        self._sampler = Sampler.of([params], size)
        self._barred = mx.zeros((size,), mx.bool_)
        self._barred[mx.array(list(barred))] = True
        self._drawn = 0

    def draw(self, h: mx.array) -> int:
        """The id after hidden states ``[1, S, D]``.

        Raises:
            GenerationError: its logits are not numbers. InputError: there is no text head.
        """
        logits = self._model.text_logits(h[:, -1])
        finite = mx.isfinite(mx.sum(logits)).astype(mx.int32)
        allowed = mx.where(self._barred, -mx.inf, logits)[:, None]
        keys = frame_keys(self._key, mx.array([self._drawn]))
        token = sample_codes(allowed, self._sampler, keys)[0, 0]
        self._drawn += 1
        drawn, sound = np.array(mx.stack([token, finite])).tolist()
        if not sound:
            raise GenerationError(
                "The model's output is not a number: its weights or their width do not work."
            )
        return drawn
