"""Tiny random checkpoints of what Boson's v2 code can be configured to, beside what is published.

python convert/tiny_variants.py fast_forward FOLDER --seed 7
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file or with -m

from convert.layouts import Widths, boson_config

SIZES = Widths(
    hidden_size=32,
    intermediate_size=64,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=8,
    vocab_size=90,
    first_special=60,
    codebooks=4,
    codes=16,
)
SKIPPING = {"audio_adapter_type": "dual_ffn_fast_forward", "audio_dual_ffn_layers": [1]}
ATTENDING = {"audio_dual_ffn_layers": [0, 2], "use_audio_out_self_attention": True}
PROJECTED = {"audio_embed_avg": True, "use_audio_out_embed_projector": True}
TWELVE = {"audio_num_codebooks": 12}  # the reference's default, as is nearly all of `stack`
VARIANTS: dict[str, dict[str, Any]] = {
    "stack": {"audio_adapter_type": "stack", "audio_dual_ffn_layers": None},
    "some_dual": {"audio_adapter_type": "dual_ffn", "audio_dual_ffn_layers": [1]},
    "fast_forward": SKIPPING,
    "self_attention": {"audio_adapter_type": "dual_ffn", **ATTENDING},
    "projected": PROJECTED,
    "twelve": TWELVE,
    "undelayed": {"use_delay_pattern": False},
    "everything": {**SKIPPING, **ATTENDING, **PROJECTED, **TWELVE},
}


def variant_config(variant: str) -> dict[str, Any]:
    """The nested ``config.json`` of a variant's tiny checkpoint."""
    return {**boson_config(SIZES, "float32"), **VARIANTS[variant]}


def write_variant(folder: str | Path, variant: str, *, seed: int) -> dict[str, Any]:
    """Write a random float32 talker under Boson's names; its config."""
    from safetensors.numpy import save_file

    folder, config = Path(folder), variant_config(variant)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(random_tensors(config, seed), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return config


def random_tensors(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """The same numbers for a seed wherever numpy runs: ``RandomState`` never changes."""
    w = replace(SIZES, codebooks=config["audio_num_codebooks"])
    random = np.random.RandomState(seed % 2**32)
    tensors = {}
    for name, shape in shapes(config, w):
        noise = random.standard_normal(shape)
        if len(shape) == 1:
            noise = 1 + 0.2 * noise
        elif "embed" not in name or "projector" in name:
            noise *= (2 if "lm_head" in name else 1) / math.sqrt(shape[1])
        tensors[name] = noise.astype(np.float32)
    # quiet BOS and EOS rows: a random head would end every greedy run within a few rows
    head = tensors["audio_decoder_proj.audio_lm_head.weight"]
    head.reshape(w.codebooks, w.codes + 2, -1)[:, w.codes :] *= 0.1
    return tensors


def shapes(config: dict[str, Any], w: Widths) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of ``HiggsAudioModel`` with this config, without an audio tower."""
    D, rows = w.hidden_size, w.codebooks * (w.codes + 2)
    yield "embed_tokens.weight", (w.vocab_size, D)
    yield "audio_codebook_embeddings.weight", (rows, D)
    yield "norm.weight", (D,)
    yield "audio_decoder_proj.audio_lm_head.weight", (rows, D)
    yield "audio_decoder_proj.text_lm_head.weight", (w.vocab_size, D)
    if config["use_audio_out_embed_projector"]:
        yield "audio_out_embed_projector.weight", (D, D)
    for layer in range(w.layers):
        for name, shape in _layer(config, w, layer in (config["audio_dual_ffn_layers"] or [])):
            yield f"layers.{layer}.{name}.weight", shape


def _layer(config: dict[str, Any], w: Widths, dual: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    D, F = w.hidden_size, w.intermediate_size
    queries, keys = w.heads * w.head_dim, w.kv_heads * w.head_dim
    attended = dual and config["use_audio_out_self_attention"]
    for attention in ("self_attn", "audio_attn") if attended else ("self_attn",):
        for name, rows in zip("qkv", (queries, keys, keys), strict=True):
            yield f"{attention}.{name}_proj", (rows, D)
        yield f"{attention}.o_proj", (D, queries)
    for side in ("", "audio_") if dual else ("",):
        yield f"{side}input_layernorm", (D,)
        yield f"{side}post_attention_layernorm", (D,)
        yield f"{side}mlp.gate_proj", (F, D)
        yield f"{side}mlp.up_proj", (F, D)
        yield f"{side}mlp.down_proj", (D, F)
    if attended:
        yield "audio_post_audio_attn_layer_norm", (D,)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny random checkpoint of a variant.")
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_variant(args.folder, args.variant, seed=args.seed)


if __name__ == "__main__":
    main()
