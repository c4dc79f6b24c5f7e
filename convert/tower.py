"""Tiny checkpoints that listen: a random audio tower beside a talker there is. Needs no torch."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_higgs.models.tower import ENCODER, AudioTower, FeatureProjector, TowerArgs
from mlx_higgs.sources import DEMO
from mlx_higgs.weights import named_arrays

SIZES = {  # of a tower that takes a moment; its positions are the real ones
    "num_mel_bins": 16,
    "d_model": 24,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
}
FILE = "model.safetensors"


def write_listener(folder: str | Path, *, seed: int, **choices: Any) -> Path:
    """The bundled demo with a random tower: it listens to what is in its system turn, and speaks.

    Args:
        choices: as `add_tower`.
    """
    folder = Path(folder)
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.md"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(nested(config), indent=2))
    return add_tower(folder, seed=seed, **choices)


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """A config in Boson's layout from one in transformers'."""
    opening = flat["audio_bos_token_id"]
    text = {k: v for k, v in flat.items() if not k.startswith(("audio", "codebook", "num_codeb"))}
    return {
        "architectures": ["HiggsAudioModel"],
        "model_type": "higgs_audio",
        "text_config": text | {"model_type": "llama"},
        "audio_adapter_type": "dual_ffn",
        "audio_dual_ffn_layers": list(range(flat["num_hidden_layers"])),
        "audio_num_codebooks": flat["num_codebooks"],
        "audio_codebook_size": flat["codebook_size"] - 2,
        "audio_stream_bos_id": flat["audio_stream_bos_id"],
        "audio_stream_eos_id": flat["audio_stream_eos_id"],
        "audio_out_bos_token_id": opening,
        "audio_in_token_idx": opening + 2,
        "audio_out_token_idx": flat["audio_token_id"],
        "pad_token_id": flat["pad_token_id"],
        "use_delay_pattern": True,
        "encode_audio_in_tokens": True,
        "encode_whisper_embed": False,
        "skip_audio_tower": True,
    }


def add_tower(folder: Path, *, seed: int, codes: bool = True, **sizes: int) -> Path:
    """Give a checkpoint in one file, with Boson's config, a random tower.

    Args:
        codes: it reads a recording's codes as well as its features.
        sizes: fields of ``TowerArgs`` in place of ``SIZES``.
    """
    args = TowerArgs(**{**SIZES, **sizes})
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "audio_encoder_config": {"model_type": ENCODER, **asdict(args)},
        "skip_audio_tower": False,
        "encode_whisper_embed": True,
        "encode_audio_in_tokens": codes,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors = mx.load(str(folder / FILE))
    assert isinstance(tensors, dict)
    dtype = next(iter(tensors.values())).dtype
    hidden = config["text_config"]["hidden_size"]
    tower = {k: v.astype(dtype) for k, v in random_tower(args, hidden, seed).items()}
    mx.eval(tensors, tower)
    mx.save_safetensors(str(folder / FILE), {**tensors, **tower}, {"format": "pt"})
    return folder


def random_tower(args: TowerArgs, hidden_size: int, seed: int) -> dict[str, mx.array]:
    """float32 tensors by Boson's names; the positions are Whisper's sinusoids."""
    rng = np.random.default_rng(seed)
    parts = {
        "audio_tower": AudioTower(args),
        "audio_encoder_proj": FeatureProjector(args.d_model, hidden_size),
    }
    shapes = {f"{p}.{n}": a.shape for p, m in parts.items() for n, a in named_arrays(m).items()}
    tensors = {name: _random(name, shape, rng) for name, shape in shapes.items()}
    tensors["audio_tower.embed_positions.weight"] = sinusoids(
        args.max_source_positions, args.d_model
    )
    return {name: mx.array(array.astype(np.float32)) for name, array in tensors.items()}


def _random(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(size=shape)
    if len(shape) > 1:
        return noise / math.sqrt(math.prod(shape[1:]))
    return 0.2 * noise + (1 if "norm" in name and name.endswith("weight") else 0)


def sinusoids(length: int, width: int) -> np.ndarray:
    """Whisper's: sines, then cosines, of periods from 2 pi to 20000 pi positions."""
    rates = np.exp(-math.log(10_000) / (width // 2 - 1) * np.arange(width // 2))
    angles = np.arange(length)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
