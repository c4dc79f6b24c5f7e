"""The codec against transformers, on random small codecs of a fresh seed.

transformers resamples with torchaudio, whose wheels need CUDA; its formula stands in for it
here, in float64 (tests/test_resample.py holds figures of the real one).
"""

from __future__ import annotations

import importlib
import io
import math
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_higgs.codec import HiggsCodec
from mlx_higgs.codec.pth import read_pth
from mlx_higgs.types import CheckpointError

torch = pytest.importorskip("torch", reason="the reference gates need torch")
pytest.importorskip("transformers", reason="the reference gates need transformers")


def torchaudio_resample(wave: Any, from_rate: int, to_rate: int) -> Any:
    """torchaudio.functional.resample with its defaults, from its formula."""
    divisor = math.gcd(from_rate, to_rate)
    orig, new = from_rate // divisor, to_rate // divisor
    base = min(orig, new) * 0.99
    width = math.ceil(6 * orig / base)
    index = torch.arange(-width, width + orig, dtype=torch.float64) / orig
    t = torch.arange(0, -new, -1, dtype=torch.float64)[:, None] / new + index
    t = (t * base).clamp(-6, 6)
    kernel = torch.sinc(t) * torch.cos(t * math.pi / 12) ** 2 * base / orig
    padded = torch.nn.functional.pad(wave.double(), (width, width + orig))
    out = torch.nn.functional.conv1d(padded, kernel[:, None], stride=orig)
    out = out.transpose(1, 2).reshape(*wave.shape[:2], -1)
    return out[..., : math.ceil(new * wave.shape[-1] / orig)].to(wave.dtype)


def import_modeling() -> ModuleType:
    """transformers' codec, which imports torchaudio by name."""
    name = "transformers.models.higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer"
    stand_in = ModuleType("torchaudio")
    stand_in.functional = SimpleNamespace(resample=torchaudio_resample)  # type: ignore[attr-defined]
    real = sys.modules.get("torchaudio")
    sys.modules["torchaudio"] = stand_in
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules["torchaudio"]
        if real is not None:
            sys.modules["torchaudio"] = real


modeling: Any = import_modeling()


