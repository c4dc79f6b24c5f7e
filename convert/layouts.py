"""Higgs v2's two spellings, of weight names and of configurations, as the references read them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlx_higgs.types import CheckpointError

Layout = Literal["boson", "transformers"]
LAYOUTS: tuple[Layout, ...] = ("boson", "transformers")

# transformers' convert_higgs_audio_v2_to_hf.py renames a Boson checkpoint by three patterns
_TO_TRANSFORMERS = [
    (r"^audio_codebook_embeddings\.", "model.embed_audio_tokens.embed_audio_tokens."),
    (r"^(embed_tokens|layers|norm)\.", r"model.\1."),
    (r"^audio_decoder_proj\.", ""),
]
_TO_BOSON = [
    (r"^model\.embed_audio_tokens\.embed_audio_tokens\.", "audio_codebook_embeddings."),
    (r"^model\.(embed_tokens|layers|norm)\.", r"\1."),
    (r"^((?:audio|text)_lm_head)\.", r"audio_decoder_proj.\1."),
]

# ids as offsets from <|begin_of_text|>: 128000 in the real vocabulary
EOS, EOT, AUDIO_EOS, AUDIO_OUT_BOS, AUDIO_DELAY, AUDIO_IN, AUDIO_OUT = 1, 9, 12, 13, 14, 15, 16
NUM_SPECIAL = 28

# one function in two spellings: 8192 / 4 == 1024 / 0.5 and 8192 / 1 == 1024 / 0.125
ROPE_THETA = 500_000.0
BOSON_ROPE = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
TRANSFORMERS_ROPE = {
    "factor": 32.0,
    "high_freq_factor": 0.5,
    "low_freq_factor": 0.125,
    "original_max_position_embeddings": 1024,
    "rope_theta": ROPE_THETA,
    "rope_type": "llama3",
}


@dataclass(frozen=True)
class Widths:
    """Every size of one Higgs v2 talker. ``codes`` counts real codes, without BOS and EOS."""

    hidden_size: int = 3072
    intermediate_size: int = 8192
    layers: int = 28
    heads: int = 24
    kv_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 128_256
    first_special: int = 128_000  # the id of <|begin_of_text|>
    codebooks: int = 8
    codes: int = 1024


REAL = Widths()


def rename(name: str, layout: Layout) -> str:
    """A weight name in ``layout``'s spelling, whichever of the two it came in."""
    table = _TO_TRANSFORMERS if layout == "transformers" else _TO_BOSON
    for pattern, replacement in table:
        name, hits = re.subn(pattern, replacement, name)
        if hits:
            break
    return name


def weight_layout(names: list[str]) -> Layout:
    """Whose names these are. The configuration beside them may be of the other layout."""
    known: dict[str, Layout] = {
        "audio_codebook_embeddings.weight": "boson",
        "model.embed_audio_tokens.embed_audio_tokens.weight": "transformers",
    }
    found: list[Layout] = [layout for name, layout in known.items() if name in names]
    if len(found) != 1:
        raise CheckpointError(f"These {len(names)} tensors are no Higgs v2 talker: no audio table.")
    return found[0]


def transformers_config(w: Widths) -> dict[str, Any]:
    """Keyword arguments of ``HiggsAudioV2Config``; its ``codebook_size`` counts BOS and EOS."""
    return {
        "vocab_size": w.vocab_size,
        "hidden_size": w.hidden_size,
        "intermediate_size": w.intermediate_size,
        "num_hidden_layers": w.layers,
        "num_attention_heads": w.heads,
        "num_key_value_heads": w.kv_heads,
        "head_dim": w.head_dim,
        "num_codebooks": w.codebooks,
        "codebook_size": w.codes + 2,
        "audio_stream_bos_id": w.codes,
        "audio_stream_eos_id": w.codes + 1,
        "bos_token_id": w.first_special,
        "pad_token_id": w.first_special + EOS,
        "eos_token_id": w.first_special + EOT,
        "audio_bos_token_id": w.first_special + AUDIO_OUT_BOS,
        "audio_delay_token_id": w.first_special + AUDIO_DELAY,
        "audio_token_id": w.first_special + AUDIO_OUT,
        "rope_parameters": dict(TRANSFORMERS_ROPE),
    }


