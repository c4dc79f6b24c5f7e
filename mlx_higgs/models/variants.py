"""The layers that v2 checkpoints are made of, and which of them a config asks for.

Source: Boson's ``HiggsAudioModel``. The published checkpoints have dual FFNs in every layer.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import mlx.core as mx
import mlx.nn as nn

from ..types import CheckpointError
from .cache import Holds
from .layers import MLP, Attention, AttentionArgs, Cache, Route
from .rotary import Rotation, Turn

Kind = Literal["dual", "attended", "plain", "skipped"]
DUAL_ADAPTERS = ("dual_ffn", "dual_ffn_fast_forward")
ADAPTERS = ("stack", *DUAL_ADAPTERS)
ScaledBy = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
ATTENDED = tuple(f"self_attn.{name}_proj" for name in "qkv")


def layer_kinds(config: dict) -> tuple[Kind, ...]:
    """What each layer of a Boson config is.

    ``stack`` has none but the language model's own; ``dual_ffn`` gives some of them a second FFN;
    ``dual_ffn_fast_forward`` also sends speech past the others.

    Raises:
        CheckpointError: an adapter that the reference does not have either, or no layer for speech.
    """
    adapter = config.get("audio_adapter_type", "stack")
    if adapter not in ADAPTERS:
        raise CheckpointError(
            f"This checkpoint has the adapter {adapter!r} (audio_adapter_type); "
            f"known are {', '.join(ADAPTERS)}."
        )
    doubled = config.get("audio_dual_ffn_layers") if adapter in DUAL_ADAPTERS else []
    if not isinstance(doubled, list):
        raise CheckpointError(f"The adapter {adapter!r} lacks audio_dual_ffn_layers, a list.")
    dual: Kind = "attended" if config.get("use_audio_out_self_attention") else "dual"
    other: Kind = "skipped" if adapter == "dual_ffn_fast_forward" else "plain"
    count = config["text_config"]["num_hidden_layers"]
    kinds: list[Kind] = [dual if layer in doubled else other for layer in range(count)]
    if set(kinds) == {"skipped"}:
        raise CheckpointError("Speech would go past all layers: audio_dual_ffn_layers names none.")
    return tuple(kinds)


class PlainLayer(nn.Module):
    """Llama's: words and speech go the same way.

    Attributes:
        CACHES: which positions each of its caches holds, in the order they are given.
        TEXT_SIDE: pattern of the modules that no frame of speech reads.
        SCALED_BY: what makes an input, and the linear layers that read it and nothing else: one
            factor can go from one to the other.
    """

    CACHES: ClassVar[tuple[Holds, ...]] = ("all",)
    TEXT_SIDE: ClassVar[str | None] = None
    SCALED_BY: ClassVar[ScaledBy] = (
        (("input_layernorm",), ATTENDED),
        (("post_attention_layernorm",), ("mlp.gate_proj", "mlp.up_proj")),
        (("mlp.up_proj",), ("mlp.down_proj",)),
    )

    def __init__(self, args: Any):
        super().__init__()
        D, eps = args.hidden_size, args.rms_norm_eps
        self.self_attn = _attention(args)
        self.mlp = MLP(D, args.intermediate_size)
        self.input_layernorm = nn.RMSNorm(D, eps=eps)
        self.post_attention_layernorm = nn.RMSNorm(D, eps=eps)

    def __call__(self, x: mx.array, route: Route, turn: Turn, cache: Cache | None) -> mx.array:
        return self._words(x, turn, cache)

    def fuse(self) -> None:
        """Fewer and larger multiplications, for generation."""
        for part in (self.self_attn, self.mlp):
            part.fuse()

    def _words(self, x: mx.array, turn: Rotation, cache: Cache | None) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), cache, turn)
        return x + self._text_ffn(x)

    def _text_ffn(self, x: mx.array) -> mx.array:
        return self.mlp(self.post_attention_layernorm(x))


class SkippedLayer(PlainLayer):
    """Llama's, past which speech goes: words attend to words alone.

    The reference computes keys and values of speech too, and masks them; its steps with a static
    cache leave them out, as this does.
    """

    CACHES = ("text",)
    TEXT_SIDE = r".+"

    def __call__(self, x: mx.array, route: Route, turn: Turn, cache: Cache | None) -> mx.array:
        return route.only("text", x, turn, lambda words, here: self._words(words, here, cache))


class DualFFNDecoderLayer(PlainLayer):
    """One attention for all positions; norms and FFN of their own for text and for audio."""

    TEXT_SIDE = r"mlp\..+"
    SCALED_BY = (
        (("input_layernorm", "audio_input_layernorm"), ATTENDED),
        *PlainLayer.SCALED_BY[1:],
        (("audio_post_attention_layernorm",), ("audio_mlp.gate_proj", "audio_mlp.up_proj")),
        (("audio_mlp.up_proj",), ("audio_mlp.down_proj",)),
    )

    def __init__(self, args: Any):
        super().__init__(args)
        D, eps = args.hidden_size, args.rms_norm_eps
        self.audio_mlp = MLP(D, args.intermediate_size)
        self.audio_input_layernorm = nn.RMSNorm(D, eps=eps)
        self.audio_post_attention_layernorm = nn.RMSNorm(D, eps=eps)

    def __call__(self, x: mx.array, route: Route, turn: Turn, cache: Cache | None) -> mx.array:
        return self._shared(x, route, turn, cache, self.audio_input_layernorm)

    def fuse(self) -> None:
        super().fuse()
        self.audio_mlp.fuse()

    def _shared(
        self, x: mx.array, route: Route, turn: Turn, cache: Cache | None, audio_norm: nn.RMSNorm
    ) -> mx.array:
        normed = route(x, self.input_layernorm, audio_norm)
        x = x + self.self_attn(normed, cache, turn)
        return x + route(x, self._text_ffn, self._audio_ffn)

    def _audio_ffn(self, x: mx.array) -> mx.array:
        return self.audio_mlp(self.audio_post_attention_layernorm(x))


class AudioAttentionLayer(DualFFNDecoderLayer):
    """Speech attends to speech alone first, then with all the rest."""

    CACHES = ("all", "audio")
    SCALED_BY = (
        (("input_layernorm", "audio_post_audio_attn_layer_norm"), ATTENDED),
        (("audio_input_layernorm",), tuple(f"audio_attn.{name}_proj" for name in "qkv")),
        *DualFFNDecoderLayer.SCALED_BY[1:],
    )

    def __init__(self, args: Any):
        super().__init__(args)
        self.audio_attn = _attention(args)
        self.audio_post_audio_attn_layer_norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(
        self, x: mx.array, route: Route, turn: Turn, cache: Cache | None, spoken: Cache | None
    ) -> mx.array:
        def speech(x: mx.array, here: Rotation) -> mx.array:
            return x + self.audio_attn(self.audio_input_layernorm(x), spoken, here)

        x = route.only("audio", x, turn, speech)
        return self._shared(x, route, turn, cache, self.audio_post_audio_attn_layer_norm)

    def fuse(self) -> None:
        super().fuse()
        self.audio_attn.fuse()


LAYERS: dict[Kind, type[PlainLayer]] = {
    "dual": DualFFNDecoderLayer,
    "attended": AudioAttentionLayer,
    "plain": PlainLayer,
    "skipped": SkippedLayer,
}


def adapted(layers: list[PlainLayer]) -> tuple[str, ...]:
    """Modules of a layer that adapters go to: attention, and the FFN of speech or the only one."""
    names = {path for layer in layers for path, _ in layer.named_modules()}
    ffn = "audio_mlp" if "audio_mlp" in names else "mlp"
    modules = [f"{part}.{name}_proj" for part in ("self_attn", "audio_attn") for name in "qkvo"]
    modules += [f"{ffn}.{name}_proj" for name in ("gate", "up", "down")]
    return tuple(module for module in modules if module in names)


def unspoken(layers: list[PlainLayer]) -> list[str]:
    """Patterns of the modules of layers that no frame of speech reads."""
    sides = ((index, layer.TEXT_SIDE) for index, layer in enumerate(layers))
    return [rf"layers\.{index}\.{side}" for index, side in sides if side]


def _attention(args: Any) -> Attention:
    heads = args.num_attention_heads, args.num_key_value_heads
    return Attention(AttentionArgs(args.hidden_size, *heads, args.head_dim))
