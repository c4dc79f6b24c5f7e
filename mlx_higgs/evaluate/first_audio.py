"""How long a request waits: its prompt, its first row and its first sound, voice known or not."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

import mlx.core as mx
import numpy as np

from ..codec.codec import HiggsCodec
from ..delivery import Delivery
from ..frames import Rows, prefill
from ..models.base import SpeechModel
from ..models.cache import KVCache, length
from ..prefix import Prefix
from ..streaming import SpeechStream
from ..types import FRAME_RATE, Audio, Prompt, Text
from .rounds import Contender, Timing, ratio, take_turns

INTRODUCTION, TRANSCRIPT, SENTENCE = 40, 35, 40  # tokens: system turn, clip's words, what to say
CHUNK = 25  # frames, as the server streams by default
ROW_ROUNDS = 4


@dataclass(frozen=True)
class Wait:
    """Seconds until a row, and a chunk of sound, are there."""

    first_row: float
    first_audio: float


@dataclass(frozen=True)
class FirstAudio:
    """Attributes:
    prompt: positions of the whole prompt; voice: of those that a known voice saves.
    prefill_seconds: of the whole prompt.
    row_ratio, row_cpu_ratio: time and CPU time to the first row, known voice over unknown.
    """

    prompt: int
    voice: int
    chunk_frames: int
    prefill_seconds: float
    uncached: Wait
    cached: Wait
    row_ratio: float
    row_cpu_ratio: float


def voice_prompt(model: SpeechModel, seconds: float, seed: int) -> Prompt:
    """What comes before a clip and its words, the clip, a sentence; all drawn at random."""
    rng, pattern = np.random.default_rng(seed), model.delay
    frames = max(1, round(seconds * FRAME_RATE))
    codes = rng.integers(0, pattern.codebook_size, (frames, pattern.num_codebooks))

    def text(tokens: int) -> Text:
        return Text(rng.integers(0, model.args.vocab_size, tokens).tolist())

    clip = Audio(mx.array(codes.astype(np.int32)))
    return [text(INTRODUCTION + TRANSCRIPT), clip, text(SENTENCE)]


def measure_first_audio(
    model: SpeechModel, codec: HiggsCodec, seconds: float, seed: int, chunk: int = CHUNK
) -> FirstAudio:
    """Serve one request both ways in turn, each once before it counts.

    Args:
        model: endless (see ``contenders``), so that a chunk comes.
        seconds: of the reference clip.
    """
    prompt = voice_prompt(model, seconds, seed)
    known = Prefix(2, prefill(model, prompt[:2]))
    _compute(known.cache)
    started = time.perf_counter()
    _compute(cache := prefill(model, prompt))
    spent = time.perf_counter() - started
    ways = {"uncached": None, "cached": known}

    def until(last: Callable[[Rows], None], rounds: int) -> dict[str, Timing]:
        def work(prefix: Prefix | None) -> None:
            params = replace(model.SAMPLING, seed=seed)
            last(Rows(model, prompt, params, prefix=prefix, max_identical_rows=0))
            mx.synchronize()

        turns = [Contender(n, lambda _, prefix=p: work(prefix)) for n, p in ways.items()]
        return take_turns(turns, 1, rounds)

    def sound(rows: Rows) -> None:
        delivery = Delivery(chunk, chunk, chunk)
        next(iter(SpeechStream(rows, codec, model.delay, delivery, max_silence=0)))

    def row_made(rows: Rows) -> None:
        """The first that is computed: rows of BOS before it need no model."""
        for _ in islice(rows, model.delay.edge_frames + 1):
            pass

    row, audio = until(row_made, ROW_ROUNDS), until(sound, 1)
    waits = {name: Wait(row[name].ms / 1000, audio[name].ms / 1000) for name in ways}
    return FirstAudio(
        prompt=length(cache),
        voice=known.positions,
        chunk_frames=chunk,
        prefill_seconds=spent,
        row_ratio=ratio(row["cached"].wall, row["uncached"].wall),
        row_cpu_ratio=ratio(row["cached"].cpu, row["uncached"].cpu),
        **waits,
    )


def _compute(cache: list[KVCache]) -> None:
    mx.eval([(layer.keys, layer.values) for layer in cache if layer.keys is not None])
