"""The v3 talker: its config, its published tensors, its float32 head, and how its speech ends."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from convert.tiny_v3 import config, write_v3
from mlx_higgs.batch import Batch
from mlx_higgs.codec.checkpoint import (
    BUNDLED,
    TensorSource,
    as_transformers,
    check_shapes,
    module_shapes,
)
from mlx_higgs.codec.config import CodecConfig
from mlx_higgs.codec.model import CodecDecoder, CodecEncoder
from mlx_higgs.convert import convert
from mlx_higgs.delay import DelayPattern, codes_from_rows
from mlx_higgs.frames import Rows
from mlx_higgs.loading import build_model, load, load_model
from mlx_higgs.models.v3 import ModelArgs
from mlx_higgs.quantization import Quantization, quantizable
from mlx_higgs.sampling import SamplingParams
from mlx_higgs.sources import DEMO
from mlx_higgs.types import Audio, CheckpointError, InputError, Text
from mlx_higgs.weights import load_tensors, named_arrays, read_header

CODES = 24
PUBLISHED = config(
    codes=1024,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151_936,
)


@pytest.fixture
def folder(tmp_path: Path, seed: int) -> Path:
    return write_v3(tmp_path / "v3", seed=seed, codes=CODES)


def prompt(seed: int) -> list[Text | Audio]:
    codes = np.random.default_rng(seed).integers(0, CODES, (5, 8))
    return [Text([1, 2, 3]), Audio(mx.array(codes)), Text([4, 5])]


def params(seed: int, **changes) -> SamplingParams:
    return SamplingParams(
        **{"temperature": 0.8, "top_p": 1.0, "ras_window": 0, "seed": seed, "max_frames": 400}
        | changes
    )


def test_the_published_shape_builds_without_weights():
    model = build_model(PUBLISHED)
    arrays = named_arrays(model)
    assert len(arrays) == 399
    assert sum(array.size for array in arrays.values()) == 4_043_480_576
    assert arrays["audio_codebook_embeddings.weight"].shape == (8208, 2560)
    assert len(quantizable(model, plan_of(8))) == 253
    assert model.delay == DelayPattern(8, 1024, 1025, machine="strict")


def plan_of(bits: int):
    from mlx_higgs.quantization import Plan

    return Plan.of(Quantization.of(bits))


NAMES = json.loads((Path(__file__).parent / "golden" / "v3_4b_names.json").read_text())["published"]
SHARES = {  # of the published file's 927 tensors, by how their names begin
    "body.layers.": 11 * 36,
    "body.norm.": 1,
    "tied.embedding.text_embedding.": 1,
    "tied.embedding.modality_embeddings.0.embedding.": 1,
    BUNDLED + "acoustic_encoder.": 110,
    BUNDLED + "acoustic_decoder.": 110,
    BUNDLED + "encoder_semantic.": 13,
    BUNDLED + "decoder_semantic.": 14,
    BUNDLED + "semantic_model.": 211,
    BUNDLED + "fc": 6,
    BUNDLED + "quantizer.": 64,
}


def test_the_published_file_has_927_tensors():
    shares = {start: sum(name.startswith(start) for name in NAMES) for start in SHARES}
    assert shares == SHARES
    assert sum(shares.values()) == len(NAMES) == 398 + 1 + 528


def test_every_published_name_and_shape_of_the_talker_maps():
    """398 of the backbone and the table, in; the codec's 528, out."""
    model = build_model(PUBLISHED)
    found = model.sanitize({name: tuple(shape) for name, shape in NAMES.items()})
    assert found == {name: tuple(array.shape) for name, array in named_arrays(model).items()}
    assert len(found) == 399
    assert mx.get_active_memory() < 1e9  # 16 GB if anything were there


def test_every_published_name_and_shape_of_the_codec_maps():
    """What its 528 tensors say of its sizes, without a config, is the codec's own default."""
    shapes = {k.removeprefix(BUNDLED): tuple(v) for k, v in NAMES.items() if k.startswith(BUNDLED)}

    def nothing(names):
        raise AssertionError("no data is there to be read")

    source = as_transformers(TensorSource(shapes, nothing))
    config = CodecConfig.from_shapes(source.shapes)
    assert config == CodecConfig()
    modules = (CodecDecoder(config), CodecEncoder(config))
    expected = {k: v.shape for module in modules for k, v in named_arrays(module).items()}
    check_shapes(module_shapes(source.shapes), expected)
    with pytest.raises(CheckpointError, match="no Higgs codec has"):
        check_shapes(module_shapes({**source.shapes, "fc3.weight": (1, 1)}), expected)


