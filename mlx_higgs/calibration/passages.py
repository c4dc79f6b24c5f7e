"""What rounding is judged on: passages that the model spoke itself, or recordings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from .. import audio
from ..batch import MAX_ROWS, Batch, BatchRows
from ..server import HiggsAudioServer, SpeechRequest
from ..train.samples import IGNORED, ROW, Sample
from ..types import GenerationError, InputError, Prompt, Text
from ..vocabulary import draw_sentences, draw_texts
from ..voices import clips_in, reference
from .watching import Watch, unwatched

if TYPE_CHECKING:
    from ..defaults import Defaults
    from ..delay import DelayPattern
    from ..loading import Higgs


def draw(defaults: Defaults, count: int, seed: int, *, exclude: Collection[str] = ()) -> list[str]:
    """``count`` texts to speak: of the checkpoint's own words, or English sentences.

    Args:
        exclude: texts that are kept for something else.
    """
    if defaults.words:
        return draw_texts(defaults.words, count, seed, exclude=exclude)
    return draw_sentences(count, seed, exclude=exclude)


def spoken(
    higgs: Higgs,
    texts: Sequence[str],
    *,
    seed: int = 0,
    max_batch: int = MAX_ROWS,
    watch: Watch = unwatched,
) -> list[Sample]:
    """The model's own speech of ``texts``, drawn as it is by default, as it would hear it again.

    The rows are those that it made, with the prompt that led to them; speech that did not end by
    itself is left out. The same seed makes the same passages, whatever ``max_batch`` is.

    Args:
        seed: text number i is drawn with ``seed + i``.

    Raises:
        InputError: a text that cannot be said. GenerationError: no speech ended by itself.
    """
    server = HiggsAudioServer(higgs, voice_cache=None)
    batch = Batch(higgs.model, max_batch)
    samples = []
    try:
        streams = (
            (batch.join(*_asked(server, text, seed + i)), text) for i, text in enumerate(texts)
        )
        for stream, text, rows in watch(_together(streams, max_batch), "speaking", len(texts)):
            if stream.stop_reason == "eos":
                samples.append(heard(stream.prompt, rows, higgs.model.delay, text))
    finally:
        batch.close()
    if not samples:
        raise GenerationError(
            f"None of {len(texts)} texts was said to its end: the model cannot be calibrated on "
            "its own speech; give recordings."
        )
    return samples


def _asked(server: HiggsAudioServer, text: str, seed: int):
    """What leads to a text's speech, and how its rows are drawn."""
    job = server.start(SpeechRequest(text, seed=seed))
    job.close()  # it would decode what it says
    return job.prompt, job.params


def _together(
    streams: Iterable[tuple[BatchRows, str]], room: int
) -> Iterable[tuple[BatchRows, str, np.ndarray]]:
    """Rows ``[L, K]`` of streams of one batch, in their order."""
    waiting: list[tuple[BatchRows, str]] = []
    coming = iter(streams)
    while True:
        while len(waiting) < 2 * room and (one := next(coming, None)) is not None:
            waiting.append(one)
        if not waiting:
            return
        stream, text = waiting.pop(0)
        yield stream, text, np.stack(list(stream))


def recorded(higgs: Higgs, folder: Path, *, watch: Watch = unwatched) -> list[Sample]:
    """Recordings in ``folder``, ``NAME.wav`` with its words in ``NAME.txt``, as if the model's own.

    Raises:
        InputError: no folder, no sound file in it, or one that cannot be used.
    """
    clips = clips_in(folder)
    server = HiggsAudioServer(higgs, voice_cache=None)
    delay, rate = higgs.model.delay, higgs.codec.sample_rate
    samples = []
    for clip in watch(clips, "encoding", len(clips)):
        words = reference(clip).transcript
        prompt, _ = _asked(server, words, 0)
        codes = higgs.codec.encode(audio.read_reference(clip, rate))
        rows = np.array(delay.apply(mx.array(codes)))
        samples.append(heard(prompt, rows, delay, clip.name))
    higgs.codec.release_encoder()
    return samples


def heard(prompt: Prompt, rows: np.ndarray, delay: DelayPattern, source: str = "") -> Sample:
    """A prompt and the delayed rows ``[L, K]`` that follow it; these alone are scored."""
    before = [_positions(part, delay) for part in prompt]
    ids = np.concatenate([*(ids for ids, _ in before), np.full(len(rows), ROW)]).astype(np.int32)
    known = np.concatenate([*(rows for _, rows in before)])
    labels = np.concatenate([np.full(known.shape, IGNORED), scored_labels(rows, delay)])
    return Sample(
        ids,
        np.concatenate([known, rows]).astype(np.int16),
        np.full(len(ids), IGNORED, np.int32),
        labels.astype(np.int16),
        source,
    )


def _positions(part, delay: DelayPattern) -> tuple[np.ndarray, np.ndarray]:
    """Token ids, and delayed rows, of a part of a prompt."""
    if isinstance(part, Text):
        return np.array(part.ids), np.zeros((0, delay.num_codebooks))
    rows = np.array(delay.apply(part.codes))
    return np.full(len(rows), ROW), rows


def scored_labels(rows: np.ndarray, delay: DelayPattern) -> np.ndarray:
    """Labels ``[L, K]``: every code, and of each codebook the first EOS after its codes."""
    labels = np.where(rows < delay.codebook_size, rows, IGNORED)
    for book in range(delay.num_codebooks):
        ends = np.flatnonzero(rows[:, book] == delay.eos_id)[:1]
        labels[ends, book] = delay.eos_id
    return labels


def split(samples: Sequence[Sample], share: float) -> tuple[list[Sample], list[Sample]]:
    """To work on, and to hold out: the last ``share`` of them, at least one.

    Raises:
        InputError: fewer than two.
    """
    if len(samples) < 2:
        raise InputError(
            f"{len(samples)} passages are too few: one to calibrate on and one to hold out are "
            "the least."
        )
    held_out = min(len(samples) - 1, max(1, round(share * len(samples))))
    return list(samples[:-held_out]), list(samples[-held_out:])
