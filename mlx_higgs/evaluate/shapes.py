"""Talkers of a named shape with random weights: speed does not depend on what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
from mlx.utils import tree_unflatten

from ..loading import build_model, leaves
from ..quantization import Plan, Quantization, quantizable, quantize_module
from ..types import InputError
from ..weights import named_arrays
from .speed_options import UNQUANTISED

if TYPE_CHECKING:
    from ..models.base import SpeechModel

LLAMA3 = {  # Llama-3.2-3B's positions
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _v2(
    hidden: int,
    ffn: int,
    layers: int,
    heads: tuple[int, int],
    vocab: int = 4096,
    codes: int = 1026,
) -> dict:
    """A config in transformers' layout; ``heads`` are those of queries and of keys."""
    return {
        "model_type": "higgs_audio_v2",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": hidden // heads[0],
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "vocab_size": vocab,
        "rope_parameters": LLAMA3,
        "num_codebooks": 8,
        "codebook_size": codes,
        "audio_stream_bos_id": codes - 2,
        "audio_stream_eos_id": codes - 1,
        "audio_token_id": vocab - 1,
        "audio_delay_token_id": vocab - 2,
    }


def _v3(
    hidden: int,
    ffn: int,
    layers: int,
    heads: tuple[int, int],
    head_dim: int,
    vocab: int = 4096,
    codes: int = 1026,
) -> dict:
    """A config as v3 is published; ``heads`` are those of queries and of keys."""
    return {
        "model_type": "higgs_multimodal_qwen3",
        "text_config": {
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": heads[0],
            "num_key_value_heads": heads[1],
            "head_dim": head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "vocab_size": vocab,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
        "audio_encoder_config": {"num_codebooks": 8, "vocab_size": codes, "out_dim": hidden},
    }


# FFN as in a Llama of that width (8/3 of it, up to a multiple of 256), of v3's as in its own: 3.8
SHAPES: dict[str, dict] = {
    "v2-3b": _v2(3072, 8192, 28, (24, 8), vocab=128_256),  # the published talker
    "small": _v2(1024, 2816, 8, (16, 4)),  # bound by its weights even on a small CPU
    "narrow": _v2(256, 768, 28, (4, 1)),  # bound by its many small steps
    "tiny": _v2(64, 128, 2, (2, 1), vocab=64, codes=66),  # for trying the command
    "v3-4b": _v3(2560, 9728, 36, (32, 8), 128, vocab=151_936),
    "v3-small": _v3(1024, 3840, 8, (16, 4), 64),
    "v3-narrow": _v3(256, 1024, 28, (4, 1), 64),
    "v3-tiny": _v3(64, 128, 2, (2, 1), 32, vocab=64, codes=66),
}


@dataclass(frozen=True)
class Width:
    """How the weights are held: ``bits`` of 16 and 32 are not quantised."""

    bits: int
    dtype: str  # of what is not quantised

    @classmethod
    def of(cls, bits: int, dtype: str) -> Width:
        """A width as ``--q-bits`` and ``--dtype`` name it.

        Raises:
            InputError: a number of bits that does not exist.
        """
        if bits == 32:
            return cls(bits, "float32")
        if bits == 16:
            return cls(bits, dtype if dtype != "float32" else "bfloat16")
        Quantization.of(bits)
        return cls(bits, dtype)

    @property
    def quantization(self) -> Quantization | None:
        return None if self.bits in UNQUANTISED else Quantization.of(self.bits)

    @property
    def label(self) -> str:
        return self.dtype if self.quantization is None else f"q{self.bits}"


def shape_config(name: str) -> dict:
    """The config of a named shape.

    Raises:
        InputError: no such shape.
    """
    if name not in SHAPES:
        raise InputError(f"There is no shape {name!r}: use one of {', '.join(SHAPES)}.")
    return SHAPES[name]


def random_talker(config: dict, width: Width, seed: int = 0, *, lazy: bool = False) -> SpeechModel:
    """A talker whose logits have a spread near 1; the same seed draws the same weights.

    Args:
        lazy: allocate nothing; enough to count bytes.
    """
    model = build_model(config)
    chosen = quantizable(model, Plan.of(width.quantization))
    key, dtype = mx.random.key(seed), getattr(mx, width.dtype)
    modules = leaves(model)
    for path in list(modules):
        module = modules.pop(path)  # whatever still held it would hold what it is quantised from
        key, own = mx.random.split(key)
        drawn = [
            (n, _drawn(n, a.shape, own).astype(dtype)) for n, a in named_arrays(module).items()
        ]
        module.update(tree_unflatten(drawn))
        if path in chosen:
            module = quantize_module(module, chosen[path])
            model.update_modules(tree_unflatten([(path, module)]))
        if not lazy:
            mx.eval(module.parameters())
            mx.clear_cache()  # what it was made of
    return model


def _drawn(name: str, shape: tuple[int, ...], key: mx.array) -> mx.array:
    """Norm weights are 1; rows of a matrix keep the size of what they multiply."""
    if len(shape) == 1:
        return mx.ones(shape)
    bound = (3 / shape[-1]) ** 0.5
    return mx.random.uniform(-bound, bound, shape, key=key)
