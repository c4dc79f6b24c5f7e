"""The codec on the bundled demo and on its random twin: parity figures, streaming, refusals.

``golden/codec_stages.safetensors`` holds what transformers makes of the demo codec.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_higgs
from mlx_higgs.codec import HiggsCodec
from mlx_higgs.codec import checkpoint as codec_checkpoint
from mlx_higgs.codec import codec as codec_module
from mlx_higgs.codec.checkpoint import TensorSource
from mlx_higgs.codec.config import CodecConfig
from mlx_higgs.types import InputError

DEMO = Path(mlx_higgs.__file__).parent / "demo" / "codec"
LOOKAHEAD = 9458  # samples, for strides 8, 5, 4, 2, 3


@pytest.fixture(scope="module")
def demo() -> HiggsCodec:
    return HiggsCodec.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    tensors = mx.load(str(Path(__file__).parent / "golden" / "codec_stages.safetensors"))
    assert isinstance(tensors, dict)
    return {name: np.array(array) for name, array in tensors.items()}


def parameters(module: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(module.parameters()))


def demo_tensors() -> dict[str, mx.array]:
    tensors = mx.load(str(DEMO / "model.safetensors"))
    assert isinstance(tensors, dict)
    return tensors


def random_tensors(seed: int) -> dict[str, mx.array]:
    """The demo's names and shapes under weights that let every frame reach every other.

    A trained codec's outermost taps are nearly zero, which would hide a missing frame.
    """
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, array in demo_tensors().items():
        value = rng.standard_normal(array.shape)
        if name.endswith("alpha"):
            value = rng.uniform(0.3, 1.3, array.shape) * np.where(value > -1.5, 1, -1)
        elif name.endswith("weight") and array.ndim > 1:
            value *= 0.8 / np.prod(array.shape[1:]) ** 0.5
        elif name.endswith("bias"):
            value *= 0.1
        tensors[name] = mx.array(value.astype(np.float32))
    last = "acoustic_decoder.conv2.weight"
    wave = HiggsCodec.from_tensors(tensors).decode(random_codes(seed, 4))
    tensors[last] = tensors[last] * (0.1 / mx.std(wave))
    return tensors


def random_codes(seed: int, frames: int, codebooks: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, codebooks))


@pytest.fixture
def random_codec(seed: int) -> HiggsCodec:
    return HiggsCodec.from_tensors(random_tensors(seed))


def test_sizes(demo: HiggsCodec) -> None:
    assert (demo.sample_rate, demo.hop, demo.frame_rate) == (24_000, 960, 25.0)
    assert (demo.num_codebooks, demo.codebook_size) == (8, 256)
    assert demo.lookahead_samples == LOOKAHEAD
    assert demo.context_frames == 10


# Parity with transformers


def test_decode_gives_the_references_samples(demo: HiggsCodec, golden: dict) -> None:
    wave = demo.decode(golden["codes"])
    assert wave.dtype == mx.float32
    # measured 3e-7 at a standard deviation of 0.1
    np.testing.assert_allclose(np.array(wave), golden["decoded"], atol=1e-5)


@pytest.mark.parametrize("mode", ["boson", "hf", "align"])
def test_encode_gives_the_references_codes(demo: HiggsCodec, golden: dict, mode: Any) -> None:
    codes = demo.encode(golden["wave"], length_mode=mode)
    assert codes.dtype == mx.int32
    assert np.array_equal(np.array(codes), golden[f"encoded_{mode}"])
    whole = demo.encode(golden["wave"][: 8 * 960], length_mode=mode)
    assert np.array_equal(np.array(whole), golden["encoded_whole"])


def test_semantic_features_are_the_references(demo: HiggsCodec, golden: dict) -> None:
    wave = codec_module.resample(golden["wave"], 24_000, 16_000)
    features = demo._loaded_encoder().semantic(mx.array(np.pad(wave, 160))[None, :, None])
    np.testing.assert_allclose(np.array(features[0]), golden["semantic"], atol=1e-4)


def test_length_table(demo: HiggsCodec) -> None:
    """Frames of every length: the halves agree but for 119 to 631 samples into a frame."""
    for length in range(960, 3 * 960):
        acoustic = demo._acoustic_frames(length)
        semantic = demo._semantic_frames(-(-2 * length // 3) + 320)
        frames, beyond = divmod(length, 960)
        assert acoustic == frames + (beyond >= 632)
        assert semantic == frames + (beyond >= 119)


@pytest.mark.parametrize("length", [960, 1078, 1079, 1591, 1592, 1919])
@pytest.mark.parametrize("mode", ["boson", "hf", "align"])
def test_encode_makes_as_many_frames_as_the_table_says(
    demo: HiggsCodec, length: int, mode: Any
) -> None:
    expected = 1 if length < 1079 and not (mode == "align" and length > 960) else 2
    assert demo.encode(np.zeros(length, np.float32), length_mode=mode).shape == (expected, 8)


# Streaming


def stream(codec: HiggsCodec, codes: np.ndarray, sizes: Iterable[int]) -> np.ndarray:
    decoder, pieces, start = codec.decoder(), [], 0
    for size in sizes:
        pieces.append(decoder.push(codes[start : start + size]))
        start += size
        expected = max(0, min(start, len(codes)) * 960 - LOOKAHEAD)
        assert sum(piece.size for piece in pieces) == expected
    assert start >= len(codes)
    return np.array(mx.concatenate([*pieces, decoder.finish()]))


def test_streaming_is_bit_equal_to_decode(random_codec: HiggsCodec, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = random_codes(seed, int(rng.integers(26, 31)))
    whole = np.array(random_codec.decode(codes))
    for size in (1, 12, 25):
        assert np.array_equal(stream(random_codec, codes, [size] * 40), whole)
    sizes = [*rng.integers(0, 9, 10).tolist(), len(codes)]
    assert np.array_equal(stream(random_codec, codes, sizes), whole)


@pytest.mark.parametrize("frames", [1, 2, 9, 10, 11, 15])
def test_short_clips_stream_bit_equal(random_codec: HiggsCodec, frames: int, seed: int) -> None:
    codes = random_codes(seed, frames)
    whole = np.array(random_codec.decode(codes))
    assert whole.shape == (frames * 960,)
    assert np.array_equal(stream(random_codec, codes, [1] * frames), whole)


def test_decode_is_the_plain_forward_pass(random_codec: HiggsCodec, seed: int) -> None:
    codes = random_codes(seed, 13)
    plain = random_codec._decoder(mx.array(codes)[None])[0]
    # measured 0.0 with MLX's CPU products; other kernels round by the number of rows
    np.testing.assert_allclose(np.array(random_codec.decode(codes)), np.array(plain), atol=1e-5)


def test_memory_does_not_grow_with_the_clip(random_codec: HiggsCodec, seed: int) -> None:
    def peak(frames: int) -> int:
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(random_codec.decode(random_codes(seed, frames)))
        return mx.get_peak_memory() - before - 2 * frames * 960 * 4  # its pieces and the result

    assert peak(40) < 1.25 * peak(16)


def test_windows_need_ten_frames_on_either_side(random_codec: HiggsCodec, seed: int) -> None:
    codes = random_codes(seed, 26)
    whole = np.array(random_codec.decode(codes))

    def error(start: int, stop: int, **options: int) -> float:
        window = np.array(random_codec.decode_window(codes, start, stop, **options))
        return float(np.abs(window - whole[start * 960 : stop * 960]).max())

    for start, stop in ((0, 3), (11, 14), (24, 26), (0, 26)):
        assert error(start, stop) <= 1e-5
    assert error(11, 14, context=9) > 1e-4  # measured 5e-4 and more: the bound is tight
    assert random_codec.decode_window(codes, 7, 7).shape == (0,)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 6)])
def test_windows_outside_the_clip(demo: HiggsCodec, start: int, stop: int) -> None:
    with pytest.raises(InputError, match="5 frames"):
        demo.decode_window(random_codes(0, 5), start, stop)


def test_nothing_decodes_to_nothing(demo: HiggsCodec) -> None:
    wave = demo.decode(np.zeros((0, 8), np.int32))
    assert wave.shape == (0,)
    assert wave.dtype == mx.float32
    assert demo.decoder().finish().shape == (0,)


def test_a_finished_decoder_takes_no_more(demo: HiggsCodec) -> None:
    decoder = demo.decoder()
    decoder.push(random_codes(0, 1))
    assert decoder.finish().shape == (960,)
    assert decoder.finish().shape == (0,)
    with pytest.raises(InputError, match="finished"):
        decoder.push(random_codes(0, 1))


def test_two_decoders_do_not_mix(demo: HiggsCodec) -> None:
    first, second = demo.decoder(), demo.decoder()
    codes = random_codes(1, 3)
    first.push(codes)
    second.push(codes[::-1])
    assert mx.array_equal(first.finish(), demo.decode(codes))


@pytest.mark.parametrize("codebooks", range(1, 8))
def test_fewer_codebooks_are_a_coarser_code(demo: HiggsCodec, codebooks: int) -> None:
    codes = random_codes(codebooks, 1)
    coarse = demo._decoder.features(mx.array(codes[:, :codebooks])[None])
    rest = [
        quantizer.decode(mx.array(codes[:, k]))
        for k, quantizer in enumerate(demo._decoder.quantizer.quantizers)
    ]
    expected = demo._decoder.fc2(sum(rest[1:codebooks], rest[0]))
    np.testing.assert_allclose(np.array(coarse[0]), np.array(expected), atol=1e-5)
    assert demo.decode(codes[:, :codebooks]).shape == (960,)


# Refusals


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.full((2, 8), 256), "0 to 255"),
        (np.full((2, 8), -1), "0 to 255"),
        (np.full((2, 8), 2**40), "0 to 255"),
        (np.zeros((2, 8), np.float32), "whole numbers"),
        (np.zeros((2, 8), bool), "whole numbers"),
        (np.zeros(8, int), r"\[T, K\]"),
        (np.zeros((1, 2, 8), int), r"\[T, K\]"),
        (np.zeros((2, 9), int), r"\[T, K\]"),
        (np.zeros((2, 0), int), r"\[T, K\]"),
        (mx.zeros((2, 8), mx.bfloat16), "whole numbers"),
    ],
)
def test_what_is_no_code(demo: HiggsCodec, codes: Any, message: str) -> None:
    for decode in (demo.decode, demo.decoder().push, lambda c: demo.decode_window(c, 0, 1)):
        with pytest.raises(InputError, match=message):
            decode(codes)


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros(959, np.float32), "at least 960"),
        (np.zeros(0, np.float32), "at least 960"),
        (np.zeros(60 * 24_000 + 1, np.float32), "up to 60 s"),
        (np.zeros((1, 2000), np.float32), "mono"),
        (np.zeros(2000, np.int16), "mono float"),
        (np.full(2000, np.nan, np.float32), "NaN"),
        (np.full(2000, 1e300), "NaN or infinite"),
    ],
)
def test_what_is_no_clip(demo: HiggsCodec, wave: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        demo.encode(wave)


def test_unknown_length_mode(demo: HiggsCodec) -> None:
    with pytest.raises(InputError, match="'pad'"):
        demo.encode(np.zeros(960, np.float32), length_mode="pad")  # type: ignore[arg-type]


def test_encode_takes_either_kind_of_array(demo: HiggsCodec, golden: dict) -> None:
    wave = golden["wave"][:2000]
    codes = demo.encode(wave)
    assert mx.array_equal(demo.encode(mx.array(wave)), codes)
    assert mx.array_equal(demo.encode(wave.astype(np.float64)), codes)


# Loading


def test_decoding_reads_no_encoder_weights() -> None:
    source = codec_checkpoint.as_transformers(
        codec_checkpoint.from_safetensors([DEMO / "model.safetensors"])
    )
    read: list[str] = []

    def spy(names: Iterable[str]) -> dict[str, mx.array]:
        read.extend(names := list(names))
        return source.read(names)

    codec = HiggsCodec(CodecConfig.from_shapes(source.shapes), TensorSource(source.shapes, spy))
    codec.decode(random_codes(0, 2))
    assert {name.split(".")[0] for name in read} == {"acoustic_decoder", "quantizer", "fc2"}
    read.clear()
    wave = np.zeros(2000, np.float32)
    codes = codec.encode(wave)
    encoder = {"acoustic_encoder", "semantic_model", "encoder_semantic", "fc"}
    assert {name.split(".")[0] for name in read} == encoder
    read.clear()
    codec.encode(wave)
    assert not read
    codec.release_encoder()
    assert codec._encoder is None
    assert mx.array_equal(codec.encode(wave), codes)
    assert read


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_files_compute_in_float32(dtype: mx.Dtype) -> None:
    half = {name: array.astype(dtype) for name, array in demo_tensors().items()}
    codec = HiggsCodec.from_tensors(half)
    widened = HiggsCodec.from_tensors({n: a.astype(mx.float32) for n, a in half.items()})
    for module in (codec._decoder, codec._loaded_encoder()):
        for name, array in parameters(module).items():
            assert array.dtype == mx.float32, name
    codes = random_codes(0, 3)
    assert mx.array_equal(codec.decode(codes), widened.decode(codes))


def test_both_backends_forms_agree(
    random_codec: HiggsCodec, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = random_codes(seed, 12)
    wave = np.random.default_rng(seed).standard_normal(4 * 960).astype(np.float32) * 0.1
    here, codes_here = random_codec.decode(codes), random_codec.encode(wave)
    monkeypatch.setattr("mlx_higgs.codec.layers.on_cpu", lambda: False)
    there, codes_there = random_codec.decode(codes), random_codec.encode(wave)
    np.testing.assert_allclose(np.array(there), np.array(here), atol=1e-5)
    # a frame may differ from the code on where two entries lie equally near
    same = (np.array(codes_there) == np.array(codes_here)).all(1)
    assert same.mean() >= 0.75


def test_save_then_load_is_the_same_codec(
    random_codec: HiggsCodec, tmp_path: Path, seed: int
) -> None:
    random_codec.save(tmp_path / "codec")
    again = HiggsCodec.from_pretrained(tmp_path / "codec")
    assert again.config == random_codec.config
    for ours, theirs in (
        (random_codec._decoder, again._decoder),
        (random_codec._loaded_encoder(), again._loaded_encoder()),
    ):
        loaded = parameters(theirs)
        for name, array in parameters(ours).items():
            assert mx.array_equal(array, loaded.pop(name)), name
        assert not loaded


def test_a_codec_inside_another_models_file(demo: HiggsCodec, tmp_path: Path) -> None:
    bundled = {f"tied.codec.{name}": array for name, array in demo_tensors().items()}
    bundled["embed_tokens.weight"] = mx.zeros((2, 2))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), bundled)
    declared = {"semantic_model_config": {"num_attention_heads": 2}}
    codec = HiggsCodec.from_files([tmp_path / "model.safetensors"], "tied.codec.", declared)
    assert codec.config == demo.config
    codes, wave = random_codes(0, 2), np.sin(np.arange(2000, dtype=np.float32))
    assert mx.array_equal(codec.decode(codes), demo.decode(codes))
    assert mx.array_equal(codec.encode(wave), demo.encode(wave))
