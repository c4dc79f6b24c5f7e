"""Laws of the pipeline: chunks join to the whole, silence ends a stream, closing stops the work.

As a program, the first law over every length: ``python tests/test_streaming.py``.
"""

from __future__ import annotations

import gc
import itertools
import random
import secrets
import threading

import mlx.core as mx
import numpy as np
import pytest

from mlx_higgs.codec import HiggsCodec
from mlx_higgs.delay import DelayPattern
from mlx_higgs.delivery import EXACT, LOW, WHOLE, Delivery
from mlx_higgs.server import SpeechRequest
from mlx_higgs.sources import DEMO
from mlx_higgs.streaming import SilenceMeter, SpeechStream
from mlx_higgs.types import GenerationError

HOP, RATE, PATTERN = 4, 100, DelayPattern(3, 50, 51, edge_frames=1)
V2 = DelayPattern(8, 256, 257, edge_frames=1)
FADE = 240  # samples: 10 ms
CHUNKS = (1, 5, 12, 25)
LONGEST = 130  # frames
TEXT = {"target_text": "one two three four", "seed": 2, "max_new_frames": 28}


class EchoCodec:
    """A frame sounds as four samples of its first code; two frames are held back to the end."""

    hop, sample_rate = HOP, RATE

    def decoder(self):
        return self._Decoder()

    class _Decoder:
        lookahead_samples = 2 * HOP

        def __init__(self):
            self._held = np.zeros(0, np.float32)

        def push(self, codes: np.ndarray) -> np.ndarray:
            samples = np.repeat(codes[:, 0].astype(np.float32), HOP)
            samples = np.concatenate([self._held, samples])
            self._held = samples[-2 * HOP :]
            return samples[: -2 * HOP]

        def finish(self) -> np.ndarray:
            return self._held


class FixedRows:
    """Rows that are there already; ``made`` counts those that were asked for."""

    def __init__(self, codes: np.ndarray, pattern: DelayPattern = PATTERN):
        self._rows = np.array(pattern.apply(mx.array(codes)))
        self.stop_reason, self.made, self._closed = None, 0, False

    def __iter__(self):
        for row in self._rows:
            if self._closed:
                return
            self.made += 1
            yield row
        self.stop_reason = "eos"

    def __len__(self):
        return len(self._rows)

    def close(self) -> None:
        self._closed = True


def even(frames: int) -> Delivery:
    return Delivery(frames, frames, frames)


def echo(codes: np.ndarray, delivery: Delivery, **options) -> SpeechStream:
    return SpeechStream(FixedRows(codes), EchoCodec(), PATTERN, delivery, **options)


def drawn(seed: int, frames: int = 23) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 50, (frames, 3)).astype(np.int32)


