"""The audio tower: a Whisper encoder whose features stand in a prompt where somebody is heard.

Source: Boson's ``HiggsAudioEncoder`` (WhisperEncoder with a pool before its last norm),
``HiggsAudioFeatureProjector`` and ``HiggsAudioModel._apply_audio_tower``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..mel import MEL_FRAMES, log_mel, mel_frames
from ..types import STRETCH, CheckpointError, Hearing
from .config import MAX_SIZE, check_fixed

ENCODER = "higgs_audio_encoder"  # Boson's model_type of the tower's config
FIXED = {
    "activation_function": ("gelu", "gelu", "an audio tower with another activation"),
    "model_type": (ENCODER, ENCODER, "an audio tower of another kind"),
}
LARGEST_HALF = 65_504.0 - 1_000.0  # whisper's layers stay below it in float16
BUFFERS = 7  # of a stretch's widest layer alive at once, as measured on the CPU


@dataclass(frozen=True)
class TowerArgs:
    """The tower's shape; the defaults are those of Whisper large v3, as in Boson's config."""

    num_mel_bins: int = 128
    d_model: int = 1280
    encoder_layers: int = 32
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120
    max_source_positions: int = 1500  # after the second convolution: half the mel frames

    @classmethod
    def from_dict(cls, config: dict) -> TowerArgs:
        """Read ``audio_encoder_config``.

        Raises:
            CheckpointError: another kind of tower, or sizes that are none.
        """
        check_fixed(config, FIXED)
        args = cls(**{f.name: config[f.name] for f in fields(cls) if f.name in config})
        for field in fields(cls):
            size = getattr(args, field.name)
            if type(size) is not int or not 0 < size < MAX_SIZE:
                raise CheckpointError(f"The tower's {field.name} is {size!r}: not a size.")
        if args.d_model % args.encoder_attention_heads:
            raise CheckpointError(
                f"{args.encoder_attention_heads} heads cannot share the tower's {args.d_model}."
            )
        return args


def read_hearing(config: dict) -> tuple[Hearing, TowerArgs | None]:
    """From Boson's config: how it takes recordings in, and its tower, if it has one.

    Raises:
        CheckpointError: a tower that is not to be used, or not made for stretches of 30 s.
    """
    codes = bool(config.get("encode_audio_in_tokens", False))
    if config.get("skip_audio_tower", False):
        return Hearing(features=False, codes=codes), None
    if not config.get("encode_whisper_embed", True):
        raise CheckpointError(
            "This checkpoint has an audio tower (skip_audio_tower) whose features it does not read "
            "(encode_whisper_embed): its reference cannot run it either."
        )
    args = TowerArgs.from_dict(config.get("audio_encoder_config") or {})
    if 2 * args.max_source_positions != MEL_FRAMES:
        raise CheckpointError(
            f"This checkpoint's audio tower takes {2 * args.max_source_positions} mel frames at "
            f"once (max_source_positions); recordings come in stretches of {MEL_FRAMES}."
        )
    return Hearing(features=True, codes=codes), args


def conv_positions(frames: int) -> int:
    """Positions that the tower's layers see of so many mel frames."""
    return (frames - 1) // 2 + 1


def feature_positions(samples: int) -> int:
    """Positions in a prompt of a stretch with so many samples at 16 kHz: 25 a second.

    Source: ``_get_feat_extract_output_lengths``. Below 3 mel frames there is none.
    """
    return (conv_positions(mel_frames(samples)) - 2) // 2 + 1


class Conv(nn.Module):
    """A convolution of width 3 whose weight is as torch's files have it: ``[out, in, 3]``."""

    def __init__(self, width_in: int, width_out: int, stride: int):
        super().__init__()
        self.weight = mx.zeros((width_out, width_in, 3))
        self.bias = mx.zeros((width_out,))
        self._stride = stride

    def __call__(self, x: mx.array) -> mx.array:
        weight = self.weight.transpose(0, 2, 1)
        return mx.conv1d(x, weight, stride=self._stride, padding=1) + self.bias


