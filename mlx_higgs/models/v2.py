"""Higgs Audio v2: Llama-3.2-3B whose layers carry a second norm and FFN for audio positions.

Source: Boson's ``HiggsAudioModel`` and transformers' ``HiggsAudioV2ForConditionalGeneration``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..delay import DelayPattern
from ..sampling import SamplingParams
from ..types import CheckpointError, Hearing, InputError
from .base import Origin
from .cache import KVCache, length
from .config import check_fixed, check_sizes
from .layers import Cache, Route
from .rotary import RopeArgs, Rotary
from .talker import Talker
from .tower import AudioTower, FeatureProjector, TowerArgs, listening_bytes, read_hearing
from .variants import LAYERS, Kind, PlainLayer, adapted, layer_kinds, unspoken

TEXT_HEAD = "audio_decoder_proj.text_lm_head"
HEARS = (r"audio_tower\..+", r"audio_encoder_proj\..+")
MODEL_TYPES = ("higgs_audio_v2", "higgs_audio")  # transformers' flat and Boson's nested config

# Boson's config: field -> (the reference's default, what this module builds, how it is called)
BOSON_FIXED = {
    "audio_decoder_proj_num_layers": (0, 0, "decoder projection layers"),
    "use_rq_transformer": (False, False, "a transformer over codebooks"),
}
LLAMA_FIXED = {
    "attention_bias": (False, False, "attention biases"),
    "hidden_act": ("silu", "silu", "another activation"),
    "mlp_bias": (False, False, "FFN biases"),
}


@dataclass(frozen=True)
class ModelArgs:
    """The talker's shape, from either config layout.

    ``codebook_vocab`` counts the codes with BOS and EOS; both layouts call theirs
    ``codebook_size``, but Boson's leaves those two out.
    """

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
    audio_stream_bos_id: int
    audio_stream_eos_id: int
    placeholder_ids: tuple[int, ...]  # ids that stand for a row of codes in expanded prompts
    layers: tuple[Kind, ...]
    delayed: bool = True  # each codebook is a row behind the one before it
    averaged: bool = False  # a row is the mean of its codes, not their sum
    projected: bool = False  # and goes through a matrix
    text_head: bool = False
    hearing: Hearing = field(default_factory=Hearing)
    tower: TowerArgs | None = None

    @classmethod
    def from_dict(cls, config: dict, text_head: bool = False) -> ModelArgs:
        """Read ``config.json``.

        Raises:
            CheckpointError: another model, an unsupported variant, a field that is missing.
        """
        if config.get("model_type") not in MODEL_TYPES:
            raise CheckpointError(
                f"The config is of model_type {config.get('model_type')!r}; "
                f"Higgs v2 is one of {', '.join(MODEL_TYPES)}."
            )
        nested = "text_config" in config
        try:
            text = config["text_config"] if nested else config
            check_fixed(text, LLAMA_FIXED)
            audio = _boson_audio(config) if nested else _transformers_audio(config)
            return cls(**_llama(text), **audio, text_head=text_head)
        except KeyError as error:
            raise CheckpointError(f"The config lacks {error.args[0]!r}.") from error
        except CheckpointError:
            raise
        except (AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
            raise CheckpointError(f"The config cannot be understood: {error}.") from error

    def __post_init__(self):
        check_sizes(self)
        specials = {self.audio_stream_bos_id, self.audio_stream_eos_id}
        if specials != {self.codebook_vocab - 2, self.codebook_vocab - 1}:
            raise CheckpointError(
                f"BOS and EOS ids {sorted(specials)} must be the last two of a codebook vocabulary "
                f"of {self.codebook_vocab}."
            )


def _llama(text: dict) -> dict:
    heads = text["num_attention_heads"]
    return {
        "hidden_size": text["hidden_size"],
        "intermediate_size": text["intermediate_size"],
        "num_hidden_layers": text["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": text.get("num_key_value_heads") or heads,
        "head_dim": text.get("head_dim") or text["hidden_size"] // heads,
        "rms_norm_eps": float(text["rms_norm_eps"]),
        "vocab_size": text["vocab_size"],
        "rope": RopeArgs.from_config(text),
    }


def _boson_audio(config: dict) -> dict:
    check_fixed(config, BOSON_FIXED)
    hearing, tower = read_hearing(config)
    return {
        "hearing": hearing,
        "tower": tower,
        "num_codebooks": config["audio_num_codebooks"],
        "codebook_vocab": config["audio_codebook_size"] + 2,
        "audio_stream_bos_id": config["audio_stream_bos_id"],
        "audio_stream_eos_id": config["audio_stream_eos_id"],
        # transformers marks the last rows of a clip by the id after <|audio_out_bos|>
        "placeholder_ids": (config["audio_out_token_idx"], config["audio_out_bos_token_id"] + 1),
        "layers": layer_kinds(config),
        "delayed": bool(config.get("use_delay_pattern")),
        "averaged": bool(config.get("audio_embed_avg")),
        "projected": bool(config.get("use_audio_out_embed_projector")),
    }


def _transformers_audio(config: dict) -> dict:
    return {
        "num_codebooks": config["num_codebooks"],
        "codebook_vocab": config["codebook_size"],
        "audio_stream_bos_id": config["audio_stream_bos_id"],
        "audio_stream_eos_id": config["audio_stream_eos_id"],
        "placeholder_ids": (config["audio_token_id"], config["audio_delay_token_id"]),
        "layers": ("dual",) * config["num_hidden_layers"],
    }


def joined(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Fine-tuned checkpoints may split a matrix into frozen and trainable rows: put back together.

    Source: Boson's ``PartiallyFrozenEmbedding`` and ``PartiallyFrozenLinear``.
    """
    whole = dict(weights)
    for name in weights:
        for kind in ("embedding", "linear"):
            other = name.replace(f".{kind}_frozen.", f".{kind}_trainable.")
            if other != name and other in whole:
                rows = [whole.pop(name), whole.pop(other)]
                whole[name.replace(f".{kind}_frozen.", ".")] = mx.concatenate(rows)
    return whole