def narrow_codec(seed: int) -> HiggsCodec:
    """The real topology, a sixth as wide, of weights that let every frame reach every other."""
    rng, tensors = np.random.default_rng(seed), {}
    for name, array in mx.load(str(DEMO / "codec" / "model.safetensors")).items():
        shape = list(array.shape)
        if name.startswith("acoustic_decoder."):
            kept = 1 if name == "acoustic_decoder.conv1.weight" else None  # reads the features
            shape = [n if i == kept else max(1, n // 6) for i, n in enumerate(shape[:2])]
            shape += array.shape[2:]
        value = rng.standard_normal(shape)
        if name.endswith("alpha"):
            value = rng.uniform(0.3, 1.3, shape)
        elif name.endswith("weight") and len(shape) > 1:
            value *= 0.8 / np.prod(shape[1:]) ** 0.5
        tensors[name] = mx.array(value.astype(np.float32))
    last = "acoustic_decoder.conv2.weight"
    wave = HiggsCodec.from_tensors(tensors).decode(some_codes(seed, 4))
    tensors[last] = tensors[last] * (0.1 / mx.std(wave))
    return HiggsCodec.from_tensors(tensors)


def some_codes(seed: int, frames: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 8)).astype(np.int32)


@pytest.fixture
def codec(seed: int) -> HiggsCodec:
    return narrow_codec(seed)


def streamed(codec: HiggsCodec, codes: np.ndarray, delivery: Delivery) -> list[np.ndarray]:
    return list(SpeechStream(FixedRows(codes, V2), codec, V2, delivery, max_silence=0))


def difference(
    codec: HiggsCodec, codes: np.ndarray, delivery: Delivery, whole: np.ndarray | None = None
) -> np.ndarray:
    """From the whole decode, sample by sample."""
    whole = np.array(codec.decode(codes)) if whole is None else whole
    return np.abs(np.concatenate(streamed(codec, codes, delivery)) - whole)


# -- exact ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("delivery", [*map(even, CHUNKS), EXACT, WHOLE])
def test_chunks_join_to_the_whole(seed: int, delivery: Delivery):
    every = drawn(seed, LONGEST)
    for frames in range(1, LONGEST + 1):
        codes = every[:frames]
        stream = echo(codes, delivery, max_silence=0)
        stream.on_row = (counts := []).append
        chunks = list(stream)
        assert all(len(chunk) for chunk in chunks)
        assert np.array_equal(np.concatenate(chunks), np.repeat(codes[:, 0], HOP))
        assert np.array_equal(stream.codes, codes)
        assert stream.stop_reason == "eos"
        assert stream.num_rows == frames + 4 == counts[-1]


def test_to_the_bit_with_the_real_topology(seed: int, codec: HiggsCodec):
    """Every length: see ``main``."""
    codes = some_codes(seed, LONGEST)
    for frames in {1, 10, 11, *random.Random(seed).sample(range(12, 50), 1)}:
        whole = np.array(codec.decode(codes[:frames]))
        for delivery in map(even, CHUNKS):
            assert np.array_equal(np.concatenate(streamed(codec, codes[:frames], delivery)), whole)


def test_the_first_chunk_needs_no_more_rows_than_it_must(seed: int, codec: HiggsCodec):
    stream = echo(drawn(seed), even(3))
    next(iter(stream))
    assert stream.num_rows == 1 + 2 + 2 + 3  # the BOS row, the delay, the look-ahead, the chunk
    for first in (1, 5):
        rows = FixedRows(some_codes(seed, 40), V2)
        chunk = next(iter(SpeechStream(rows, codec, V2, Delivery(first))))
        assert rows.made == 8 + 10 + first
        assert first * 960 <= len(chunk) < (first + 1) * 960


def test_every_chunk_but_the_last_is_a_full_one(seed: int):
    chunks = list(echo(drawn(seed), Delivery(2, 3, 6)))
    assert [len(chunk) for chunk in chunks] == [n * HOP for n in (2, 3, 6, 6, 6)]


def test_all_at_once_is_one_chunk(seed: int):
    assert [len(chunk) for chunk in echo(drawn(seed), WHOLE)] == [23 * HOP]


# -- windowed and early: approximate --------------------------------------------------------------


def test_windows_with_all_their_neighbours_are_equal_to_rounding(seed: int, codec: HiggsCodec):
    codes = some_codes(seed, 33)
    whole = np.array(codec.decode(codes))
    scale = np.abs(whole).max()
    for chunk, left, right in ((7, 10, 10), (25, 25, None)):
        delivery = Delivery(1, chunk, chunk, left=left, right=right)
        error = difference(codec, codes, delivery, whole).max()
        assert error < 1e-4 * scale  # measured: 3e-6
    for left, right in ((9, 10), (10, 9), (25, 4)):  # one frame fewer, and vLLM's: seen
        delivery = Delivery(1, 7, 7, left=left, right=right)
        assert difference(codec, codes, delivery, whole).max() > 1e-4 * scale


def test_a_window_comes_when_its_neighbours_are_there(seed: int, codec: HiggsCodec):
    rows = FixedRows(some_codes(seed, 40), V2)
    delivery = Delivery(1, 25, 25, left=25, right=4)
    chunk = next(iter(SpeechStream(rows, codec, V2, delivery)))
    assert (rows.made, len(chunk)) == (8 + 4 + 1, 960)


def test_low_latency_is_exact_after_its_first_chunk(seed: int, codec: HiggsCodec):
    codes = some_codes(seed, 40)
    rows = FixedRows(codes, V2)
    first = next(iter(SpeechStream(rows, codec, V2, LOW)))
    assert rows.made == 8 + LOW.right + LOW.first
    assert len(first) == LOW.first * 960
    error = difference(codec, codes, LOW)
    assert error[: len(first)].max() > 0
    assert error[len(first) + FADE :].max() == 0
    cut = Delivery(LOW.first, LOW.first, LOW.first, left=10, right=0)
    assert error.mean() < difference(codec, codes, cut)[: len(first)].mean()


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 12, 17])
def test_low_latency_loses_no_sample(seed: int, codec: HiggsCodec, frames: int):
    error = difference(codec, some_codes(seed, frames), LOW)
    assert len(error) == frames * 960
    assert error[LOW.first * 960 + FADE :].max(initial=0) == 0
    if frames < LOW.first + LOW.right:  # it ended before the first chunk was due
        assert error.max() == 0


