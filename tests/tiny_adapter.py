"""Adapters on tiny talkers, trained for a few steps by mlx-lm's own layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from tiny_model import tiny_model

from mlx_higgs.adapters import save_adapter
from mlx_higgs.types import Audio, Text

KEYS = ["self_attn.q_proj", "self_attn.v_proj", "audio_mlp.down_proj", "mlp.up_proj"]
TABLES = ["audio_codebook_embeddings", "audio_decoder_proj.audio_lm_head", "embed_tokens"]
CHANGES = {"intermediate_size": 96}  # no two widths alike


def base(seed: int, **changes: Any) -> Any:
    return tiny_model(seed, **{**CHANGES, **changes})


def prompt_logits(model: Any) -> np.ndarray:
    """float32 ``[S, K, V]`` of words and codes, both paths of every layer."""
    rng = np.random.default_rng(3)
    codes = mx.array(rng.integers(0, model.delay.codebook_size, (6, model.delay.num_codebooks)))
    x, is_audio = model.embed_prompt([Text([3, 1, 4, 1, 5]), Audio(codes), Text([9])])
    return np.array(model.audio_logits(model.hidden(x, model.make_cache(), is_audio))[0])


def config(kind: str, keys: list[str], rank: int = 3, scale: float = 1.7) -> dict:
    parameters = {"rank": rank, "scale": scale, "dropout": 0.3, "keys": keys}
    return {"fine_tune_type": kind, "num_layers": 1, "lora_parameters": parameters}


def adapted(model: Any, settings: dict, seed: int) -> Any:
    """The talker with trainable layers after some steps, ready to speak."""
    from mlx_lm.tuner.utils import linear_to_lora_layers

    mx.random.seed(seed)
    if settings["fine_tune_type"] != "full":
        model.freeze()
        dora = settings["fine_tune_type"] == "dora"
        linear_to_lora_layers(
            model, settings["num_layers"], settings["lora_parameters"], use_dora=dora
        )
    _train(model)
    model.eval()
    mx.eval(model.parameters())
    return model


def _train(model: Any, steps: int = 4) -> None:
    rng = np.random.default_rng(5)
    codes = mx.array(rng.integers(0, model.delay.codebook_size, (6, model.delay.num_codebooks)))
    target = mx.array(rng.normal(size=(1, 32, *prompt_logits(model).shape[1:])))

    def loss(model: Any) -> mx.array:
        x, is_audio = model.embed_prompt([Text([2, 7, 1, 8]), Audio(codes)])
        logits = model.audio_logits(model.hidden(x, model.make_cache(), is_audio))
        return ((logits - target[:, : logits.shape[1]]) ** 2).mean()

    step, optimizer = nn.value_and_grad(model, loss), optim.Adam(0.02)
    model.train()
    for _ in range(steps):
        _, gradients = step(model)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)


def saved(folder: Path, seed: int, settings: dict, **changes: Any) -> np.ndarray:
    """Train on ``base(seed)`` and save; the logits of what was trained."""
    model = adapted(base(seed, **changes), settings, seed)
    save_adapter(folder, model, settings)
    return prompt_logits(model)


def off(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, as a share of the spread."""
    return float(np.abs(found - expected).max() / expected.std())


def arrays(model: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))