@dataclass
class Pair:
    """The same random codec twice."""

    theirs: Any
    ours: HiggsCodec
    folder: Path
    seed: int

    def wave(self, samples: int) -> np.ndarray:
        """A tone under noise, which no two frames share."""
        rng = np.random.default_rng(self.seed + samples)
        tone = np.sin(np.arange(samples) * rng.uniform(0.01, 0.2))
        return (0.2 * tone + 0.05 * rng.standard_normal(samples)).astype(np.float32)

    def codes(self, frames: int) -> np.ndarray:
        rng = np.random.default_rng(self.seed + frames)
        return rng.integers(0, self.ours.codebook_size, (frames, self.ours.num_codebooks))

    def their_decode(self, codes: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.theirs.decode(torch.tensor(codes.T[None])).audio_values[0, 0].numpy()


def random_config(rng: np.random.Generator) -> Any:
    size, books = int(rng.choice([32, 64])), int(rng.integers(2, 5))
    width, strides = 16 * int(rng.integers(1, 3)), [8, 5, 4, 2, 3]
    return modeling.HiggsAudioV2TokenizerConfig(
        codebook_size=size,
        codebook_dim=int(rng.integers(4, 9)),
        target_bandwidths=[books * 25 * math.log2(size) / 1000 + 1e-6],
        acoustic_model_config={
            "model_type": "dac",
            "encoder_hidden_size": int(rng.integers(2, 5)),
            "decoder_hidden_size": 32 * int(rng.integers(1, 3)),
            "hidden_size": int(rng.integers(6, 20)),
            "downsampling_ratios": strides,
            "upsampling_ratios": strides,
        },
        semantic_model_config={
            "model_type": "hubert",
            "hidden_size": width,
            "num_hidden_layers": int(rng.integers(1, 4)),
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "conv_dim": [8] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "mask_time_prob": 0.0,
        },
    )


def fill(model: Any) -> None:
    """Random weights that keep the signal's scale; every bias, norm and codebook counts."""
    for name, tensor in model.state_dict().items():
        fan = math.prod(tensor.shape[1:]) or 1
        if name.endswith("alpha"):
            sign = torch.where(torch.rand_like(tensor) < 0.06, -1.0, 1.0)
            value = sign * (0.3 + torch.rand_like(tensor))
        elif name.endswith(("original0", "layer_norm.weight")):
            value = 0.5 + torch.rand_like(tensor)
        elif name.endswith("bias"):
            value = 0.1 * torch.randn_like(tensor)
        elif name.endswith(("embed", "cluster_size", "inited", "embed_avg")):
            value = torch.randn_like(tensor)
        else:
            value = torch.randn_like(tensor) * (0.7 / fan**0.5)
        tensor.copy_(value)


@pytest.fixture
def pair(seed: int, tmp_path: Path) -> Pair:
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    theirs = modeling.HiggsAudioV2TokenizerModel(random_config(np.random.default_rng(seed))).eval()
    with torch.no_grad():
        fill(theirs)
        codes = torch.randint(0, theirs.config.codebook_size, (1, theirs.config.num_quantizers, 6))
        last = theirs.acoustic_decoder.conv2
        scale = 0.1 / theirs.decode(codes).audio_values.std()
        last.weight *= scale
        last.bias *= scale
    folder = tmp_path / "codec"
    theirs.save_pretrained(folder)
    return Pair(theirs, HiggsCodec.from_pretrained(folder), folder, seed)


def best_lag(a: np.ndarray, b: np.ndarray, reach: int = 40) -> int:
    def product(lag: int) -> float:
        return float(a[reach:-reach] @ b[reach + lag : len(b) - reach + lag])

    return max(range(-reach, reach + 1), key=product)


def assert_same_codes(pair: Pair, ours: mx.array, wave: np.ndarray, margin: int) -> None:
    """Equal, except where the reference itself sees two entries as near as rounding."""
    with torch.no_grad():
        x = torch.from_numpy(wave)[None, None]
        model = pair.theirs
        semantic = model.encoder_semantic(model._extract_semantic_features(x).transpose(1, 2))
        acoustic = model.acoustic_encoder(torch.nn.functional.pad(x, (margin, margin)))
        residual = model.fc(torch.cat([acoustic, semantic], 1).transpose(1, 2))[0]
        codes = torch.from_numpy(np.array(ours, dtype=np.int64))
        assert codes.shape == (len(residual), model.quantizer.num_quantizers)
        alive = torch.ones(len(residual), dtype=torch.bool)
        equal = torch.ones(len(residual), dtype=torch.bool)
        for k, quantizer in enumerate(model.quantizer.quantizers):
            distance = torch.cdist(quantizer.project_in(residual), quantizer.codebook.embed)
            gap = distance.gather(1, codes[:, k : k + 1])[:, 0] - distance.min(1).values
            assert (gap[alive] <= 1e-4 * distance.mean()).all(), (k, gap[alive].max())
            equal &= codes[:, k] == distance.argmin(1)
            alive &= equal
            chosen = distance.argmin(1)
            residual = residual - quantizer.project_out(quantizer.codebook.embed[chosen])
        assert (~equal).sum() <= 1


def band(length: int) -> int:
    """How far a length is into its frame; from 119 to 631 the encoder's halves disagree."""
    return length % 960


def test_decode_agrees_sample_for_sample(pair: Pair) -> None:
    codes = pair.codes(14)
    ours, theirs = np.array(pair.ours.decode(codes)), pair.their_decode(codes)
    assert ours.shape == theirs.shape == (14 * 960,)
    assert best_lag(ours, theirs) == 0
    np.testing.assert_allclose(ours, theirs, atol=1e-4)  # measured 1e-6 at a std of 0.1


def test_fewer_codebooks_agree(pair: Pair) -> None:
    codes = pair.codes(3)[:, :-1]
    np.testing.assert_allclose(
        np.array(pair.ours.decode(codes)), pair.their_decode(codes), atol=1e-4
    )


def test_hubert_states_agree(pair: Pair) -> None:
    wave = pair.wave(6000)
    with torch.no_grad():
        theirs = pair.theirs.semantic_model(
            torch.from_numpy(wave)[None], output_hidden_states=True
        ).hidden_states
    encoder = pair.ours._loaded_encoder()
    ours = encoder.semantic_model(mx.array(wave)[None, :, None])
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.array(a), b.numpy(), atol=1e-4)