def test_the_seam_is_no_jump(seed: int, codec: HiggsCodec):
    """The first sample after the guess is nearly the guess's own."""
    codes = some_codes(seed, 40)
    chunks = streamed(codec, codes, LOW)
    known = codes[: LOW.first + LOW.right]
    guess = np.concatenate([known, np.repeat(known[-1:], 10, axis=0)])
    guess = np.array(codec.decode_window(guess, 0, LOW.first + 1, context=30))
    seam, exact = LOW.first * 960, np.array(codec.decode(codes))
    assert np.allclose(chunks[0], guess[:seam], atol=1e-5)
    share = (np.arange(FADE) + 0.5) / FADE
    mixed = share * exact[seam : seam + FADE] + (1 - share) * guess[seam : seam + FADE]
    assert np.allclose(chunks[1][:FADE], mixed, atol=1e-5)


# -- silence --------------------------------------------------------------------------------------


def test_silence_ends_a_stream_unless_allowed():
    codes = np.zeros((60, 3), np.int32)
    codes[:10] = 7
    for delivery in (even(1), even(5), EXACT, WHOLE):  # the same place, however it is cut
        stream = echo(codes, delivery, max_silence=1.0)
        assert len(np.concatenate(list(stream))) == 10 * HOP + 1.0 * RATE
        assert stream.stop_reason == "silence"
        assert np.array_equal(stream.codes, codes[:35])
    stream = echo(codes, even(5), max_silence=0)
    assert len(np.concatenate(list(stream))) == 60 * HOP
    assert stream.stop_reason == "eos"


def test_the_meter_starts_again_after_a_sound():
    meter = SilenceMeter(10, RATE, 1.0)
    for _ in range(3):
        assert meter.hear(np.zeros(95, np.float32)) == 95
        assert meter.hear(np.ones(15, np.float32)) == 15
    assert not meter.exceeded
    assert meter.hear(np.full(130, 1e-4, np.float32)) == 100
    assert meter.exceeded


# -- closing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("delivery", [even(5), WHOLE])
def test_closed_by_another_no_row_and_no_chunk_more(seed: int, delivery: Delivery):
    rows = FixedRows(drawn(seed))
    stream = SpeechStream(rows, EchoCodec(), PATTERN, delivery)

    def told(count: int) -> None:
        if count == 12:
            threading.Thread(target=stream.close).start()
            while not stream._closed:
                pass

    stream.on_row = told
    assert sum(map(len, stream)) <= 5 * HOP
    assert rows.made == 12
    assert stream.stop_reason is None