class Heads(nn.Module):
    """The output projections; the text head exists only when asked for."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        audio_width = args.num_codebooks * args.codebook_vocab
        self.audio_lm_head = nn.Linear(args.hidden_size, audio_width, bias=False)
        if args.text_head:
            self.text_lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)


class Model(Talker):
    """The v2 talker (see ``SpeechModel``)."""

    WEIGHT_NAMES: ClassVar[list[tuple[str, str]]] = [
        ("model.embed_audio_tokens.embed_audio_tokens.", "audio_codebook_embeddings."),
        ("audio_lm_head.", "audio_decoder_proj.audio_lm_head."),
        ("text_lm_head.", "audio_decoder_proj.text_lm_head."),
        ("model.", ""),
    ]
    TEXT_PARTS = (  # Boson's freeze_llm
        r"embed_tokens|norm|"
        r"layers\.\d+\.(self_attn|mlp|input_layernorm|post_attention_layernorm)"
    )
    TEXT_TABLE, TEXT_HEAD = "embed_tokens", TEXT_HEAD
    SAMPLING, NORMALIZE = SamplingParams(), True
    ORIGIN = Origin(
        "Higgs Audio 2",
        "Boson Higgs Audio 2 Community License",
        ("bosonai/higgs-tts-2-3b-base", "bosonai/higgs-audio-v2-generation-3B-base"),
    )
    LEAST_BITS = 5
    FEW_BITS = "with 4, the author of another port found, the seed decides whether speech comes out"
    # generation_config.json of the published checkpoint, and Boson's generation.py
    PRESETS: ClassVar[dict[str, SamplingParams]] = {
        "reference": SamplingParams(
            temperature=1.0, top_p=0.95, top_k=50, ras_window=7, ras_max_repeats=2
        )
    }
    # computed, not learnt: some files hold them all the same
    DROPPED = ("rotary_emb.inv_freq", "rotary_emb.original_inv_freq", "audio_codebook_weights")

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.audio_codebook_embeddings = nn.Embedding(
            args.num_codebooks * args.codebook_vocab, args.hidden_size
        )
        self._rotary = Rotary(args.rope, args.head_dim)
        if args.projected:
            self.audio_out_embed_projector = nn.Linear(
                args.hidden_size, args.hidden_size, bias=False
            )
        self.layers: list[PlainLayer] = [LAYERS[kind](args) for kind in args.layers]
        self.ADAPTED = adapted(self.layers)
        self.TEXT_SIDE = "|".join(["embed_tokens", *unspoken(self.layers), TEXT_HEAD, *HEARS])
        self.norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.audio_decoder_proj = Heads(args)
        if args.tower:
            self.audio_tower = AudioTower(args.tower)
            self.audio_encoder_proj = FeatureProjector(args.tower.d_model, args.hidden_size)

    @property
    def hearing(self) -> Hearing:
        return self.args.hearing

    @property
    def listening_bytes(self) -> int:
        itemsize = self.norm.weight.itemsize
        return listening_bytes(self.args.tower, itemsize) if self.args.tower else 0

    @property
    def delay(self) -> DelayPattern:
        args = self.args
        return DelayPattern(
            args.num_codebooks,
            args.audio_stream_bos_id,
            args.audio_stream_eos_id,
            edge_frames=1,
            shift=int(args.delayed),
        )

    def make_cache(self) -> list[KVCache]:
        return [KVCache(holds) for layer in self.layers for holds in layer.CACHES]

    def fuse(self) -> None:
        """Fewer and larger multiplications: what generation wants and training cannot use."""
        for layer in self.layers:
            layer.fuse()

    def embed_wave(self, wave: np.ndarray) -> mx.array:
        """A stretch of a recording ``[N]`` at 16 kHz -> ``[S, D]``, by the audio tower."""
        if self.args.tower is None:
            return super().embed_wave(wave)
        features = self.audio_encoder_proj(self.audio_tower.stretch(wave))
        return features.astype(self.norm.weight.dtype)

    def hidden(
        self, x: mx.array, cache: Sequence[Cache] | None, is_audio: np.ndarray | None = None
    ) -> mx.array:
        """Last hidden states ``[B, S, D]``; ``is_audio`` None means every position is audio.

        ``cache`` None: ``x`` is all there is, as in training.
        """
        route = Route(is_audio)
        turn = self._rotary.at(length(cache) if cache else 0, x.shape[1], x.dtype)
        caches = iter(cache or repeat(None))
        for layer in self.layers:
            x = layer(x, route, turn, *[next(caches) for _ in layer.CACHES])
        return self.norm(x)

    def embed_rows(self, rows: mx.array) -> mx.array:
        """Delayed rows ``[..., K]`` -> ``[..., D]``."""
        x = super().embed_rows(rows)
        if self.args.averaged:
            x = x / self.args.num_codebooks
        return self.audio_out_embed_projector(x) if self.args.projected else x

    def audio_logits(self, h: mx.array) -> mx.array:
        """``[..., D]`` -> float32 ``[..., K, V]``."""
        logits = self.audio_decoder_proj.audio_lm_head(h).astype(mx.float32)
        return logits.reshape(*h.shape[:-1], self.args.num_codebooks, self.args.codebook_vocab)

    def text_logits(self, h: mx.array) -> mx.array:
        """``[..., D]`` -> float32 ``[..., vocab_size]``; needs ``text_head=True``."""
        if not self.args.text_head:
            raise InputError("The text head was not loaded: load with text_head=True.")
        return self.audio_decoder_proj.text_lm_head(h).astype(mx.float32)

    def quant_predicate(self, path: str, module: nn.Module) -> bool:
        """All but the table of codes and its factor, the audio head and the tower."""
        kept = rf"{self.FROZEN}|audio_out_embed_projector"
        return not re.match(kept, path) and super().quant_predicate(path, module)

    def names_in(self, config: dict) -> list[tuple[str, str]]:
        """``WEIGHT_NAMES`` of a checkpoint with this config; Boson's own names are those here."""
        return [] if "text_config" in config else self.WEIGHT_NAMES

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Tensors by transformers' or Boson's names -> by this module's (Boson's) names."""
        renamed = joined({self._rename(name): array for name, array in weights.items()})
        unused = () if self.args.text_head else ("audio_decoder_proj.text_lm_head.",)
        return {
            name: array
            for name, array in renamed.items()
            if not name.endswith(self.DROPPED) and not name.startswith(unused)
        }
