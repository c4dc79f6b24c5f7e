"""What only a GPU can show: Metal and CUDA give what the CPU gives, and streaming stays exact."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from tiny_model import tiny_model

from mlx_higgs.codec import HiggsCodec
from mlx_higgs.frames import Rows
from mlx_higgs.memory import bounded
from mlx_higgs.sampling import SamplingParams
from mlx_higgs.sources import DEMO
from mlx_higgs.step import fastest_loop
from mlx_higgs.types import Text

pytestmark = pytest.mark.skipif(
    mx.default_device().type == mx.cpu, reason="MLX has no GPU here (Metal or CUDA)"
)


def on(device: mx.DeviceType, work):
    """Run ``work`` with another default device: it picks the form of the convolutions."""
    before = mx.default_device()
    mx.set_default_device(mx.Device(device))
    try:
        return work()
    finally:
        mx.set_default_device(before)


def test_the_codec_equals_the_cpus(seed: int):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (20, 8)).astype(np.int32)
    wave = rng.normal(0, 0.1, 9600).astype(np.float32)

    def both_ways():
        codec = HiggsCodec.from_pretrained(DEMO / "codec")
        return np.array(codec.decode(codes)), np.array(codec.encode(wave))

    cpu, gpu = on(mx.cpu, both_ways), on(mx.gpu, both_ways)
    assert np.abs(cpu[0] - gpu[0]).max() <= 1e-3  # TF32 on CUDA; Metal should be near 1e-5
    assert (cpu[1] == gpu[1]).mean() >= 0.95


@pytest.mark.parametrize("chunk", [1, 5, 12])
def test_streaming_is_bit_equal_on_the_gpu(seed: int, chunk: int):
    codes = np.random.default_rng(seed).integers(0, 256, (30, 8)).astype(np.int32)
    codec = HiggsCodec.from_pretrained(DEMO / "codec")
    decoder = codec.decoder()
    pieces = [decoder.push(codes[i : i + chunk]) for i in range(0, 30, chunk)]
    streamed = mx.concatenate([*pieces, decoder.finish()])
    assert mx.array_equal(streamed, codec.decode(codes))


def test_the_talker_equals_the_cpus(seed: int):
    def logits():
        model = tiny_model(seed)
        x, is_audio = model.embed_prompt([Text([1, 2, 3])])
        return np.array(model.audio_logits(model.hidden(x, model.make_cache(), is_audio)))

    assert np.abs(on(mx.cpu, logits) - on(mx.gpu, logits)).max() <= 5e-2  # TF32 on CUDA


def test_the_faster_loop_is_found_once(seed: int):
    model = tiny_model(seed)
    loop = fastest_loop(model)
    assert loop in ("async", "compiled")
    assert fastest_loop(model) == loop


def test_the_compiled_loop_makes_the_rows_of_the_eager_one(seed: int):
    """Greedy: the two add in another order, so a draw could fall on the other side of a border."""
    model, params = tiny_model(seed), SamplingParams(0.0, ras_window=0, max_frames=60, seed=1)
    made = [
        np.stack(list(Rows(model, [Text([1, 2, 3])], params, loop=loop)))
        for loop in ("eager", "compiled")
    ]
    assert np.array_equal(*made)


def test_limits_are_those_from_before_once_speech_is_made():
    before = mx.set_cache_limit(1 << 30)
    try:
        with bounded():
            pass
        assert mx.set_cache_limit(1 << 30) == 1 << 30
    finally:
        mx.set_cache_limit(before)
