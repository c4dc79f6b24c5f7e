"""Higgs Audio v3: Qwen3-4B with one table that embeds rows of codes and scores them.

Source: ``higgs_tts`` of sglang-omni, the reference implementation Boson's model card names; the
backbone is transformers' ``Qwen3Model``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..codec.checkpoint import BUNDLED
from ..delay import DelayPattern
from ..sampling import SamplingParams
from ..types import CheckpointError
from .base import Origin
from .config import check_fixed, check_sizes
from .layers import MLP, Attention, AttentionArgs, Cache
from .rotary import RopeArgs, Rotary, Turn
from .talker import Talker

MODEL_TYPES = ("higgs_multimodal_qwen3",)
BOC, EOC = -2, -1  # begin and end of a codebook: its last two ids

QWEN_FIXED = {  # field -> (Qwen3's default, what this module builds, how it is called)
    "attention_bias": (False, False, "attention biases"),
    "hidden_act": ("silu", "silu", "another activation"),
    "tie_word_embeddings": (False, True, "a text head of its own"),
    "use_sliding_window": (False, False, "a sliding window"),
}
AUDIO_FIXED = {
    "encoder_type": ("discrete", "discrete", "an encoder that makes no codes"),
    "use_delay_pattern": (True, True, "streams without a delay pattern"),
}


@dataclass(frozen=True)
class ModelArgs:
    """The talker's shape. ``codebook_vocab`` counts the codes with BOC and EOC."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    vocab_size: int
    rope: RopeArgs
    num_codebooks: int
    codebook_vocab: int
    tied_head: bool = True
    placeholder_ids: tuple[int, ...] = (-100,)  # what stands for a row in expanded prompts
    text_head: bool = False

    @classmethod
    def from_dict(cls, config: dict, text_head: bool = False) -> ModelArgs:
        """Read ``config.json``.

        Raises:
            CheckpointError: another model, an unsupported variant, a field that is missing.
        """
        if config.get("model_type") not in MODEL_TYPES:
            raise CheckpointError(
                f"The config is of model_type {config.get('model_type')!r}; "
                f"Higgs v3 is {', '.join(MODEL_TYPES)}."
            )
        try:
            text, audio = config["text_config"], config["audio_encoder_config"]
            check_fixed(text, QWEN_FIXED)
            check_fixed(audio, AUDIO_FIXED)
            sizes = {name: text[name] for name in QWEN_SIZES}
            rope = RopeArgs.from_config(text)
            if audio.get("out_dim", text["hidden_size"]) != text["hidden_size"]:
                raise CheckpointError(
                    f"The config's audio out_dim is {audio['out_dim']}, its hidden_size "
                    f"{text['hidden_size']}: they must be equal."
                )
            return cls(
                **sizes,
                rms_norm_eps=float(text["rms_norm_eps"]),
                rope=rope,
                num_codebooks=audio["num_codebooks"],
                codebook_vocab=audio["vocab_size"],
                tied_head=bool(audio.get("tie_word_embeddings", True)),
                placeholder_ids=(config.get("audio_token_id", -100),),
                text_head=text_head,
            )
        except KeyError as error:
            raise CheckpointError(f"The config lacks {error.args[0]!r}.") from error
        except CheckpointError:
            raise
        except (AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(f"The config cannot be understood: {error}.") from error

    def __post_init__(self):
        check_sizes(self)


QWEN_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)


class DecoderLayer(nn.Module):
    """Qwen3's: norms before attention and FFN, and on each head's queries and keys."""

    # what makes an input, and what reads it: one factor can go from one to the other
    SCALED_BY = (
        (("input_layernorm",), tuple(f"self_attn.{name}_proj" for name in "qkv")),
        (("post_attention_layernorm",), ("mlp.gate_proj", "mlp.up_proj")),
        (("mlp.up_proj",), ("mlp.down_proj",)),
    )

    def __init__(self, args: ModelArgs):
        super().__init__()
        D, eps = args.hidden_size, args.rms_norm_eps
        self.self_attn = Attention(
            AttentionArgs(D, args.num_attention_heads, args.num_key_value_heads, args.head_dim, eps)
        )
        self.mlp = MLP(D, args.intermediate_size)
        self.input_layernorm = nn.RMSNorm(D, eps=eps)
        self.post_attention_layernorm = nn.RMSNorm(D, eps=eps)

    def __call__(self, x: mx.array, cache: Cache | None, turn: Turn) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), cache, turn)
        return x + self.mlp(self.post_attention_layernorm(x))

    def fuse(self) -> None:
        """Fewer and larger multiplications, for generation."""
        self.self_attn.fuse()
        self.mlp.fuse()