def boson_config(w: Widths, dtype: str) -> dict[str, Any]:
    """The nested ``config.json`` of Boson's own code, with the real checkpoint's switches."""
    return {
        "architectures": ["HiggsAudioModel"],
        "model_type": "higgs_audio",
        "audio_adapter_type": "dual_ffn_fast_forward",
        "audio_dual_ffn_layers": list(range(w.layers)),
        "audio_embed_avg": False,
        "audio_ffn_hidden_size": w.hidden_size,
        "audio_ffn_intermediate_size": w.intermediate_size,
        "audio_decoder_proj_num_layers": 0,
        "audio_num_codebooks": w.codebooks,
        "audio_codebook_size": w.codes,
        "audio_stream_bos_id": w.codes,
        "audio_stream_eos_id": w.codes + 1,
        "audio_in_token_idx": w.first_special + AUDIO_IN,
        "audio_out_token_idx": w.first_special + AUDIO_OUT,
        "audio_out_bos_token_id": w.first_special + AUDIO_OUT_BOS,
        "audio_eos_token_id": w.first_special + AUDIO_EOS,
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
        "audio_out_bos_token": "<|audio_out_bos|>",
        "audio_in_token": "<|AUDIO|>",
        "audio_out_token": "<|AUDIO_OUT|>",
        "pad_token_id": w.first_special + EOS,
        "hidden_size": w.hidden_size,
        "encode_whisper_embed": False,
        "encode_audio_in_tokens": True,
        "use_delay_pattern": True,
        "skip_audio_tower": True,
        "use_audio_out_embed_projector": False,
        "use_audio_out_self_attention": False,
        "use_rq_transformer": False,
        "audio_tokenizer_config": None,
        "torch_dtype": dtype,
        "transformers_version": "4.46.3",
        "text_config": _boson_text_config(w, dtype),
    }


def _boson_text_config(w: Widths, dtype: str) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": w.hidden_size,
        "intermediate_size": w.intermediate_size,
        "num_hidden_layers": w.layers,
        "num_attention_heads": w.heads,
        "num_key_value_heads": w.kv_heads,
        "head_dim": w.head_dim,
        "vocab_size": w.vocab_size,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131_072,
        "rope_theta": ROPE_THETA,
        "rope_scaling": dict(BOSON_ROPE),
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "bos_token_id": w.first_special,
        "eos_token_id": w.first_special + EOS,
        "pad_token_id": None,
        "tie_word_embeddings": True,  # the real file says so too, yet its heads are not tied
        "torch_dtype": dtype,
    }


def read_config(folder: Path) -> tuple[Layout, dict[str, Any]]:
    """A folder's ``config.json`` as arguments of ``HiggsAudioV2Config``, and its own layout."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    try:
        if "text_config" in raw:
            return "boson", _from_boson(raw)
        if raw["model_type"] == "higgs_audio_v2":
            return "transformers", raw
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error}.") from error
    raise CheckpointError(f"{path} is no Higgs v2 config: model_type is {raw['model_type']!r}.")


def _from_boson(raw: dict[str, Any]) -> dict[str, Any]:
    text = raw["text_config"]
    same = [
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps"),
    ]
    return {
        **{name: text[name] for name in same},
        "max_position_embeddings": text["max_position_embeddings"],
        "rope_parameters": {**text["rope_scaling"], "rope_theta": text["rope_theta"]},
        "bos_token_id": text["bos_token_id"],
        "eos_token_id": text["bos_token_id"] + EOT,
        "pad_token_id": raw["pad_token_id"],
        "num_codebooks": raw["audio_num_codebooks"],
        "codebook_size": raw["audio_codebook_size"] + 2,
        "audio_stream_bos_id": raw["audio_stream_bos_id"],
        "audio_stream_eos_id": raw["audio_stream_eos_id"],
        "audio_token_id": raw["audio_out_token_idx"],
        "audio_bos_token_id": raw["audio_out_bos_token_id"],
        # Boson has no such token; transformers took the reserved id after <|audio_out_bos|>
        "audio_delay_token_id": raw["audio_out_bos_token_id"] + AUDIO_DELAY - AUDIO_OUT_BOS,
    }