def test_unknown_tensors_are_told_and_repeated_ones_dropped(folder: Path):
    weights = load_tensors([folder / "model.safetensors"])
    table = weights["tied.embedding.modality_embeddings.0.embedding.weight"]
    extra = {
        "tied.head.modality_heads.0.weight": table,
        "tied.head.text_head.weight": weights["tied.embedding.text_embedding.weight"],
        BUNDLED + "fc.weight": mx.zeros((2, 2)),
    }
    mx.save_safetensors(str(folder / "model.safetensors"), {**weights, **extra})
    load_model(folder)
    mx.save_safetensors(str(folder / "model.safetensors"), {**weights, "body.more": table})
    with pytest.raises(CheckpointError, match="does not know more"):
        load_model(folder)


def test_a_head_of_its_own(tmp_path: Path, seed: int):
    model = load_model(write_v3(tmp_path / "v3", seed=seed, codes=CODES, tied=False))
    h = mx.random.normal((3, 64), key=mx.random.key(seed))
    expected = h @ model.audio_lm_head.weight.T
    assert mx.allclose(model.audio_logits(h).reshape(3, -1), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("where", "field", "value", "message"),
    [
        ("audio_encoder_config", "encoder_type", "whisper", "makes no codes"),
        ("audio_encoder_config", "use_delay_pattern", False, "without a delay pattern"),
        ("audio_encoder_config", "out_dim", 32, "out_dim is 32"),
        ("text_config", "attention_bias", True, "attention biases"),
        ("text_config", "tie_word_embeddings", False, "text head"),
        ("text_config", "head_dim", 0, "head_dim is 0"),
        ("text_config", "rope_parameters", None, "rope_theta"),
    ],
)
def test_variants_that_are_not_built_are_named(where: str, field: str, value, message: str):
    wrong = config()
    wrong[where][field] = value
    with pytest.raises(CheckpointError, match=message):
        ModelArgs.from_dict(wrong)


def test_the_base_of_positions_is_nested_or_flat():
    nested, flat = config(), config(rope_parameters=None, rope_theta=1e6)
    nested["text_config"]["rope_theta"] = None  # as some tools write it
    assert ModelArgs.from_dict(nested).rope.theta == ModelArgs.from_dict(flat).rope.theta == 1e6


def test_the_head_is_multiplied_in_float32(tmp_path: Path, seed: int):
    """bfloat16 logits of this size lie 0.5 apart: neighbours would be drawn alike."""
    model = load_model(write_v3(tmp_path / "v3", seed=seed, codes=CODES, dtype="bfloat16"))
    h = (40 * mx.random.normal((2, 64), key=mx.random.key(seed))).astype(mx.bfloat16)
    table = model.audio_codebook_embeddings.weight
    exact = np.array(h.astype(mx.float32)) @ np.array(table.astype(mx.float32)).T
    for _ in range(2):
        logits = model.audio_logits(h)
        assert logits.dtype == mx.float32
        assert np.abs(np.array(logits).reshape(2, -1) - exact).max() < 1e-3
        model.fuse()


def test_fused_equals_plain(folder: Path, seed: int):
    plain, fused = load_model(folder), load_model(folder)
    fused.fuse()
    x, is_audio = plain.embed_prompt(prompt(seed))
    before = plain.audio_logits(plain.hidden(x, plain.make_cache(), is_audio))
    after = fused.audio_logits(fused.hidden(x, fused.make_cache(), is_audio))
    assert mx.allclose(before, after, atol=1e-5)
    assert not any(
        name.endswith((".q_proj.weight", ".up_proj.weight")) for name in named_arrays(fused)
    )


def test_quantised_is_all_but_the_table_and_the_codec(folder: Path):
    model = load_model(folder, quantize=Quantization.of(8, group_size=32))
    kept = [
        path
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Embedding))
    ]
    assert kept == ["audio_codebook_embeddings"]


@pytest.mark.parametrize("machine", ["strict", "sglang"])
def test_every_loop_and_company_makes_the_same_rows(folder: Path, seed: int, machine):
    model, said = load_model(folder), prompt(seed)
    asked = params(seed, machine=machine, max_frames=60)
    alone = [np.stack(list(Rows(model, said, asked, loop=loop))) for loop in LOOPS]
    batch = Batch(model)
    company = [batch.join(said, params(seed + i, machine=machine, max_frames=60)) for i in range(3)]
    alone.append(np.stack(list(company[0])))
    for rows in alone[1:]:
        assert np.array_equal(rows, alone[0])