class Model(Talker):
    """The v3 talker (see ``SpeechModel``)."""

    WEIGHT_NAMES: ClassVar[list[tuple[str, str]]] = [
        ("tied.embedding.text_embedding.", "embed_tokens."),
        ("tied.embedding.modality_embeddings.0.embedding.", "audio_codebook_embeddings."),
        ("tied.head.modality_heads.0.", "audio_lm_head."),
        ("body.", ""),
    ]
    ADAPTED = (
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    )
    TEXT_PARTS = r"embed_tokens|norm|layers\.\d+\.\w+(\.\w+)?"
    TEXT_SIDE = r"embed_tokens"  # tied: a head that no frame of speech reads
    TEXT_TABLE, TEXT_HEAD = "embed_tokens", "embed_tokens"
    # the codec's, and a text head that repeats the table
    DROPPED = (BUNDLED, "tied.head.text_head.")
    SAMPLING = SamplingParams(temperature=0.8, top_p=1.0, top_k=50, ras_window=0)
    PRESETS: ClassVar[dict[str, SamplingParams]] = {  # what sglang-omni serves with
        "reference": SamplingParams(temperature=1.0, top_p=1.0, top_k=0, ras_window=0)
    }
    NORMALIZE = False  # it was trained on texts as people write them
    ORIGIN = Origin(
        "Higgs Audio v3",
        "Boson Higgs Audio v3 Research and Non-Commercial License",
        ("bosonai/higgs-tts-3-4b", "bosonai/higgs-audio-v3-tts-4b"),
    )
    LEAST_BITS = 5
    FEW_BITS = "users of 4 report speech that never ends"

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        rows = args.num_codebooks * args.codebook_vocab
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.audio_codebook_embeddings = nn.Embedding(rows, args.hidden_size)
        self.layers = [DecoderLayer(args) for _ in range(args.num_hidden_layers)]
        self.norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        if not args.tied_head:
            self.audio_lm_head = nn.Linear(args.hidden_size, rows, bias=False)
        self._rotary = Rotary(args.rope, args.head_dim)
        self._head: nn.Linear | None = None  # the table in float32, for generation
        self._head_of: mx.array | None = None  # what it was made of

    @property
    def delay(self) -> DelayPattern:
        books, size = self.args.num_codebooks, self.args.codebook_vocab
        return DelayPattern(books, size + BOC, size + EOC, edge_frames=0, machine="strict")

    def fuse(self) -> None:
        """Fewer and larger multiplications: what generation wants and training cannot use."""
        for layer in self.layers:
            layer.fuse()
        if not self.args.tied_head:
            self.audio_lm_head.set_dtype(mx.float32)
            return
        self._head_of = self.audio_codebook_embeddings.weight
        self._head = nn.Linear(1, 1, bias=False)
        self._head.weight = self._head_of.astype(mx.float32)

    def hidden(
        self, x: mx.array, cache: Sequence[Cache] | None, is_audio: np.ndarray | None = None
    ) -> mx.array:
        """Last hidden states ``[B, S, D]``; words and codes go the same way here.

        ``cache`` None: ``x`` is all there is, as in training.
        """
        turn = self._rotary.at(cache[0].offset if cache else 0, x.shape[1], x.dtype)
        for layer, layer_cache in zip(self.layers, cache or [None] * len(self.layers), strict=True):
            x = layer(x, layer_cache, turn)
        return self.norm(x)

    def audio_logits(self, h: mx.array) -> mx.array:
        """``[..., D]`` -> float32 ``[..., K, V]``, multiplied in float32.

        Logits of this model are of the order of 100, where bfloat16 has steps of 0.5 nat.
        """
        h = h.astype(mx.float32)
        table = self.audio_codebook_embeddings
        if not self.args.tied_head:
            logits = self.audio_lm_head(h)
        elif self._head is not None and self._head_of is table.weight:
            logits = self._head(h)
        else:
            logits = table.as_linear(h)
        return logits.reshape(*h.shape[:-1], self.args.num_codebooks, self.args.codebook_vocab)

    def text_logits(self, h: mx.array) -> mx.array:
        """``[..., D]`` -> float32 ``[..., vocab_size]``, by the tied table."""
        return self.embed_tokens.as_linear(h).astype(mx.float32)

    def names_in(self, config: dict) -> list[tuple[str, str]]:
        """``WEIGHT_NAMES`` of a checkpoint with this config."""
        return self.WEIGHT_NAMES

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Tensors by the published names -> by this module's; the codec's are not the talker's."""
        repeated = ("tied.head.modality_heads.0.",) if self.args.tied_head else ()
        dropped = (*self.DROPPED, *repeated)
        return {
            self._rename(name): array
            for name, array in weights.items()
            if not name.startswith(dropped)
        }