def test_codes_agree_on_whole_frames(pair: Pair) -> None:
    wave = pair.wave(9 * 960)
    encodings = [pair.ours.encode(wave, length_mode=mode) for mode in ("boson", "hf", "align")]
    theirs = pair.theirs.encode(torch.from_numpy(wave)[None, None]).audio_codes[0].T
    assert encodings[0].shape == tuple(theirs.shape)
    for ours in encodings:
        assert mx.array_equal(ours, encodings[0])
        assert_same_codes(pair, ours, wave, 0)


@pytest.mark.parametrize(("mode", "margin"), [("boson", 320), ("hf", 480)])
def test_codes_agree_where_the_halves_disagree(pair: Pair, mode: Any, margin: int) -> None:
    length = 5 * 960 + int(np.random.default_rng(pair.seed).integers(119, 632))
    wave = pair.wave(length)
    ours = pair.ours.encode(wave, length_mode=mode)
    assert len(ours) == 6
    assert_same_codes(pair, ours, wave, margin)
    if mode == "hf":
        theirs = pair.theirs.encode(torch.from_numpy(wave)[None, None]).audio_codes[0].T
        assert (torch.tensor(np.array(ours)) != theirs).any(1).sum() <= 1


def test_align_pads_with_silence(pair: Pair) -> None:
    wave = pair.wave(5 * 960 + 300)
    ours = pair.ours.encode(wave, length_mode="align")
    assert_same_codes(pair, ours, np.pad(wave, (0, 660)), 0)


@pytest.mark.parametrize("beyond", [0, 118, 119, 631, 632, 959])
def test_lengths_agree(pair: Pair, beyond: int) -> None:
    wave = pair.wave(2 * 960 + beyond)
    theirs = pair.theirs.encode(torch.from_numpy(wave)[None, None]).audio_codes
    assert len(pair.ours.encode(wave)) == theirs.shape[-1] == (2 if beyond < 119 else 3)


def boson_names(state: dict[str, Any], *, weight_norm: bool) -> OrderedDict[str, Any]:
    """transformers' names -> Boson's, written out the other way round from the package."""
    unit = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}
    out: OrderedDict[str, Any] = OrderedDict()
    for name, tensor in state.items():
        parts = name.split(".")
        match parts:
            case ["acoustic_encoder" | "acoustic_decoder" as side, *rest]:
                encoder = side == "acoustic_encoder"
                stem = "encoder.block" if encoder else "decoder_2.model"
                match rest:
                    case ["block", i, "res_unit1" | "res_unit2" | "res_unit3" as u, layer, leaf]:
                        index = int(u[-1]) - (1 if encoder else -1)
                        new = f"{stem}.{int(i) + 1}.block.{index}.block.{unit[layer]}.{leaf}"
                    case ["block", i, layer, leaf]:
                        index = (3 if encoder else 0) + (layer != "snake1")
                        new = f"{stem}.{int(i) + 1}.block.{index}.{leaf}"
                    case [layer, leaf]:
                        new = f"{stem}.{ {'conv1': 0, 'snake1': 6, 'conv2': 7}[layer] }.{leaf}"
            case ["quantizer", "quantizers", q, "codebook", leaf]:
                new = f"quantizer.vq.layers.{q}._codebook.{leaf}"
            case ["quantizer", "quantizers", q, *rest]:
                new = f"quantizer.vq.layers.{q}.{'.'.join(rest)}"
            case ["fc" | "fc1" | "fc2" as layer, leaf]:
                new = f"{ {'fc': 'fc_prior', 'fc1': 'fc_post1', 'fc2': 'fc_post2'}[layer] }.{leaf}"
            case ["encoder_semantic" | "decoder_semantic", *_]:
                nested = not (parts[-2] == "conv2" and "res_units" in parts)
                new = ".".join([*parts[:-1], *(["conv"] if nested else []), parts[-1]])
            case _:
                new = name
        dac = new.startswith(("encoder.", "decoder_2."))
        if weight_norm and dac and new.endswith(".weight"):
            direction = tensor * (0.5 + torch.rand(tensor.shape[0], 1, 1))
            out[f"{new}_g"] = tensor.norm(dim=(1, 2), keepdim=True)
            out[f"{new}_v"] = direction
        else:
            spelled = new.replace("parametrizations.weight.original0", "weight_g")
            out[spelled.replace("parametrizations.weight.original1", "weight_v")] = tensor
    return out


