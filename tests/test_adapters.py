"""Adapters: trained is reloaded is fused, mlx-lm's files are ours, and a wrong base is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from tiny_adapter import KEYS, TABLES, adapted, arrays, base, config, off, prompt_logits, saved

from mlx_higgs import adapters
from mlx_higgs.adapters import (
    apply_adapter,
    base_facts,
    fuse_adapter,
    load_adapter,
    read_adapter,
    save_adapter,
)
from mlx_higgs.lora import Adapted, is_quantized
from mlx_higgs.types import CheckpointError, InputError

pytest.importorskip("mlx_lm", reason="mlx-lm's layers are what is trained")

KINDS = ("lora", "dora", "full")
# Largest difference of a logit over their spread. Measured up to 9e-6 over 12 seeds, with updates
# that changed the logits by 4 to 17 times their spread; those here are smaller.
EXACT = 3e-5  # of the spread, where logits are worst: most seeds stay below 1e-5, one had 1.4e-5


def quantized_base(seed: int, bits: int) -> Any:
    model = base(seed)
    nn.quantize(model, 32, bits, class_predicate=model.quant_predicate)
    return model


# -- the law ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fuse", [None, False, True])
def test_trained_is_reloaded_is_fused(tmp_path: Path, seed: int, kind: str, fuse: bool | None):
    trained = saved(tmp_path, seed, config(kind, KEYS + TABLES))
    untouched = prompt_logits(base(seed))
    assert off(untouched, trained) > 0.01
    reloaded = apply_adapter(base(seed), tmp_path, fuse=fuse)
    assert off(prompt_logits(reloaded), trained) < EXACT
    beside = any(isinstance(module, Adapted) for module in reloaded.modules())
    assert beside == (fuse is False and kind != "full")
    assert off(prompt_logits(fuse_adapter(reloaded)), trained) < EXACT


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("rank", [1, 8])
def test_random_updates_too(tmp_path: Path, seed: int, kind: str, rank: int):
    """Large ones, in every kind of layer, none of them zero."""
    settings = config(kind, KEYS + TABLES, rank=rank, scale=0.7)
    model = adapted(base(seed), settings, seed)
    rng = np.random.default_rng(seed)
    model.load_weights(
        [
            (name, mx.array(np.abs(rng.normal(0, 0.2, array.shape)).astype(np.float32)))
            for name, array in arrays(model).items()
            if name.endswith((".lora_a", ".lora_b", ".m"))
        ],
        strict=False,
    )
    save_adapter(tmp_path, model, settings)
    for fuse in (False, True):
        found = prompt_logits(apply_adapter(base(seed), tmp_path, fuse=fuse))
        assert off(found, prompt_logits(model)) < EXACT
    assert off(prompt_logits(fuse_adapter(model)), found) < EXACT  # mlx-lm's layers as well


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_base_keeps_its_bits_and_its_adapter(
    tmp_path: Path, seed: int, kind: str, bits: int
):
    settings = config(kind, [*KEYS, "audio_decoder_proj.audio_lm_head"])
    trained = adapted(quantized_base(seed, bits), settings, seed)
    save_adapter(tmp_path, trained, settings)
    reloaded = apply_adapter(quantized_base(seed, bits), tmp_path)
    assert np.isfinite(prompt_logits(reloaded)).all()
    assert off(prompt_logits(reloaded), prompt_logits(trained)) < EXACT
    attention = reloaded.layers[1].self_attn
    assert isinstance(attention.q_proj, Adapted)
    assert is_quantized(attention.q_proj.linear)
    with pytest.raises(InputError, match=r"layers\.1\..* is quantised.*--dequantize"):
        fuse_adapter(reloaded)
    with pytest.raises(InputError, match="--dequantize"):
        apply_adapter(quantized_base(seed, bits), tmp_path, fuse=True)
    fused = fuse_adapter(reloaded, dequantize=True)
    assert off(prompt_logits(fused), prompt_logits(trained)) < EXACT
    assert not is_quantized(fused.layers[1].self_attn.q_proj)


def test_whole_weights_replace_quantised_ones(tmp_path: Path, seed: int):
    trained = saved(tmp_path, seed, config("full", []))
    assert off(prompt_logits(apply_adapter(quantized_base(seed, 4), tmp_path)), trained) < EXACT


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_fusing_16_bit_weights_costs_no_more_than_their_rounding(
    tmp_path: Path, seed: int, dtype: str
):
    trained = saved(tmp_path, seed, config("lora", KEYS))
    errors = []
    for fuse in (False, True):
        model = base(seed)
        model.set_dtype(getattr(mx, dtype))
        difference = prompt_logits(apply_adapter(model, tmp_path, fuse=fuse)) - trained
        errors.append(float(np.sqrt((difference**2).mean())))
        assert model.layers[1].self_attn.v_proj is not None
    assert errors[1] < 1.5 * errors[0]


# -- the files are mlx-lm's ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_mlx_lm_reads_ours(tmp_path: Path, seed: int, kind: str):
    from mlx_lm.tuner.utils import load_adapters

    trained = saved(tmp_path, seed, config(kind, KEYS + TABLES))
    theirs = load_adapters(base(seed), str(tmp_path))
    theirs.eval()
    assert off(prompt_logits(theirs), trained) < EXACT


@pytest.mark.parametrize("kind", KINDS)
def test_ours_reads_mlx_lms(tmp_path: Path, seed: int, kind: str):
    from mlx.utils import tree_flatten
    from mlx_lm.utils import save_config

    settings = config(kind, KEYS + TABLES)
    model = adapted(base(seed), settings, seed)
    weights = dict(tree_flatten(model.trainable_parameters()))
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), weights)
    save_config(settings | {"iters": 4}, tmp_path / "adapter_config.json")
    assert off(prompt_logits(apply_adapter(base(seed), tmp_path)), prompt_logits(model)) < EXACT


def test_only_what_was_trained_is_written(tmp_path: Path, seed: int):
    saved(tmp_path, seed, config("dora", ["self_attn.v_proj"]))
    names = {f"layers.1.self_attn.v_proj.{leaf}" for leaf in ("lora_a", "lora_b", "m")}
    assert read_adapter(tmp_path).tensors.keys() == names
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapters.safetensors",
    ]


def test_a_step_is_kept_and_can_be_named(tmp_path: Path, seed: int):
    settings = config("lora", KEYS)
    model = adapted(base(seed), settings, seed)
    save_adapter(tmp_path, model, settings, step=40)
    early = prompt_logits(model)
    model.layers[1].mlp.up_proj.lora_b *= 2
    save_adapter(tmp_path, model, settings, step=80)
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == [
        "0000040_adapters.safetensors",
        "0000080_adapters.safetensors",
        "adapters.safetensors",
    ]
    first = apply_adapter(base(seed), tmp_path / names[0])
    assert off(prompt_logits(first), early) < EXACT
    assert off(prompt_logits(apply_adapter(base(seed), tmp_path)), early) > 1e-3


def test_a_broken_write_leaves_the_old_adapter(tmp_path: Path, seed: int, monkeypatch):
    trained = saved(tmp_path, seed, config("lora", KEYS))

    def full_disk(path: str, *rest: Any) -> None:
        Path(path).write_bytes(b"half")
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(adapters.mx, "save_safetensors", full_disk)
    with pytest.raises(OSError, match="No space left"):
        saved(tmp_path, seed + 1, config("lora", KEYS, rank=2))
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 2
    settings = read_adapter(tmp_path).config["lora_parameters"]
    assert settings["rank"] == 3
    assert off(prompt_logits(apply_adapter(base(seed), tmp_path)), trained) < EXACT


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_from_it(tmp_path: Path, seed: int, kind: str):
    settings = config(kind, KEYS)
    trained = saved(tmp_path, seed, settings)
    fresh = base(seed) if kind == "full" else adapted(base(seed), settings, seed + 1)
    load_adapter(fresh, tmp_path)
    assert off(prompt_logits(fresh), trained) < EXACT
    if kind != "full":
        other = adapted(base(seed), config(kind, KEYS, rank=2), seed)
        with pytest.raises(CheckpointError, match=r"other layers or ranks.*lora_a"):
            load_adapter(other, tmp_path)
        other = adapted(base(seed), config(kind, KEYS, scale=2.0), seed)
        with pytest.raises(CheckpointError, match=r"scale 1\.7"):
            load_adapter(other, tmp_path)


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_base_is_refused(tmp_path: Path, seed: int, kind: str):
    saved(tmp_path, seed, config(kind, KEYS))
    with pytest.raises(CheckpointError, match=r"another model: its intermediate_size is 96"):
        apply_adapter(base(seed, intermediate_size=64), tmp_path)
    if kind != "full":  # which replaces the weights it could be told by
        with pytest.raises(CheckpointError, match=r"another base: norm\.weight begins"):
            apply_adapter(base(seed + 1), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, seed: int, kind: str):
    """Without the recorded facts, as in mlx-lm's own files."""
    saved(tmp_path, seed, config(kind, ["audio_mlp.down_proj"]))
    path = tmp_path / "adapter_config.json"
    settings = json.loads(path.read_text())
    del settings["base"]
    path.write_text(json.dumps(settings))
    narrow = base(seed, intermediate_size=64)
    before = prompt_logits(narrow)
    with pytest.raises(CheckpointError, match=r"layers\.\d\.audio_mlp\.down_proj.*\(32, 96\)"):
        apply_adapter(narrow, tmp_path)
    assert np.array_equal(prompt_logits(narrow), before)
    with pytest.raises(CheckpointError, match=r"layers\.1\.audio_mlp\.down_proj"):
        apply_adapter(base(seed, num_hidden_layers=1), tmp_path)