def test_closed_while_it_decodes_no_frame_more(seed: int):
    codec, pushed = EchoCodec(), []
    stream = SpeechStream(FixedRows(drawn(seed)), codec, PATTERN, WHOLE)
    assert stream._stage is not None
    decoder = stream._stage._decoder
    push = decoder.push

    def closing(codes):
        pushed.append(len(codes))
        if len(pushed) == 3:
            stream.close()
        return push(codes)

    decoder.push = closing
    assert list(stream) == []
    assert pushed == [1, 1, 1]


def test_closing_the_generator_frees_its_memory(server):
    for left in ("closed", "dropped"):
        list(server.generate_stream(**TEXT))  # the voice is known from here on
        gc.collect()
        gc.disable()
        try:
            before = mx.get_active_memory()
            chunks = server.generate_stream(**TEXT)
            assert len(next(chunks).pcm)
            assert mx.get_active_memory() > before
            if left == "closed":
                chunks.close()
                assert list(chunks) == []
            del chunks
            assert mx.get_active_memory() == before
        finally:
            gc.enable()


def test_a_job_closed_between_chunks_frees_its_memory(server):
    list(server.generate_stream(**TEXT))
    gc.collect()
    before = mx.get_active_memory()
    job = server.start(SpeechRequest(**TEXT), even(1))
    chunks = iter(job)
    next(chunks)
    rows = job.stream.num_rows
    job.close()
    assert mx.get_active_memory() <= before
    assert list(chunks) == []
    assert job.stream.num_rows == rows
    assert job.stop_reason is None


def test_a_job_closed_by_another_thread_ends_within_a_frame(server):
    job = server.start(SpeechRequest(**TEXT), even(25))
    closer = threading.Thread(target=job.close)

    def told(count: int) -> None:
        if count == 9:
            closer.start()
            closer.join()

    job.on_row(told)
    assert list(job) == []
    assert job.stream.num_rows == 9
    assert job.stop_reason is None
    with pytest.raises(GenerationError, match="given up"):
        job.speech(np.zeros(0, np.float32))


# -- jobs -----------------------------------------------------------------------------------------


def test_a_job_tells_its_seed_its_end_and_its_first_sound(server):
    whole = server.generate(**TEXT)
    job = server.start(SpeechRequest(**TEXT), EXACT)
    assert (job.seed, job.stop_reason, job.first_audio) == (2, None, None)
    chunks = []
    for chunk in job:
        assert job.first_audio > 0
        chunks.append(chunk)
    assert chunks[0].frames == 8 + 10 + EXACT.first
    assert job.stop_reason == whole.stop_reason == "length"
    speech = job.speech(np.concatenate([chunk.pcm for chunk in chunks]))
    assert np.array_equal(speech.pcm, whole.pcm)
    assert np.array_equal(speech.codes, whole.codes)
    with pytest.raises(RuntimeError, match="once"):
        iter(job)


def test_latency_and_deliveries_of_the_server(server):
    whole = server.generate(**TEXT).pcm

    def stream(**options):
        return [chunk.pcm for chunk in server.generate_stream(**TEXT, **options)]

    for exact in ({}, {"chunk_ms": 400}):
        assert np.array_equal(np.concatenate(stream(**exact)), whole)
    assert len(stream(delivery=WHOLE)) == 1
    low = stream(latency="low")
    first = len(low[0])
    assert first == LOW.first * 960
    assert np.array_equal(np.concatenate(low)[first + FADE :], whole[first + FADE :])


def main() -> None:
    """Streamed against whole, for every length and chunk size."""
    seed = secrets.randbelow(2**31)
    codec, codes = narrow_codec(seed), some_codes(seed, LONGEST)
    worst = 0.0
    for frames in range(1, LONGEST + 1):
        whole = np.array(codec.decode(codes[:frames]))
        for chunk in CHUNKS:
            wave = np.concatenate(streamed(codec, codes[:frames], even(chunk)))
            worst = max(worst, float(np.abs(wave - whole).max()))
    lengths = len(list(itertools.product(range(LONGEST), CHUNKS)))
    print(f"{lengths} streams (seed {seed}): largest difference from the whole decode {worst}")


if __name__ == "__main__":
    main()
