"""PEFT's adapters: the same function as theirs, there and back, and nothing guessed.

The goldens are PEFT's own files and logits: tests/golden/README.md names the command.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny_adapter import KEYS, TABLES, base, config, off, prompt_logits, saved

from mlx_higgs.adapters import apply_adapter, read_adapter
from mlx_higgs.cli import Parser, run
from mlx_higgs.evaluate.parity import parity
from mlx_higgs.loading import load_model
from mlx_higgs.train.adapter_command import (
    add_adapter_parser,
    export_peft,
    import_peft,
    run_adapter,
)
from mlx_higgs.types import CheckpointError, InputError

GOLDEN = Path(__file__).parent / "golden"
TINY = GOLDEN / "tiny_transformers"
EXACT = 1e-5  # of a logit over their spread, as in tests/test_adapters.py
ABSOLUTE = 1e-4  # of a logit; 1.4e-5 was measured, where the adapters make logits of up to 30


def adapter_command(*argv: str) -> int:
    parser = Parser(prog="train")
    add_adapter_parser(parser.add_subparsers(required=True))
    return run(parser, run_adapter, ["adapter", *argv])


# -- theirs is ours -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_peft_logits(tmp_path: Path, kind: str):
    """Ranks and factors by pattern, rslora, a table, a head saved whole; DoRA."""
    folder, golden = GOLDEN / f"peft_{kind}", GOLDEN / f"peft_{kind}.safetensors"
    assert parity(TINY, golden).max_abs > 1
    assert adapter_command("import", str(folder), str(tmp_path / "in"), "--model", str(TINY)) == 0
    for adapter in (folder, tmp_path / "in"):
        report = parity(TINY, golden, adapter=adapter)
        assert report.max_abs < ABSOLUTE
        assert report.greedy_rows_equal


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_mlx_lm_reads_what_was_imported(tmp_path: Path, kind: str):
    tuner = pytest.importorskip("mlx_lm.tuner.utils", reason="the other reader")
    folder = with_settings(tmp_path, kind, modules_to_save=None, drop="audio_lm_head")
    import_peft(folder, tmp_path / "in")
    theirs = tuner.load_adapters(load_model(TINY), str(tmp_path / "in"))
    theirs.eval()
    expected = prompt_logits(apply_adapter(load_model(TINY), folder))
    assert off(prompt_logits(theirs), expected) < EXACT


def test_boson_names_are_the_same_adapter(tmp_path: Path, seed: int):
    for names in ("transformers", "boson"):
        export_peft(GOLDEN / "peft_dora", tmp_path / names, names)
    spelled = {n: set(tensors(tmp_path / n)) for n in ("transformers", "boson")}
    prefix = "base_model.model."
    assert f"{prefix}model.layers.0.self_attn.q_proj.lora_A.weight" in spelled["transformers"]
    assert f"{prefix}layers.0.self_attn.q_proj.lora_A.weight" in spelled["boson"]
    logits = [prompt_logits(apply_adapter(load_model(TINY), tmp_path / n)) for n in spelled]
    assert np.array_equal(*logits)


# -- there and back -----------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["transformers", "boson"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_import_of_export_is_the_same(tmp_path: Path, seed: int, kind: str, names: str):
    pytest.importorskip("mlx_lm", reason="mlx-lm's layers are what is trained")
    keys = KEYS + (TABLES if kind == "lora" else TABLES[1:2])
    trained = saved(tmp_path / "a", seed, config(kind, keys, scale=0.3))
    export_peft(tmp_path / "a", tmp_path / "peft", names)
    import_peft(tmp_path / "peft", tmp_path / "b", base=base(seed))
    first, second = read_adapter(tmp_path / "a"), read_adapter(tmp_path / "b")
    assert first.tensors.keys() == second.tensors.keys()
    assert all(mx.array_equal(first.tensors[n], second.tensors[n]) for n in first.tensors)
    ours, theirs = (x.config["lora_parameters"] for x in (first, second))
    assert theirs["scale"] == pytest.approx(ours["scale"], rel=1e-15)
    assert theirs | {"scale": 0.3} == ours | {"keys": sorted(keys)}
    for folder in ("peft", "b"):
        model = apply_adapter(base(seed), tmp_path / folder)
        assert off(prompt_logits(model), trained) < EXACT


def test_scale_becomes_alpha(tmp_path: Path, seed: int):
    pytest.importorskip("mlx_lm", reason="mlx-lm's layers are what is trained")
    saved(tmp_path / "a", seed, config("lora", ["self_attn.q_proj"], rank=8, scale=20.0))
    export_peft(tmp_path / "a", tmp_path / "peft")
    written = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["use_rslora"]) == (8, 160, False)
    assert written["target_modules"] == ["model.layers.1.self_attn.q_proj"]


# -- nothing guessed ----------------------------------------------------------------------------


def tensors(folder: Path) -> dict[str, mx.array]:
    loaded: Any = mx.load(str(folder / "adapter_model.safetensors"))
    return loaded


def with_settings(tmp_path: Path, kind: str, drop: str = "nothing", **settings) -> Path:
    """A copy of a golden adapter with other settings, without the tensors named by ``drop``."""
    folder = tmp_path / "peft"
    shutil.copytree(GOLDEN / f"peft_{kind}", folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    kept = {name: array for name, array in tensors(folder).items() if drop not in name}
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), kept)
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"bias": "all"}, "bias 'all'"),
        ({"use_qalora": True}, "use_qalora True"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4.*changes the base"),
        ({"r": 5}, "has rank 3, its config says 5"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"use_dora": False}, "does not match use_dora: see its m"),
    ],
)
def test_what_cannot_be_mapped_is_named(tmp_path: Path, settings: dict, message: str):
    folder = with_settings(tmp_path, "dora", **settings)
    with pytest.raises(CheckpointError, match=message):
        apply_adapter(load_model(TINY), folder)
    with pytest.raises(CheckpointError, match=message):
        import_peft(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.0.self_attn.q_proj.lora_B.bias", r"lora_B\.bias cannot be mapped"),
        ("model.embed_tokens.token_adapter.trainable_tokens_delta", "token_adapter"),
        ("model.layers.0.self_attn.w_proj.weight", r"layers\.0\.self_attn\.w_proj.* not in it"),
        ("model.layers.0.norm.lora_embedding_A", r"DoRA of an embedding"),
    ],
)
def test_tensors_that_cannot_be_mapped_are_named(tmp_path: Path, name: str, message: str):
    folder = with_settings(tmp_path, "dora")
    more = tensors(folder) | {f"base_model.model.{name}": mx.zeros((2, 2))}
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), more)
    with pytest.raises(CheckpointError, match=message):
        apply_adapter(load_model(TINY), folder)


def test_another_base_is_refused(tmp_path: Path, capsys):
    words = ["import", str(GOLDEN / "peft_lora"), str(tmp_path / "in"), "--model", "demo"]
    assert adapter_command(*words) == 2
    assert "does not fit this model" in capsys.readouterr().err
    assert not (tmp_path / "in").exists()


def test_a_full_fine_tune_is_no_peft_adapter(tmp_path: Path, seed: int):
    pytest.importorskip("mlx_lm", reason="mlx-lm's layers are what is trained")
    saved(tmp_path / "a", seed, config("full", []))
    with pytest.raises(InputError, match="holds whole weights"):
        export_peft(tmp_path / "a", tmp_path / "out")
    saved(tmp_path / "b", seed, config("dora", ["embed_tokens"]))
    with pytest.raises(InputError, match=r"DoRA of an embedding.*embed_tokens"):
        export_peft(tmp_path / "b", tmp_path / "out")
    with pytest.raises(CheckpointError, match="no PEFT folder"):
        import_peft(tmp_path / "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_targets_are_not_overwritten(tmp_path: Path, capsys):
    source, target = str(GOLDEN / "peft_lora"), tmp_path / "out"
    assert adapter_command("export", source, str(target)) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert adapter_command("export", source, str(target)) == 2
    assert "--force" in capsys.readouterr().err
    assert adapter_command("export", source, str(target), "--force", "--names", "boson") == 0
    assert "base_model.model.audio_decoder_proj.audio_lm_head.weight" in tensors(target)
    other = tmp_path / "letters"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    assert adapter_command("export", source, str(other), "--force") == 2
    assert (other / "letter.txt").is_file()