def test_a_base_in_another_width_is_the_same_base(tmp_path: Path, seed: int):
    saved(tmp_path, seed, config("lora", KEYS))
    for dtype in (mx.float16, mx.bfloat16):
        model = base(seed)
        model.set_dtype(dtype)
        apply_adapter(model, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fine_tune_type": "prefix"}, r"fine_tune_type is 'prefix'"),
        ({"lora_parameters": {"rank": 3, "alpha": 6}}, r"scale is None"),
        ({"lora_parameters": {"rank": 3, "scale": float("nan")}}, r"scale is nan"),
        ({"fine_tune_type": "dora"}, r"lacks, or is not to have, m"),
    ],
)
def test_a_config_that_says_nothing_usable(tmp_path: Path, seed: int, change: dict, message: str):
    saved(tmp_path, seed, config("lora", KEYS))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        apply_adapter(base(seed), tmp_path)


def test_missing_files_are_named(tmp_path: Path, seed: int):
    with pytest.raises(InputError, match="There is no adapter"):
        read_adapter(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="not an adapter"):
        read_adapter(tmp_path)
    saved(tmp_path, seed, config("lora", KEYS))
    (tmp_path / "adapters.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no adapters\.safetensors"):
        read_adapter(tmp_path)


def test_nothing_trainable_is_not_saved(tmp_path: Path, seed: int):
    model = base(seed)
    model.freeze()
    with pytest.raises(InputError, match="Nothing in this model is trainable"):
        save_adapter(tmp_path / "out", model, config("lora", KEYS))
    assert not (tmp_path / "out").exists()


