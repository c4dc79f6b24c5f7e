"""Plain Qwen3 weights in the talker's backbone: words in, words out, no codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx

from ..models import v3
from ..types import CheckpointError
from ..weights import load_tensors, named_arrays, read_json, weight_files

TABLE = "audio_codebook_embeddings.weight"
NO_CODES = {"num_codebooks": 1, "vocab_size": 3}  # the smallest table there can be: never looked up


def is_plain_qwen3(config: dict) -> bool:
    """Whether a ``config.json`` is that of a language model alone."""
    return config.get("model_type") == "qwen3"


def open_qwen3(folder: Path, dtype: str) -> Any:
    """A ``SpeechModel`` of a Qwen3 checkpoint with tied heads (0.6B, 1.7B, 4B); not read yet.

    Raises:
        CheckpointError: another variant, or tensors that do not fit.
    """
    text = read_json(folder / "config.json")
    if "quantization" in text or "quantization_config" in text:
        raise CheckpointError(f"{folder} is quantised: the gate takes original Qwen3 weights.")
    config = {
        "model_type": v3.MODEL_TYPES[0],
        "text_config": text,
        "audio_encoder_config": NO_CODES,
    }
    model = v3.Model(v3.ModelArgs.from_dict(config))
    tensors = {
        name.removeprefix("model."): array
        for name, array in load_tensors(weight_files(folder)).items()
        if name != "lm_head.weight"  # tied: some files repeat the table
    }
    tensors[TABLE] = mx.zeros(named_arrays(model)[TABLE].shape)
    try:
        model.load_weights(list(tensors.items()))
    except ValueError as error:
        raise CheckpointError(f"{folder} does not fit its config: {error}") from error
    model.set_dtype(getattr(mx, dtype))
    model.fuse()
    return model
