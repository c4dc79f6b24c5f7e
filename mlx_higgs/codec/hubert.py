"""The semantic half of the codec: HuBERT's hidden states and the small encoder over them.

Source: Hsu et al. 2021, "HuBERT", in the form of transformers' ``models/hubert`` (base: post-norm,
group norm after the first convolution). Attribute names are its weight names.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .config import HubertConfig
from .layers import Conv1d


class FeatureConv(nn.Module):
    """A strided convolution and GELU; the first one normalises each channel over all time."""

    def __init__(self, in_width: int, width: int, taps: int, stride: int, *, first: bool):
        super().__init__()
        self.conv = Conv1d(in_width, width, taps, stride=stride, bias=False)
        self.layer_norm = nn.GroupNorm(width, width, pytorch_compatible=True) if first else None

    def __call__(self, x: mx.array) -> mx.array:
        x = self.conv(x)
        return nn.gelu(x if self.layer_norm is None else self.layer_norm(x))


class FeatureExtractor(nn.Module):
    """Samples ``[B, N, 1]`` -> one vector per 20 ms."""

    def __init__(self, config: HubertConfig):
        super().__init__()
        sizes = zip(
            (1, *config.conv_widths),
            config.conv_widths,
            config.conv_taps,
            config.conv_strides,
            strict=False,
        )
        self.conv_layers = [FeatureConv(*size, first=i == 0) for i, size in enumerate(sizes)]

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.conv_layers:
            x = layer(x)
        return x


class FeatureProjection(nn.Module):
    def __init__(self, config: HubertConfig):
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_widths[-1], eps=config.eps)
        self.projection = nn.Linear(config.conv_widths[-1], config.width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.projection(self.layer_norm(x))


class PositionConv(nn.Module):
    """Relative positions by a wide grouped convolution; an even one, so the last frame goes."""

    def __init__(self, config: HubertConfig):
        super().__init__()
        self.conv = Conv1d(
            config.width,
            config.width,
            config.pos_taps,
            padding=config.pos_taps // 2,
            groups=config.pos_groups,
        )

    def __call__(self, x: mx.array) -> mx.array:
        return nn.gelu(self.conv(x)[:, : x.shape[1]])


class Attention(nn.Module):
    """Every frame sees every other."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def __call__(self, x: mx.array) -> mx.array:
        q, k, v = (
            projection(x).reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        scale = q.shape[-1] ** -0.5
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)
        return self.out_proj(y.swapaxes(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.intermediate_dense = nn.Linear(width, hidden)
        self.output_dense = nn.Linear(hidden, width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.output_dense(nn.gelu(self.intermediate_dense(x)))


class EncoderLayer(nn.Module):
    def __init__(self, config: HubertConfig):
        super().__init__()
        self.attention = Attention(config.width, config.heads or 1)
        self.layer_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.feed_forward = FeedForward(config.width, config.ffn_width)
        self.final_layer_norm = nn.LayerNorm(config.width, eps=config.eps)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.layer_norm(x + self.attention(x))
        return self.final_layer_norm(x + self.feed_forward(x))


class Encoder(nn.Module):
    def __init__(self, config: HubertConfig):
        super().__init__()
        self.pos_conv_embed = PositionConv(config)
        self.layer_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.layers = [EncoderLayer(config) for _ in range(config.num_layers)]

    def __call__(self, x: mx.array) -> list[mx.array]:
        states = [self.layer_norm(x + self.pos_conv_embed(x))]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return states


class Hubert(nn.Module):
    """Samples ``[B, N, 1]`` at 16 kHz, as they are -> the layers' input and all their outputs."""

    def __init__(self, config: HubertConfig):
        super().__init__()
        self.feature_extractor = FeatureExtractor(config)
        self.feature_projection = FeatureProjection(config)
        self.encoder = Encoder(config)

    def __call__(self, x: mx.array) -> list[mx.array]:
        return self.encoder(self.feature_projection(self.feature_extractor(x)))


class SemanticUnit(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1 = Conv1d(width, width, 3, padding=1, bias=False)
        self.conv2 = Conv1d(width, width, 1, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.conv2(nn.elu(self.conv1(nn.elu(x))))


class SemanticBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.res_units = [SemanticUnit(width) for _ in range(2)]
        self.conv = Conv1d(width, width, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        for unit in self.res_units:
            x = unit(x)
        return self.conv(x)


class SemanticEncoder(nn.Module):
    """Smooths the averaged hidden states; keeps rate and width."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = Conv1d(width, width, 3, padding=1, bias=False)
        self.conv_blocks = [SemanticBlock(width) for _ in range(2)]

    def __call__(self, x: mx.array) -> mx.array:
        x = self.conv(x)
        for block in self.conv_blocks:
            x = block(x)
        return x
