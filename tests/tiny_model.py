"""A tiny random v2 talker for tests, built here: no files, no torch."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_higgs.models.v2 import Model, ModelArgs

CONFIG = {
    "model_type": "higgs_audio_v2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "vocab_size": 60,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "num_codebooks": 4,
    "codebook_size": 22,
    "audio_stream_bos_id": 20,
    "audio_stream_eos_id": 21,
    "audio_token_id": 50,
    "audio_delay_token_id": 51,
}


def tiny_model(seed: int, *, text_head: bool = False, scale: float = 0.3, **changes) -> Model:
    """Random float32 weights, norms included, so that no two paths agree by chance."""
    model = Model(ModelArgs.from_dict({**CONFIG, **changes}, text_head=text_head))
    rng = np.random.default_rng(seed)
    weights = []
    for name, array in tree_flatten(model.parameters()):
        values = rng.normal(1.0 if "norm" in name else 0.0, scale, array.shape)
        weights.append((name, mx.array(values.astype(np.float32))))
    model.load_weights(weights)
    mx.eval(model.parameters())
    return model