class SelfAttention(nn.Module):
    """Attention in both directions; the keys have no bias."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self._heads = heads
        self.q_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width)

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        B, S, D = x.shape
        q, k, v = (
            project(x).reshape(B, S, self._heads, -1).transpose(0, 2, 1, 3)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        scale = q.shape[-1] ** -0.5
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
        return self.out_proj(out.transpose(0, 2, 1, 3).reshape(B, S, D))


class EncoderLayer(nn.Module):
    """transformers' ``WhisperEncoderLayer``."""

    def __init__(self, args: TowerArgs):
        super().__init__()
        width = args.d_model
        self.self_attn = SelfAttention(width, args.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, args.encoder_ffn_dim)
        self.fc2 = nn.Linear(args.encoder_ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        x = x + self.fc2(nn.gelu(self.fc1(self.final_layer_norm(x))))
        return mx.clip(x, -LARGEST_HALF, LARGEST_HALF) if x.dtype == mx.float16 else x


class AudioTower(nn.Module):
    """Log-mel frames -> features, 25 a second."""

    def __init__(self, args: TowerArgs):
        super().__init__()
        width = args.d_model
        self.conv1 = Conv(args.num_mel_bins, width, stride=1)
        self.conv2 = Conv(width, width, stride=2)
        # sinusoids as a rule; whatever they are, a checkpoint holds them
        self.embed_positions = nn.Embedding(args.max_source_positions, width)
        self.layers = [EncoderLayer(args) for _ in range(args.encoder_layers)]
        self.layer_norm = nn.LayerNorm(width)

    def __call__(self, mel: mx.array, frames: np.ndarray | None = None) -> mx.array:
        """``[B, M, bins]`` -> ``[B, ceil(M / 2) // 2, d_model]``; B may be 0.

        Args:
            frames: how many mel frames of each are sound, int ``[B]``; what comes after is heard
                by nobody, and its features mean nothing. None: all are.
        """
        x = self._convolved(mel)
        if frames is None:
            return self._encoded(x, None)
        sound = mx.array([conv_positions(int(n)) for n in frames], dtype=mx.int32)
        keys = mx.arange(x.shape[1]) < sound.reshape(-1, 1)
        return self._encoded(x, keys[:, None, None])

    def stretch(self, wave: np.ndarray) -> mx.array:
        """At most 30 s of mono ``[N]`` at 16 kHz -> ``[feature_positions(N), d_model]``.

        What the reference computes of the silence after a short stretch, nothing reads: it is left
        out, but for the frames that the convolutions reach.
        """
        kept = conv_positions(mel_frames(len(wave)))
        reached = min(2 * kept + 2, MEL_FRAMES)
        mel = log_mel(wave, self.conv1.weight.shape[1], reached)
        x = self._convolved(mx.array(mel)[None])[:, :kept]
        return self._encoded(x, None)[0]

    def _convolved(self, mel: mx.array) -> mx.array:
        x = nn.gelu(self.conv1(mel.astype(self.conv1.weight.dtype)))
        x = nn.gelu(self.conv2(x))
        return x + self.embed_positions.weight[: x.shape[1]]

    def _encoded(self, x: mx.array, mask: mx.array | None) -> mx.array:
        for layer in self.layers:
            x = layer(x, mask) if x.size else x
        pairs = x[:, : x.shape[1] // 2 * 2].reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2])
        return self.layer_norm(pairs.mean(axis=2))


class FeatureProjector(nn.Module):
    """Features -> the talker's width."""

    def __init__(self, width: int, hidden_size: int):
        super().__init__()
        self.linear = nn.Linear(width, hidden_size)

    def __call__(self, features: mx.array) -> mx.array:
        return self.linear(features)


def listening_bytes(args: TowerArgs, itemsize: int) -> int:
    """What listening to 30 s takes meanwhile, beside the weights."""
    positions = feature_positions(STRETCH) * 2
    scores = args.encoder_attention_heads * positions * positions  # in float32, on the CPU
    widest = positions * max(args.encoder_ffn_dim, args.d_model)
    return BUFFERS * widest * itemsize + scores * 4