def test_facts_tell_bases_apart(seed: int):
    first, second = base(seed), base(seed + 1)
    for model in (first, second):
        model.freeze()
    assert base_facts(first) != base_facts(second)
    assert base_facts(first) == base_facts(first)


# -- in use -------------------------------------------------------------------------------------


@pytest.fixture
def demo_adapter(tmp_path: Path, seed: int) -> Path:
    """A small change to the demo."""
    from mlx_higgs.loading import load_model
    from mlx_higgs.sources import DEMO

    model: Any = load_model(DEMO)
    settings = config("lora", ["self_attn.q_proj"])
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model.freeze()
    linear_to_lora_layers(model, 2, settings["lora_parameters"])
    for layer in model.layers[-2:]:
        shape = layer.self_attn.q_proj.lora_b.shape
        layer.self_attn.q_proj.lora_b = 0.05 * mx.random.normal(shape, key=mx.random.key(seed))
    save_adapter(tmp_path / "adapter", model, settings)
    return tmp_path / "adapter"


def test_generate_speaks_with_it(tmp_path: Path, demo_adapter: Path):
    from mlx_higgs import HiggsAudioServer
    from mlx_higgs.generate import main

    words = ["--text", "one two", "--seed", "1", "--max-frames", "40", "--no-guards"]
    out = tmp_path / "speech.wav"
    assert main([*words, "--adapter", str(demo_adapter), "-o", str(out)]) == 0
    assert out.stat().st_size > 1000
    server = HiggsAudioServer.from_pretrained("demo", adapter=demo_adapter)
    plain = HiggsAudioServer.from_pretrained("demo")
    assert off(prompt_logits(server.higgs.model), prompt_logits(plain.higgs.model)) > 1e-3


def test_evaluate_measures_with_it(demo_adapter: Path, capsys):
    from mlx_higgs.evaluate.__main__ import main

    golden = Path(__file__).parent / "golden"
    tiny = [str(golden / "tiny_transformers"), str(golden / "model_tiny_transformers.safetensors")]
    assert main(["parity", *tiny, "--adapter", str(demo_adapter)]) == 2
    assert "belongs to another model" in capsys.readouterr().err


def test_applying_needs_no_trainer(demo_adapter: Path):
    """mlx-lm takes two seconds to import, and is not in every installation."""
    code = (
        "import sys; from mlx_higgs.loading import load; "
        f"load('demo', adapter={str(demo_adapter)!r}); "
        "print(sorted({'mlx_lm', 'transformers', 'torch'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
