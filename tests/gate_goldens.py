"""Goldens of the two gates from a model's own forward, without a cache and without torch."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_higgs.evaluate.parity import embed_golden
from mlx_higgs.weights import load_tensors, weight_files

CODES = 128  # more than the 64 likely codes that are compared


def likeliest(logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and float32 log-probabilities ``[..., count]``."""
    scores = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :count]
    return order, np.take_along_axis(scores, order, -1).astype(np.float32)


def forward(model, ids: np.ndarray, rows: np.ndarray) -> mx.array:
    """Hidden states ``[S, D]`` in one go, without a cache."""
    x, is_audio = embed_golden(model, ids, rows)
    return model.hidden(x, None, is_audio)[0]


def text_golden(model, seed: int, path: Path, lengths: tuple[int, ...], fed: int = 4) -> Path:
    """A golden by the model's own forward, in the arrays of openinfer's files."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(1, 256, n) for n in lengths]
    tails = rng.integers(1, 256, (len(lengths), fed))
    ids, scores = [], []
    for prompt, tail in zip(prompts, tails, strict=True):
        whole = np.concatenate([prompt, tail])
        h = forward(model, whole, np.zeros((0, 8)))[len(prompt) - 1 :]
        best = likeliest(np.array(model.text_logits(h)), 64)
        ids.append(best[0])
        scores.append(best[1])
    arrays = {
        "prompt_tokens": np.concatenate(prompts),
        "prompt_lens": np.array(lengths),
        "decode_tokens": tails,
        "topk_ids": np.stack(ids),
    }
    arrays = {name: mx.array(array.astype(np.int32)) for name, array in arrays.items()}
    arrays["topk_logprobs"] = mx.array(np.stack(scores))
    mx.save_safetensors(str(path), arrays, {"dtype": "float32"})
    return path


def audio_golden(model, seed: int, path: Path, *, rows: tuple[int, ...] = (0, 3, 9)) -> Path:
    """A golden by the model's own forward, in the arrays of the fork's files."""
    rng = np.random.default_rng(seed)
    runs = [np.array([*rng.integers(0, 256, 5 + n), *[-100] * n]) for n in rows]
    said = [rng.integers(0, CODES + 2, (n, 8)) for n in rows]
    h = mx.stack([forward(model, *pair)[-1] for pair in zip(runs, said, strict=True)])
    logits = np.array(model.audio_logits(h))
    top, scores = likeliest(logits, 64)
    lengths = np.array([len(run) for run in runs])
    longest = lengths.max()
    arrays = {
        "prompt.input_ids_padded": np.stack([np.pad(r, (0, longest - len(r))) for r in runs]),
        "prompt.attention_mask": (np.arange(longest) < lengths[:, None]).astype(np.int64),
        "prompt.lengths": lengths,
        "audio_top64.ids": top,
        "audio_argmax.ids": logits.argmax(-1),
        "prompt.audio_rows": np.concatenate(said),
    }
    saved = {name: mx.array(array) for name, array in arrays.items()}
    saved |= {"audio_logits.f32": mx.array(logits), "audio_top64.logprobs.f32": mx.array(scores)}
    saved["final_hidden.bf16"] = h.astype(mx.bfloat16)  # as the fork keeps it
    mx.save_safetensors(str(path), saved, {"dtype": "float32"})
    return path


def plain_qwen3(folder: Path, target: Path, **changes) -> Path:
    """The backbone of a v3 checkpoint as Qwen3 is published, its table a second time as a head."""
    target.mkdir()
    text = json.loads((folder / "config.json").read_text())["text_config"]
    flat = {"rope_parameters": None, "rope_theta": 1_000_000, "rope_scaling": None}
    (target / "config.json").write_text(json.dumps({**text, **flat, **changes}))
    tensors = load_tensors(weight_files(folder))
    table = tensors["tied.embedding.text_embedding.weight"]
    renamed = {
        "model." + name.removeprefix("body."): array
        for name, array in tensors.items()
        if name.startswith("body.")
    }
    repeated = {"model.embed_tokens.weight": table, "lm_head.weight": table}
    mx.save_safetensors(str(target / "model.safetensors"), {**renamed, **repeated})
    return target
