"""PEFT itself is the oracle: its adapters here, and ours there, are one function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from convert.dump_golden import random_prompt
from convert.dump_peft import LINEAR, SETTINGS, adapted
from convert.reference import TransformersTalker
from convert.tiny import write_checkpoint
from mlx_higgs.adapters import apply_adapter, save_adapter
from mlx_higgs.evaluate.parity import embed_golden
from mlx_higgs.fuse import fuse
from mlx_higgs.loading import load_model
from mlx_higgs.train.adapter_command import export_peft, import_peft

pytest.importorskip("torch", reason="the reference gates need torch")
pytest.importorskip("transformers", reason="the reference gates need transformers")

# Largest difference of a logit over their spread: measured up to 8.5e-6, over 12 seeds
EXACT = 3e-5
CASES: dict[str, dict[str, Any]] = {
    **SETTINGS,
    "plain": {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["self_attn.o_proj", "audio_mlp.up_proj"],
    },
    # PEFT saves a table beside its update when it bears this name
    "table": {"r": 2, "lora_alpha": 3, "target_modules": ["embed_tokens", "audio_lm_head"]},
    "rsdora": {
        "r": 5,
        "lora_alpha": 2,
        "use_dora": True,
        "use_rslora": True,
        "target_modules": LINEAR,
    },
}


def theirs(talker: TransformersTalker, seed: int) -> np.ndarray:
    return talker.prefill(random_prompt(talker.config, seed))[0].detach().numpy()


def ours(model: Any, talker: TransformersTalker, seed: int) -> np.ndarray:
    prompt = random_prompt(talker.config, seed)
    x, is_audio = embed_golden(model, np.array(prompt.ids), np.array(prompt.rows))
    return np.array(model.audio_logits(model.hidden(x, model.make_cache(), is_audio))[0])


def off(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / expected.std())


@pytest.fixture
def checkpoint(tmp_path: Path, seed: int) -> Path:
    write_checkpoint(tmp_path / "base", seed=seed, layers=2)
    return tmp_path / "base"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_their_adapters_here(tmp_path: Path, checkpoint: Path, seed: int, case: str):
    pytest.importorskip("peft", reason="PEFT is the oracle of its own files")
    talker = TransformersTalker(checkpoint)
    plain = theirs(talker, seed)
    wrapper = adapted(talker, CASES[case], seed)
    wrapper.save_pretrained(tmp_path / "peft")
    expected = theirs(talker, seed)
    assert off(plain, expected) > 0.01
    import_peft(tmp_path / "peft", tmp_path / "in")
    for folder in ("peft", "in"):
        for how in (False, True):
            model = apply_adapter(load_model(checkpoint), tmp_path / folder, fuse=how)
            assert off(ours(model, talker, seed), expected) < EXACT


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.filterwarnings("ignore")
def test_our_adapters_there(tmp_path: Path, checkpoint: Path, seed: int, kind: str):
    peft = pytest.importorskip("peft", reason="PEFT is the oracle of its own files")
    model = trained(checkpoint, tmp_path / "a", kind, seed)
    export_peft(tmp_path / "a", tmp_path / "peft")
    talker = TransformersTalker(checkpoint)
    plain = theirs(talker, seed)
    peft.PeftModel.from_pretrained(talker.model, tmp_path / "peft").eval()
    assert off(theirs(talker, seed), plain) > 0.01
    assert off(ours(model, talker, seed), theirs(talker, seed)) < EXACT


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_transformers_reads_what_was_fused(tmp_path: Path, checkpoint: Path, seed: int, kind: str):
    import torch
    from transformers import HiggsAudioV2ForConditionalGeneration

    model = trained(checkpoint, tmp_path / "a", kind, seed)
    folder = fuse(str(checkpoint), tmp_path / "a", tmp_path / "out")
    talker = TransformersTalker(folder)
    assert off(ours(model, talker, seed), theirs(talker, seed)) < EXACT
    loaded: Any = HiggsAudioV2ForConditionalGeneration.from_pretrained(
        folder, use_text_head=True, output_loading_info=True, dtype=torch.float32
    )
    whole, report = loaded
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    talker.model = whole.eval()
    assert off(ours(model, talker, seed), theirs(talker, seed)) < EXACT


def trained(checkpoint: Path, folder: Path, kind: str, seed: int) -> Any:
    """A talker with mlx-lm's layers and random updates, saved to ``folder``."""
    tuner = pytest.importorskip("mlx_lm.tuner.utils", reason="mlx-lm's layers are what is trained")
    keys = ["self_attn.k_proj", "mlp.gate_proj", "audio_mlp.down_proj"]
    keys += ["audio_codebook_embeddings"] if kind == "lora" else []
    settings = {"rank": 3, "scale": 2.5, "dropout": 0.1, "keys": keys}
    mx.random.seed(seed)
    model: Any = load_model(checkpoint)
    model.freeze()
    tuner.linear_to_lora_layers(model, 2, settings, use_dora=kind == "dora")
    for module in model.modules():
        if "lora_b" in module:
            module.lora_b = 0.3 * mx.random.normal(module.lora_b.shape)
    save_adapter(
        folder, model, {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": settings}
    )
    model.eval()
    return model
