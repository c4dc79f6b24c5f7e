"""The talkers, one file per generation. A config's ``model_type`` picks the file."""

from __future__ import annotations

import importlib

from ..types import CheckpointError

FAMILIES = {"higgs_audio": "v2", "higgs_audio_v2": "v2", "higgs_multimodal_qwen3": "v3"}


def get_model_classes(config: dict) -> tuple[type, type]:
    """``(Model, ModelArgs)`` of a config; the signature ``mlx_lm.utils.load_model`` wants."""
    module = importlib.import_module(f".{family(config)}", __name__)
    return module.Model, module.ModelArgs


def family(config: dict) -> str:
    """The module's name in ``models`` and in ``prompts`` for a config.

    Raises:
        CheckpointError: it is no talker's.
    """
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise CheckpointError(f"A checkpoint of model_type {model_type!r} is not Higgs: {known}.")
    return FAMILIES[model_type]
