"""Tiny random checkpoints of Higgs v3 as published: one file, its codec among the tensors.

python -m convert.tiny_v3 FOLDER --seed 7 --codec CODEC_FOLDER
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mlx_higgs.codec.checkpoint import BUNDLED
from mlx_higgs.loading import build_model
from mlx_higgs.prompts.tags import TAGS
from mlx_higgs.weights import load_tensors, named_arrays, weight_files

CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|tts|>",
    "<|audio|>",
    "<|audio_end|>",
    "<|text|>",
    "<|ref_audio|>",
    "<|ref_text|>",
    *TAGS,
)


def config(*, codes: int = 32, codebooks: int = 8, tied: bool = True, **text: Any) -> dict:
    """A config as the published one is laid out; ``text`` are fields of its ``text_config``."""
    qwen = {
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 256 + len(CONTROL_TOKENS) + 4,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_theta": 1_000_000, "rope_type": "default"},
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        **text,
    }
    return {
        "model_type": "higgs_multimodal_qwen3",
        "architectures": ["HiggsMultimodalQwen3ForConditionalGeneration"],
        "audio_token_id": -100,
        "mel_per_sample": 8,
        "text_config": qwen,
        "audio_encoder_config": {
            "model_type": "higgs_audio_encoder",
            "encoder_type": "discrete",
            "num_codebooks": codebooks,
            "vocab_size": codes + 2,
            "out_dim": qwen["hidden_size"],
            "use_delay_pattern": True,
            "tie_word_embeddings": tied,
        },
    }


def write_v3(
    folder: Path, *, seed: int, codec: Path | None = None, dtype: str = "float32", **sizes: Any
) -> Path:
    """Write a random talker to ``folder`` under the published names.

    Args:
        codec: a codec folder in transformers' layout, whose tensors go into the same file.
        sizes: as ``config`` takes them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = config(**sizes)
    model = build_model(settings)
    rng = np.random.default_rng(seed)
    tensors = {
        _published(name, model.WEIGHT_NAMES): _random(name, array.shape, rng).astype(
            getattr(mx, dtype)
        )
        for name, array in named_arrays(model).items()
    }
    if codec is not None:
        tensors |= {BUNDLED + k: v for k, v in load_tensors(weight_files(codec)).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def _published(name: str, table: list[tuple[str, str]]) -> str:
    theirs, ours = next(pair for pair in table if name.startswith(pair[1]))
    return theirs + name.removeprefix(ours)


def _random(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> mx.array:
    """Logits of a std near 2, and markers quiet enough that a stream lasts for a while."""
    noise = rng.normal(size=shape).astype(np.float32)
    if len(shape) == 1:  # norms
        return mx.array(1 + 0.2 * noise)
    if name.startswith(("audio_codebook_embeddings", "audio_lm_head")):
        noise *= 2 / math.sqrt(shape[1])
        return mx.array(noise)
    return mx.array(noise if "embed" in name else noise / math.sqrt(shape[1]))


def byte_tokenizer() -> Tokenizer:
    """A token a byte, and the control tokens after them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    # as in the published tokenizer: the tags are single tokens, and not all of them are "special"
    tokenizer.add_tokens(
        [AddedToken(t, special=t not in TAGS, normalized=False) for t in CONTROL_TOKENS]
    )
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny random Higgs v3 checkpoint.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--codec", type=Path, help="a codec's folder, to be bundled")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--codes", type=int, default=32, help="of a codebook; the codec's")
    args = parser.parse_args()
    write_v3(args.folder, seed=args.seed, codec=args.codec, dtype=args.dtype, codes=args.codes)


if __name__ == "__main__":
    main()
