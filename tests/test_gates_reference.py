"""The gates' goldens from transformers, in both widths, and the talker before them."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
from gate_goldens import CODES, plain_qwen3

from convert.dump_gate import build_parser
from convert.tiny_v3 import write_v3
from mlx_higgs.evaluate import audio_gate, text_gate
from mlx_higgs.weights import load_tensors, read_header, weight_files

pytest.importorskip("torch", reason="the reference gates need torch")
pytest.importorskip("transformers", reason="the reference gates need transformers")

TEXT = ["--sequences", "10", "--longest", "24", "--fed", "3"]
AUDIO = ["--text", "Hello there.", "--text", "Again!", "--rows", "0", "1", "9", "20"]


def dumped(kind: str, folder: Path, dtype: str, seed: int) -> Path:
    path = folder.parent / f"{kind}_{dtype}.safetensors"
    options = {"text": TEXT, "audio": AUDIO}[kind]
    arguments = [kind, str(folder), str(path), "--dtype", dtype, "--seed", str(seed), *options]
    args = build_parser().parse_args(arguments)
    args.run(args)
    return path


def quieter(folder: Path) -> None:
    """Logits of words of the order of 10, as trained models have them, in place of 60."""
    weights = load_tensors(weight_files(folder))
    name = "tied.embedding.text_embedding.weight"
    weights[name] = 0.15 * weights[name]
    mx.eval(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)


def test_float32_on_both_sides(tmp_path: Path, seed: int):
    """Rounding out of the way, both gates are met by far."""
    folder = write_v3(tmp_path / "v3", seed=seed, codes=CODES)
    words = text_gate.judge(folder, dumped("text", folder, "float32", seed))
    assert words.passed, words.failures
    assert words.figures["single"]["positions"] == 40
    assert all(words.figures[replay]["max"] < 1e-4 for replay in ("single", "cached_batched"))
    sounds = audio_gate.judge(folder, dumped("audio", folder, "float32", seed))
    assert sounds.figures["rows"] == 8
    assert sounds.figures["logits_max_abs"] < 1e-4
    assert sounds.figures["hidden_cosine"] > 1 - 1e-6
    assert sounds.figures["regret"] < 1e-4
    plain = plain_qwen3(folder, tmp_path / "qwen3")
    backbone = text_gate.judge(plain, dumped("text", plain, "float32", seed))
    assert backbone.passed, backbone.failures


def test_bfloat16_on_both_sides(tmp_path: Path, seed: int):
    """The width the limits are for. Codes whose likelihoods differ little change places here."""
    folder = write_v3(tmp_path / "v3", seed=seed, codes=CODES, dtype="bfloat16")
    quieter(folder)
    words = text_gate.judge(folder, dumped("text", folder, "bfloat16", seed))
    assert words.dtype == "bfloat16"
    assert words.figures["bit_identical"]
    assert words.passed, words.failures  # measured: a mean of 0.010 to 0.013, a p99 of 0.05
    sounds = audio_gate.judge(folder, dumped("audio", folder, "bfloat16", seed))
    assert sounds.figures["regret"] <= audio_gate.REGRET
    assert sounds.figures["top64_overlap"] >= audio_gate.OVERLAP
    assert sounds.figures["hidden_cosine"] > 0.999


def test_the_files_are_those_of_the_projects(tmp_path: Path, seed: int):
    """Names, types and shapes as openinfer's test and its fork's ask for them."""
    folder = write_v3(tmp_path / "v3", seed=seed, codes=CODES, dtype="bfloat16")
    header = read_header(dumped("text", folder, "bfloat16", seed))
    prompts = header.pop("prompt_tokens")
    assert prompts.dtype == "I32"
    assert {name: (info.dtype, info.shape) for name, info in header.items()} == {
        "prompt_lens": ("I32", (10,)),
        "decode_tokens": ("I32", (10, 3)),
        "topk_ids": ("I32", (10, 4, 64)),
        "topk_logprobs": ("F32", (10, 4, 64)),
    }
    header = read_header(dumped("audio", folder, "bfloat16", seed))
    longest = header["prompt.input_ids_padded"].shape[1]
    assert {name: (info.dtype, info.shape) for name, info in header.items()} == {
        "prompt.input_ids_padded": ("I64", (8, longest)),
        "prompt.attention_mask": ("I64", (8, longest)),
        "prompt.lengths": ("I64", (8,)),
        "prompt.audio_rows": ("I32", (60, 8)),
        "final_hidden.bf16": ("BF16", (8, 64)),
        "audio_logits.f32": ("F32", (8, 8, CODES + 2)),
        "audio_top64.ids": ("I64", (8, 8, 64)),
        "audio_top64.logprobs.f32": ("F32", (8, 8, 64)),
        "audio_argmax.ids": ("I64", (8, 8)),
    }
    assert json.loads((folder / "config.json").read_text())["audio_token_id"] == -100
