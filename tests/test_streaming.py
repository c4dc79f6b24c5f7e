"""Laws of the pipeline: chunks join to the whole, and silence ends a stream."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_higgs.delay import DelayPattern
from mlx_higgs.streaming import SilenceMeter, SpeechStream

HOP, RATE, PATTERN = 4, 100, DelayPattern(3, 50, 51, edge_frames=1)


class EchoCodec:
    """A frame sounds as four samples of its first code; two frames are held back to the end."""

    hop, sample_rate = HOP, RATE

    def decoder(self):
        return self._Decoder()

    class _Decoder:
        lookahead_samples = 2 * HOP

        def __init__(self):
            self._held = mx.zeros(0)

        def push(self, codes: mx.array) -> mx.array:
            samples = mx.repeat(codes[:, 0].astype(mx.float32), HOP)
            samples = mx.concatenate([self._held, samples])
            self._held = samples[-2 * HOP :]
            return samples[: -2 * HOP]

        def finish(self) -> mx.array:
            return self._held


class FixedRows:
    stop_reason = "eos"

    def __init__(self, codes: np.ndarray):
        self._rows = np.array(PATTERN.apply(mx.array(codes)))

    def __iter__(self):
        return iter(self._rows)

    def __len__(self):
        return len(self._rows)


@pytest.mark.parametrize("chunk_frames", [1, 3, 7, 100])
def test_chunks_join_to_the_whole(seed: int, chunk_frames: int):
    codes = np.random.default_rng(seed).integers(1, 50, (23, 3)).astype(np.int32)
    rows = FixedRows(codes)
    stream = SpeechStream(rows, EchoCodec(), PATTERN, chunk_frames=chunk_frames)
    counts: list[int] = []
    stream.on_row = counts.append
    chunks = list(stream)
    assert all(len(chunk) for chunk in chunks)
    assert np.array_equal(np.concatenate(chunks), np.repeat(codes[:, 0], HOP))
    assert np.array_equal(stream.codes, codes)
    assert stream.stop_reason == "eos"
    assert stream.num_rows == len(rows) == counts[-1]


def test_the_first_chunk_needs_no_more_rows_than_it_must(seed: int):
    codes = np.random.default_rng(seed).integers(1, 50, (23, 3)).astype(np.int32)
    stream = SpeechStream(FixedRows(codes), EchoCodec(), PATTERN, chunk_frames=3)
    next(iter(stream))
    assert stream.num_rows == 1 + 2 + 2 + 3  # the BOS row, the delay, the look-ahead, the chunk


def test_every_chunk_but_the_last_is_a_full_one(seed: int):
    codes = np.random.default_rng(seed).integers(1, 50, (23, 3)).astype(np.int32)
    chunks = list(SpeechStream(FixedRows(codes), EchoCodec(), PATTERN, chunk_frames=5))
    assert [len(chunk) for chunk in chunks] == [5 * HOP] * 4 + [1 * HOP, 2 * HOP]


def test_silence_ends_a_stream_unless_allowed():
    codes = np.zeros((60, 3), np.int32)
    codes[:10] = 7
    stream = SpeechStream(FixedRows(codes), EchoCodec(), PATTERN, chunk_frames=5, max_silence=1.0)
    wave = np.concatenate(list(stream))
    assert stream.stop_reason == "silence"
    assert 10 * HOP + 1.0 * RATE <= len(wave) <= 10 * HOP + 1.0 * RATE + 5 * HOP
    stream = SpeechStream(FixedRows(codes), EchoCodec(), PATTERN, max_silence=0)
    assert len(np.concatenate(list(stream))) == 60 * HOP
    assert stream.stop_reason == "eos"


def test_the_meter_starts_again_after_a_sound():
    meter = SilenceMeter(10, RATE, 1.0)
    for _ in range(3):
        meter.hear(np.zeros(95, np.float32))
        assert not meter.exceeded
        meter.hear(np.ones(15, np.float32))
    meter.hear(np.full(110, 1e-4, np.float32))
    assert meter.exceeded
