"""Fusing: a whole checkpoint that speaks as the base with its adapter does, there or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import TINY, all_logits, random_checkpoint, tensors
from tiny_adapter import config, off

from mlx_higgs.adapters import apply_adapter, save_adapter
from mlx_higgs.convert import convert
from mlx_higgs.fuse import fuse, main
from mlx_higgs.loading import load, load_model
from mlx_higgs.lora import is_quantized
from mlx_higgs.quantization import Quantization
from mlx_higgs.sources import DEMO
from mlx_higgs.types import CheckpointError, InputError
from mlx_higgs.weights import read_header, weight_files

pytest.importorskip("mlx_lm", reason="mlx-lm's layers are what is trained")

KEYS = ["self_attn.q_proj", "mlp.up_proj", "audio_mlp.down_proj"]
# Largest difference of a logit over their spread, and what was measured over 12 seeds
EXACT = 2e-5  # 7e-6, in float32
BFLOAT16 = 0.05  # 0.017, where a float32 norm was rounded to bfloat16


def adapter_for(source: Path, folder: Path, seed: int, kind: str = "lora", **load_options) -> Path:
    """A random adapter of a checkpoint, text head included where it has one."""
    from mlx_lm.tuner.utils import linear_to_lora_layers

    mx.random.seed(seed)
    model: Any = load_model(source, **load_options)
    settings = config(kind, KEYS) | {"num_layers": 2}
    if kind == "full":
        model.update({"norm": {"weight": 1.3 * model.norm.weight.astype(mx.float32)}})
        model.freeze()
        model.norm.unfreeze()
    else:
        model.freeze()
        dora = kind == "dora"
        linear_to_lora_layers(model, 2, settings["lora_parameters"], use_dora=dora)
        for module in model.modules():
            if "lora_b" in module:
                module.lora_b = 0.2 * mx.random.normal(module.lora_b.shape)
    save_adapter(folder, model, settings)
    return folder


# -- what comes out -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", TINY)
@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_it_speaks_as_the_base_with_the_adapter(tmp_path: Path, seed: int, layout: str, kind: str):
    source = TINY[layout]
    adapter = adapter_for(source, tmp_path / "a", seed, kind)
    out = fuse(str(source), adapter, tmp_path / "out")
    beside = all_logits(apply_adapter(load_model(source), adapter))
    assert off(all_logits(load_model(source)), beside) > 0.01
    # a norm trained in float32 goes back into Boson's bfloat16
    tolerance = BFLOAT16 if (layout, kind) == ("boson", "full") else EXACT
    assert off(all_logits(load_model(out)), beside) < tolerance
    assert headers(out) == headers(source)  # every name, shape and dtype


def headers(folder: Path) -> dict:
    return {n: info for path in weight_files(folder) for n, info in read_header(path).items()}


def test_nothing_else_changes(tmp_path: Path, seed: int):
    adapter = adapter_for(DEMO, tmp_path / "a", seed)
    out = fuse("demo", adapter, tmp_path / "out")
    for path in DEMO.rglob("*"):
        if path.is_file() and path.name != "README.md" and path != DEMO / "model.safetensors":
            copy = out / path.relative_to(DEMO)
            if path.name == "config.json" and path.parent == DEMO:
                assert json.loads(copy.read_text()) == json.loads(path.read_text())
            else:
                assert copy.read_bytes() == path.read_bytes()
    changed = {n for n, array in tensors(load_model(out)).items() if differs(n, array)}
    assert changed == {f"layers.{i}.{key}.weight" for i in (3, 4) for key in KEYS}
    card = (out / "README.md").read_text()
    assert "Licence" in card
    assert str(tmp_path) not in card
    speech = load(out)
    assert speech.codec.num_codebooks == speech.model.delay.num_codebooks
    assert speech.prompts.build("one") == load("demo").prompts.build("one")


def differs(name: str, array: mx.array) -> bool:
    return not mx.array_equal(array, tensors(load_model(DEMO))[name])


def test_convert_reads_it(tmp_path: Path, seed: int):
    adapter = adapter_for(DEMO, tmp_path / "a", seed)
    out = fuse("demo", adapter, tmp_path / "out")
    small = convert(str(out), tmp_path / "small", quantize=Quantization.of(8))
    assert off(all_logits(load_model(small)), all_logits(load_model(out))) < 0.3
    assert json.loads((small / "config.json").read_text())["quantization"]["bits"] == 8


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_quantised_bases(tmp_path: Path, seed: int, kind: str):
    how = Quantization.of(8)
    base = convert("demo", tmp_path / "base", quantize=how, dtype="float32")
    adapter = adapter_for(base, tmp_path / "a", seed, kind)
    with pytest.raises(InputError, match=r"is quantised.*--dequantize"):
        fuse(str(base), adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    out = fuse(str(base), adapter, tmp_path / "out", dequantize=True)
    model = load_model(out)
    assert not any(is_quantized(module) for module in model.modules())
    assert "quantization" not in (out / "config.json").read_text()
    assert headers(out).keys() == headers(DEMO).keys()  # transformers' again
    assert {info.dtype for info in headers(out).values()} == {"F32"}
    beside = all_logits(apply_adapter(load_model(base), adapter))
    assert off(all_logits(model), beside) < EXACT


def test_the_text_head_is_kept(tmp_path: Path, seed: int):
    source = random_checkpoint(tmp_path / "base", seed)
    adapter = adapter_for(source, tmp_path / "a", seed, text_head=True)
    out = fuse(str(source), adapter, tmp_path / "out")
    name = "audio_decoder_proj.text_lm_head.weight"
    found, expected = (tensors(load_model(f, text_head=True))[name] for f in (out, source))
    assert mx.array_equal(found, expected)


# -- there or not at all ------------------------------------------------------------------------


def test_targets(tmp_path: Path, seed: int):
    adapter = adapter_for(TINY["boson"], tmp_path / "a", seed)
    out = fuse(str(TINY["boson"]), adapter, tmp_path / "out")
    before = all_logits(load_model(out))
    with pytest.raises(InputError, match="--force"):
        fuse(str(TINY["boson"]), adapter, out)
    again = adapter_for(TINY["boson"], tmp_path / "b", seed + 1)
    fuse(str(TINY["boson"]), again, out, force=True)
    assert not np.array_equal(all_logits(load_model(out)), before)
    with pytest.raises(InputError, match="holds the source"):
        fuse(str(out), adapter, out, force=True)
    with pytest.raises(InputError, match="holds the source"):
        fuse(str(TINY["boson"]), adapter, tmp_path / "a", force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "out"]


def test_a_wrong_base_leaves_nothing(tmp_path: Path, seed: int):
    adapter = adapter_for(TINY["boson"], tmp_path / "a", seed)
    with pytest.raises(CheckpointError, match="another model"):
        fuse("demo", adapter, tmp_path / "out")
    assert os.listdir(tmp_path) == ["a"]


def test_a_write_that_fails_leaves_the_old(tmp_path: Path, seed: int, monkeypatch):
    adapter = adapter_for(TINY["boson"], tmp_path / "a", seed)
    out = fuse(str(TINY["boson"]), adapter, tmp_path / "out")
    before = all_logits(load_model(out))

    def full_disk(*_: Any) -> None:
        raise RuntimeError("No space left on device")

    monkeypatch.setattr("mlx_higgs.saving.mx.save_safetensors", full_disk)
    with pytest.raises(OSError, match="No space left"):
        fuse(str(TINY["boson"]), adapter, out, force=True)
    assert np.array_equal(all_logits(load_model(out)), before)
    assert sorted(os.listdir(tmp_path)) == ["a", "out"]


def test_command(tmp_path: Path, seed: int, capsys):
    adapter = adapter_for(DEMO, tmp_path / "a", seed)
    out = tmp_path / "out"
    assert main(["--adapter", str(adapter), "--output", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert main(["--adapter-path", str(adapter), "--save_path", str(out)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["--adapter", str(tmp_path / "none"), "--output", str(tmp_path / "b")]) == 2
    assert "none" in capsys.readouterr().err