LOOPS = ("eager", "async", "compiled")


def test_no_marker_is_left_and_the_ramp_is_the_patterns(folder: Path, seed: int):
    """What ``strict`` makes is exactly what delaying its codes makes."""
    model = load_model(folder)
    ended = 0
    for i in range(60):
        rows = Rows(model, prompt(seed), params(seed + i, max_frames=250), max_identical_rows=0)
        made = np.stack(list(rows))
        codes = codes_from_rows(made, model.delay)
        assert codes.size == 0 or codes.max() < CODES
        if rows.stop_reason == "eos":
            ended += 1
            assert len(made) == len(codes) + 7
            assert np.array_equal(np.array(model.delay.apply(mx.array(codes))), made)
        if ended == 2:
            break
    assert ended


@pytest.mark.parametrize("machine", ["strict", "sglang"])
@pytest.mark.parametrize("row", range(8, 200, 16))
def test_an_eoc_at_row_r_gives_r_plus_7_rows_and_r_frames(seed: int, machine, row: int):
    pattern = DelayPattern(8, CODES, CODES + 1, machine=machine)
    rng, state, made = np.random.default_rng(seed), pattern.start(), []
    while not (made and bool(state.done.item())):
        fresh = rng.integers(0, CODES, (1, 8))
        if len(made) in (3 if machine == "sglang" else row, row):  # the first 8 rows' do not count
            fresh[0, 0] = CODES + 1
        out, state = pattern.advance(mx.array(fresh), state)
        made.append(np.array(out)[0])
    assert len(made) == row + 7
    assert len(codes_from_rows(np.stack(made), pattern)) == row


def test_strict_lets_no_marker_be_sampled_where_it_cannot_be(seed: int):
    pattern = DelayPattern(8, CODES, CODES + 1, machine="strict")
    logits = mx.random.normal((1, 8, CODES + 2), key=mx.random.key(seed))
    for step in (0, 7, 8, 100):
        state = pattern.start()._replace(step=mx.array([step]))
        barred = ~np.isfinite(np.array(pattern.allowed(logits, state)))[0]
        assert barred[:, CODES].all()
        assert barred[1:, CODES + 1].all()
        assert barred[0, CODES + 1] == (step < 8)
        assert not barred[:, :CODES].any()


def test_rules_of_the_other_generation_are_refused(folder: Path, seed: int):
    with pytest.raises(InputError, match="ends by strict or sglang, not 'boson'"):
        list(Rows(load_model(folder), prompt(seed), params(seed, machine="boson")))


def test_defaults_are_the_models(folder: Path):
    defaults = load(folder, codec=DEMO).defaults
    sampling = defaults.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.8, 50, 1.0)
    assert (sampling.ras_window, sampling.max_frames, defaults.normalize) == (0, 2048, False)


def test_a_converted_checkpoint_keeps_its_codec_and_speaks(tmp_path: Path, seed: int):
    source = write_v3(tmp_path / "v3", seed=seed, codes=demo_codes(), codec=DEMO / "codec")
    target = convert(str(source), tmp_path / "q8", quantize=Quantization.of(8, group_size=32))
    headers = [read_header(path / "model.safetensors") for path in (source, target)]
    codec = [{n: i for n, i in header.items() if n.startswith(BUNDLED)} for header in headers]
    assert codec[0] == codec[1]
    assert len(codec[0]) > 300
    modules = len(quantizable(load_model(source), plan_of_groups(32)))
    assert len(headers[1]) == len(headers[0]) + 2 * modules  # scales and biases
    higgs = load(target)
    assert higgs.codec.num_codebooks == 8
    rows = np.stack(list(Rows(higgs.model, prompt(seed), params(seed, max_frames=20))))
    codes = codes_from_rows(rows, higgs.model.delay)
    assert np.isfinite(np.array(higgs.codec.decode(mx.array(codes)))).all()


def plan_of_groups(size: int):
    from mlx_higgs.quantization import Plan

    return Plan.of(Quantization.of(8, group_size=size))


def demo_codes() -> int:
    from mlx_higgs.loading import load_codec

    return load_codec(DEMO / "codec").codebook_size