BOSON_CONFIG = '{"ratios": [8, 5, 4, 2, 3], "sample_rate": 24000, "semantic_techer": "hubert"}'


@pytest.mark.parametrize("kind", ["pth", "safetensors", "unnormed"])
def test_boson_files_decode_and_encode_the_same(pair: Pair, tmp_path: Path, kind: str) -> None:
    from safetensors.torch import save_file

    state = boson_names(pair.theirs.state_dict(), weight_norm=kind != "unnormed")
    folder = tmp_path / "boson"
    folder.mkdir()
    # heads of 64 are what Boson's config leaves to be assumed; these codecs have other ones
    heads = '"semantic_model_config": {"num_attention_heads": 2}'
    (folder / "config.json").write_text(f"{BOSON_CONFIG[:-1]}, {heads}}}")
    if kind == "pth":
        state["teacher"] = io.BytesIO(b"a file, as some public codecs hold")
        torch.save(state, folder / "model.pth")
        save_file({"model.embed_tokens.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    else:
        save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
    codec = HiggsCodec.from_pretrained(folder)
    codes, wave = pair.codes(5), pair.wave(4 * 960)
    np.testing.assert_allclose(np.array(codec.decode(codes)), pair.their_decode(codes), atol=1e-4)
    assert_same_codes(pair, codec.encode(wave), wave, 0)


def test_saved_codec_loads_here_and_there(pair: Pair, tmp_path: Path) -> None:
    codes, wave = pair.codes(4), pair.wave(4 * 960)
    pair.ours.save(tmp_path / "saved")
    again = HiggsCodec.from_pretrained(tmp_path / "saved")
    assert mx.array_equal(again.decode(codes), pair.ours.decode(codes))
    theirs, report = modeling.HiggsAudioV2TokenizerModel.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    mine = Pair(theirs.eval(), again, tmp_path, pair.seed)
    np.testing.assert_allclose(mine.their_decode(codes), pair.their_decode(codes), atol=1e-6)
    assert_same_codes(mine, again.encode(wave), wave, 0)


def test_pth_values_are_torchs(tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    base = torch.randn(6, 8)
    tensors = OrderedDict(
        plain=torch.randn(3, 4),
        transposed=torch.randn(5, 6).t(),
        view=base[1:5, 2:7:2],
        scalar=torch.tensor(3),
        empty=torch.zeros(0, 3),
        half=torch.randn(4).half(),
        bfloat=torch.randn(4, 3).bfloat16().t(),
        parameter=torch.nn.Parameter(torch.randn(2, 2)),
    )
    path = tmp_path / "model.pth"
    torch.save(tensors, path)
    read = read_pth(path)
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        assert read[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(
            read[name].numpy().astype(np.float32), tensor.detach().float().numpy()
        )


def test_pth_refuses_whole_models(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match=r"torch\.nn"):
        read_pth(path)
