"""Laws of the v2 talker: routing, caching, and what a step may read."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map_with_path
from tiny_model import CONFIG, tiny_model

from mlx_higgs.evaluate.shapes import SHAPES
from mlx_higgs.models import get_model_classes
from mlx_higgs.models.layers import KVCache, Route
from mlx_higgs.models.rotary import RopeArgs, Rotary
from mlx_higgs.models.v2 import Model, ModelArgs
from mlx_higgs.types import Audio, CheckpointError, InputError, Text

NAMES = json.loads((Path(__file__).parent / "golden" / "v2_3b_names.json").read_text())
REAL = SHAPES["v2-3b"]


def mixed_prompt(rng: np.random.Generator, model: Model) -> list:
    """Text, a clip, text, another clip, text: runs of every length."""

    def words(n):
        return Text(rng.integers(0, model.args.vocab_size, n).tolist())

    def clip(n):
        codes = rng.integers(0, model.delay.codebook_size, (n, model.args.num_codebooks))
        return Audio(mx.array(codes.astype(np.int32)))

    return [words(5), clip(3), words(1), clip(1), words(4)]


def where_forward(model: Model, x: mx.array, is_audio: np.ndarray) -> mx.array:
    """The layer by its definition: both paths for every position, then pick."""
    mask = mx.array(is_audio)[..., None]
    turn = Rotary(model.args.rope, model.args.head_dim).at(0, x.shape[1], x.dtype)
    layers: list[Any] = model.layers
    for layer in layers:
        n = mx.where(mask, layer.audio_input_layernorm(x), layer.input_layernorm(x))
        x = x + layer.self_attn(n, KVCache(), turn)
        text = layer.mlp(layer.post_attention_layernorm(x))
        audio = layer.audio_mlp(layer.audio_post_attention_layernorm(x))
        x = x + mx.where(mask, audio, text)
    return model.norm(x)


def test_routing_equals_picking_from_both_paths(seed: int):
    model = tiny_model(seed)
    x, is_audio = model.embed_prompt(mixed_prompt(np.random.default_rng(seed), model))
    ours = model.hidden(x, model.make_cache(), is_audio)
    assert mx.abs(ours - where_forward(model, x, is_audio)).max().item() < 1e-4


def test_each_path_runs_once_on_its_own_positions(seed: int):
    rng = np.random.default_rng(seed)
    is_audio = rng.random((2, 9)) < 0.5
    seen = {}

    def path(name):
        def record(x):
            seen.setdefault(name, []).append(len(x))
            return x + (100 if name == "audio" else 200)

        return record

    out = Route(is_audio)(mx.zeros((2, 9, 3)), path("text"), path("audio"))
    assert np.array_equal(np.array(out[..., 0]), np.where(is_audio, 100, 200))
    assert seen == {"text": [int((~is_audio).sum())], "audio": [int(is_audio.sum())]}


def test_a_filled_cache_and_more_prompt_equal_one_forward(seed: int):
    rng = np.random.default_rng(seed)
    model = tiny_model(seed)
    x, is_audio = model.embed_prompt(mixed_prompt(rng, model))
    whole = model.hidden(x, model.make_cache(), is_audio)
    cache, parts = model.make_cache(), []
    cuts = [0, *sorted(rng.choice(np.arange(1, x.shape[1]), 3, replace=False)), x.shape[1]]
    for start, stop in itertools.pairwise(cuts):
        parts.append(model.hidden(x[:, start:stop], cache, is_audio[:, start:stop]))
    assert mx.abs(mx.concatenate(parts, axis=1) - whole).max().item() < 1e-4


def test_the_cache_grows_without_forgetting(seed: int):
    rng = np.random.default_rng(seed)
    cache, pieces = KVCache(), []
    for length in (1, 254, 3, 300, 1):
        piece = mx.array(rng.normal(size=(1, 2, length, 4)).astype(np.float32))
        pieces.append(piece)
        keys, values = cache.update(piece, -piece)
    assert mx.array_equal(keys, mx.concatenate(pieces, axis=2))
    assert mx.array_equal(values, -keys)


def poison(model: Model, touched) -> None:
    """NaN wherever ``touched`` says that a step must not look."""
    model.update(
        tree_map_with_path(
            lambda p, a: mx.full(a.shape, mx.nan) if touched(p) else a, model.parameters()
        )
    )


def test_an_audio_step_never_touches_a_text_weight(seed: int):
    model = tiny_model(seed, text_head=True)
    audio = ("audio_", "self_attn", "norm.weight")

    def is_text(path: str) -> bool:
        text_norm = "layernorm" in path and "audio_" not in path
        return text_norm or "text_lm_head" in path or not any(part in path for part in audio)

    poison(model, is_text)
    step = model.embed_rows(mx.array([[[1, 2, 3, 20]]]))
    logits = model.audio_logits(model.hidden(step, model.make_cache()))
    assert mx.isfinite(logits).all().item()
    assert not mx.isfinite(model.embed_ids(np.array([3]))).any().item()


def test_one_audio_step_of_the_3b_reads_no_more_than_it_must(monkeypatch: pytest.MonkeyPatch):
    read = []

    def count(self, x):
        read.append(self.weight.size)
        return x @ self.weight.T

    monkeypatch.setattr(nn.Linear, "__call__", count)
    model = Model(ModelArgs.from_dict(REAL, text_head=True))  # lazy: nothing is allocated
    step = model.embed_rows(mx.zeros((1, 1, 8), dtype=mx.int32))
    model.audio_logits(model.hidden(step, model.make_cache()))
    assert sum(read) == 2_818_572_288 + 25_214_976
    assert mx.get_active_memory() < 1e9


@pytest.mark.parametrize("layout", ["transformers", "boson"])
def test_every_name_and_shape_of_the_real_3b_maps(layout: str):
    model = Model(ModelArgs.from_dict(REAL, text_head=True))
    expected = {name: tuple(v.shape) for name, v in tree_flatten(model.parameters())}
    found = model.sanitize({name: tuple(shape) for name, shape in NAMES[layout].items()})
    assert len(NAMES[layout]) == 397
    assert found == expected
    without = Model(ModelArgs.from_dict(REAL))
    assert len(without.sanitize(dict(NAMES[layout]))) == 396


def test_ids_outside_the_tables_raise(seed: int):
    model = tiny_model(seed)
    for bad in (-1, 60):
        with pytest.raises(InputError, match=f"Token id {bad} "):
            model.embed_prompt([Text([1, bad])])
    for bad in (-1, 20):
        with pytest.raises(InputError, match=f"Code {bad} "):
            model.embed_prompt([Audio(mx.array([[0, 1, 2, bad]]))])


def test_the_text_head_exists_only_when_asked_for(seed: int):
    h = mx.zeros((1, 1, 32))
    assert tiny_model(seed, text_head=True).text_logits(h).shape == (1, 1, 60)
    with pytest.raises(InputError, match="text_head=True"):
        tiny_model(seed).text_logits(h)


def rope_config(**rope) -> dict:
    return {**CONFIG, "rope_parameters": rope}


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_both_published_rope_parameter_sets_are_one_function():
    boson = RopeArgs.from_config({"rope_theta": 5e5, "rope_scaling": LLAMA3})
    flat = {
        **LLAMA3,
        "rope_theta": 5e5,
        "low_freq_factor": 0.125,
        "high_freq_factor": 0.5,
        "original_max_position_embeddings": 1024,
    }
    transformers = RopeArgs.from_config({"rope_parameters": flat})
    assert mx.allclose(boson.periods(128), transformers.periods(128), rtol=1e-6)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("offset", [0, 7, 3000, [5, 0, 1200]])
def test_positions_turn_as_mlx_turns_them(seed: int, dtype: mx.Dtype, offset: int | list[int]):
    args, added = RopeArgs.from_config({"rope_theta": 5e5, "rope_scaling": LLAMA3}), 4
    x = mx.random.normal((3, 2, added, 64), key=mx.random.key(seed)).astype(dtype)
    at = mx.array(offset) if isinstance(offset, list) else offset
    wanted = mx.fast.rope(
        x, 64, traditional=False, base=None, scale=1.0, offset=at, freqs=args.periods(64)
    )
    turned = Rotary(args, 64).at(at, added, dtype)(x)
    assert turned.dtype == dtype
    assert mx.allclose(turned, wanted, atol=1e-5 if dtype == mx.float32 else 0.05)


def test_llama3_periods_follow_the_definition():
    args = RopeArgs.from_config({"rope_theta": 5e5, "rope_scaling": LLAMA3})
    for i, period in enumerate(args.periods(128).tolist()):
        inverse = 5e5 ** (-2 * i / 128)
        wavelength = 2 * np.pi / inverse
        if wavelength > 8192:
            inverse /= 32
        elif wavelength >= 2048:
            smooth = (8192 / wavelength - 1) / 3
            inverse = (1 - smooth) * inverse / 32 + smooth * inverse
        assert period == pytest.approx(1 / inverse, rel=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**CONFIG, "rope_parameters": {"rope_type": "default"}}, "one rope_theta; it names none"),
        ({**rope_config(rope_theta=1.0), "rope_theta": 2.0}, "1.0 and 2.0"),
        (rope_config(rope_theta=1.0, rope_type="yarn"), "'yarn'"),
        (rope_config(rope_theta=1.0, rope_type="llama3"), "lack .*factor"),
        (rope_config(rope_theta=1.0) | {"rope_scaling": LLAMA3}, "differ"),
        ({**CONFIG, "model_type": "llama"}, "'llama'"),
        ({**CONFIG, "hidden_size": "a"}, "hidden_size is 'a'"),
        ({**CONFIG, "num_attention_heads": 0}, "cannot be understood|num_attention_heads"),
        ({**CONFIG, "num_hidden_layers": 10**7}, "num_hidden_layers"),
        ({**CONFIG, "rope_parameters": 3}, "cannot be understood"),
        ({**CONFIG, "codebook_size": 20}, "last two of a codebook vocabulary of 20"),
        ({**CONFIG, "hidden_act": "gelu"}, "hidden_act"),
        ({**CONFIG, "attention_bias": True}, "attention_bias"),
        ({k: v for k, v in CONFIG.items() if k != "num_codebooks"}, "lacks 'num_codebooks'"),
    ],
)
def test_configs_that_are_not_understood_raise(config: dict, message: str):
    with pytest.raises(CheckpointError, match=message):
        get_model_classes({"model_type": "higgs_audio"})[1].from_dict(config)


BOSON = {
    "model_type": "higgs_audio",
    "text_config": {k: v for k, v in CONFIG.items() if k != "model_type"},
    "audio_adapter_type": "dual_ffn_fast_forward",
    "audio_dual_ffn_layers": [0, 1],
    "encode_audio_in_tokens": True,
    "encode_whisper_embed": False,
    "skip_audio_tower": True,
    "use_audio_out_self_attention": 0,
    "use_delay_pattern": True,
    "audio_num_codebooks": 4,
    "audio_codebook_size": 20,
    "audio_stream_bos_id": 20,
    "audio_stream_eos_id": 21,
    "audio_out_token_idx": 50,
    "audio_out_bos_token_id": 48,
}


def test_both_config_layouts_say_the_same():
    boson = ModelArgs.from_dict(BOSON)
    flat = ModelArgs.from_dict({**CONFIG, "audio_delay_token_id": 49})
    assert boson == flat


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("skip_audio_tower", False),
        ("audio_decoder_proj_num_layers", 2),
        ("use_rq_transformer", True),
        ("audio_adapter_type", "dual"),
        ("audio_dual_ffn_layers", None),
        ("audio_dual_ffn_layers", 2),
        ("audio_dual_ffn_layers", []),
    ],
)
def test_unsupported_variants_raise_and_are_named(field: str, value):
    with pytest.raises(CheckpointError, match=field):
        ModelArgs.from_dict({**BOSON, field: value})


def test_unknown_model_type_raises():
    with pytest.raises(CheckpointError, match="'qwen3'"):
        get_model_classes({"model_type": "qwen3"})
