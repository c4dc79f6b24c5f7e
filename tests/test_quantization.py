"""Fewer bits: close to the float model, everybody's file form, and no memory for the source."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from checkpoints import TINY, all_logits, nbytes, random_checkpoint, relative_error, tensors

from mlx_higgs.loading import load_model
from mlx_higgs.models.base import SpeechModel
from mlx_higgs.quantization import ELEMENTS_AT_ONCE, MODES, Quantization, quantize_module
from mlx_higgs.sources import DEMO
from mlx_higgs.types import CheckpointError, InputError

# Relative error of the demo's logits, about 1.5 times what was measured (CPU, MLX 0.32.4).
# A model that has forgotten everything has 1 or more: so small a one does not survive 2 bits.
BOUNDS = {
    ("affine", 2): 1.7,  # 1.14
    ("affine", 3): 0.88,  # 0.59
    ("affine", 4): 0.64,  # 0.43
    ("affine", 5): 0.38,  # 0.26
    ("affine", 6): 0.16,  # 0.107
    ("affine", 8): 0.035,  # 0.023
    ("mxfp4", 4): 0.54,  # 0.36
    ("mxfp8", 8): 0.29,  # 0.19
    ("nvfp4", 4): 0.5,  # 0.33
}
DEEP: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 16,
    "vocab_size": 4000,
}
EVEN = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8}  # by any group
SHALLOW: dict[str, Any] = DEEP | {"num_hidden_layers": 4}
TEMPORARIES = 80 * ELEMENTS_AT_ONCE  # bytes that the float modes need without a GPU


def test_every_mode_has_a_bound():
    assert set(BOUNDS) == {(mode, bits) for mode, (_, widths) in MODES.items() for bits in widths}


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    return all_logits(load_model(DEMO, dtype="float32"))


@pytest.mark.parametrize(("mode", "bits"), BOUNDS)
def test_close_to_the_float_model(exact: np.ndarray, mode: str, bits: int):
    logits = all_logits(load_model(DEMO, quantize=Quantization.of(bits, mode=mode)))
    assert np.isfinite(logits).all()
    assert 0 < relative_error(logits, exact) < BOUNDS[mode, bits]


@pytest.mark.parametrize("group_size", MODES["affine"][0])
def test_only_what_the_predicate_allows_is_quantised(tmp_path: Path, seed: int, group_size: int):
    source = random_checkpoint(tmp_path / "source", seed, **EVEN)
    model = load_model(source, quantize=Quantization.of(4, group_size), text_head=True)
    floats, found = tensors(load_model(source, text_head=True)), tensors(model)
    quantised = {name.removesuffix(".scales") for name in found if name.endswith(".scales")}
    linear = [f"self_attn.{x}_proj" for x in "qkvo"]
    linear += [f"{ffn}.{x}_proj" for ffn in ("mlp", "audio_mlp") for x in ("gate", "up", "down")]
    wanted = {f"layers.{i}.{name}" for i in range(len(model.layers)) for name in linear}
    assert quantised == wanted | {"embed_tokens", "audio_decoder_proj.text_lm_head"}
    for name in ("audio_codebook_embeddings.weight", "audio_decoder_proj.audio_lm_head.weight"):
        assert mx.array_equal(found[name], floats[name])
        assert found[name].dtype == mx.bfloat16


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "affine"])
def test_a_few_rows_at_a_time_changes_nothing(seed: int, mode: str):
    mx.random.seed(seed)
    linear = nn.Linear(96, 3 * ELEMENTS_AT_ONCE // 96 // 2 + 1, bias=False)
    how = Quantization.of(mode=mode)
    found = tensors(quantize_module(linear, how))
    whole = tensors(linear.to_quantized(how.group_size, how.bits, mode))
    assert found.keys() == whole.keys()
    assert all(mx.array_equal(found[name], whole[name]) for name in whole)


@pytest.mark.parametrize("how", [None, Quantization.of(8), Quantization.of(2)], ids=str)
def test_memory_is_the_results(tmp_path: Path, seed: int, how: Quantization | None):
    source = random_checkpoint(tmp_path / "source", seed, **DEEP)
    model, used, peak = measure(source, how)
    assert peak <= 1.15 * nbytes(model)
    assert used <= 1.01 * nbytes(model)


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4"])
def test_memory_of_the_float_modes(tmp_path: Path, seed: int, mode: str):
    source = random_checkpoint(tmp_path / "source", seed, **SHALLOW)
    model, _, peak = measure(source, Quantization.of(mode=mode))
    assert peak <= 1.15 * nbytes(model) + TEMPORARIES


def measure(source: Path, how: Quantization | None) -> tuple[SpeechModel, int, int]:
    """A loaded model, the bytes that loading left in use, and the most it used."""
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = load_model(source, quantize=how, text_head=True)
    return model, mx.get_active_memory() - before, mx.get_peak_memory() - before


def test_cast_and_quantised(tmp_path: Path, seed: int):
    source = random_checkpoint(tmp_path / "source", seed, dtype="float32")
    model = load_model(source, dtype="float16", quantize=Quantization.of(8))
    kinds = {array.dtype for array in tensors(model).values()}
    assert kinds == {mx.float16, mx.uint32}


def write_mlx_community(source: Path, folder: Path, bits: int) -> None:
    """The form of mlx-community's q8 and q6: Boson's names, and what was skipped in the config."""
    skip = ["audio_codebook_embeddings", "audio_lm_head"]
    model: Any = load_model(source, text_head=True)

    def choose(name: str, module: nn.Module) -> bool:
        kind = isinstance(module, nn.Linear | nn.Embedding)
        return kind and not any(word in name for word in skip)

    nn.quantize(model, group_size=64, bits=bits, class_predicate=choose)
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), tensors(model))
    config = json.loads((source / "config.json").read_text())
    config["quantization"] = {"group_size": 64, "bits": bits, "class_predicate_skip": skip}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("bits", [8, 6])
def test_reads_mlx_communitys_form(tmp_path: Path, seed: int, bits: int):
    source = random_checkpoint(tmp_path / "source", seed)
    write_mlx_community(source, tmp_path / "theirs", bits)
    theirs = load_model(tmp_path / "theirs")
    ours = load_model(source, quantize=Quantization.of(bits))
    assert np.array_equal(all_logits(theirs), all_logits(ours))


def test_reads_mlx_lms_form_with_entries_per_path(tmp_path: Path, seed: int):
    source = random_checkpoint(tmp_path / "source", seed)
    model: Any = load_model(source)
    entry = {"group_size": 32, "bits": 4, "mode": "affine"}
    embed4 = model.embed_tokens.to_quantized(**entry)
    config = json.loads((source / "config.json").read_text())
    config["quantization"] = Quantization.of(8).config() | {"embed_tokens": entry}
    nn.quantize(model, 64, 8, class_predicate=lambda path, _: path.endswith("q_proj"))
    model.update_modules({"embed_tokens": embed4})
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors(model))
    loaded: Any = load_model(folder)
    assert (loaded.embed_tokens.bits, loaded.embed_tokens.group_size) == (4, 32)
    assert np.array_equal(all_logits(loaded), all_logits(model))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "int8"}, "'int8'"),
        ({"bits": 7}, "no bits 7"),
        ({"bits": 0}, "no bits 0"),
        ({"bits": 8, "mode": "mxfp4"}, "mxfp4 has no bits 8"),
        ({"group_size": 16}, "no group size 16"),
        ({"group_size": 0}, "no group size 0"),
        ({"group_size": 64, "mode": "nvfp4"}, "nvfp4 has no group size 64"),
    ],
)
def test_what_mlx_does_not_have(options: dict, words: str):
    with pytest.raises(InputError, match=words):
        Quantization.of(**options)


def test_group_size_that_divides_no_width():
    with pytest.raises(InputError, match=r"is 96 wide, which groups of 64 do not divide"):
        load_model(TINY["boson"], quantize=Quantization.of(8))


def test_unusable_block_is_named(tmp_path: Path, seed: int):
    source = random_checkpoint(tmp_path / "source", seed)
    write_mlx_community(source, tmp_path / "theirs", 8)
    path = tmp_path / "theirs/config.json"
    config = json.loads(path.read_text())
    del config["quantization"]["group_size"]
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="group_size"):
        load_model(tmp_path / "theirs")


def test_quantised_weights_are_not_quantised_again(tmp_path: Path, seed: int):
    source = random_checkpoint(tmp_path / "source", seed)
    write_mlx_community(source, tmp_path / "theirs", 8)
    with pytest.raises(InputError, match="quantised already"):
        load_model(tmp_path / "theirs", quantize=Quantization.of(4))
