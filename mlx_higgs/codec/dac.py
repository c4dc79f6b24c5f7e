"""The acoustic half of the codec: DAC's convolutional encoder and decoder, ``[B, N, C]``.

Source: Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN", in the form
of transformers' ``models/dac`` without the final tanh. Attribute names are its weight names.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .layers import Conv1d, ConvTranspose1d, Snake

DILATIONS = (1, 3, 9)
TAPS = 7


class ResidualUnit(nn.Module):
    """``x + conv(snake(dilated conv(snake(x))))``."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        padding = (TAPS - 1) * dilation // 2
        self.snake1 = Snake(width)
        self.conv1 = Conv1d(width, width, TAPS, padding=padding, dilation=dilation)
        self.snake2 = Snake(width)
        self.conv2 = Conv1d(width, width, 1)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.conv2(self.snake2(self.conv1(self.snake1(x))))


class _Block(nn.Module):
    """Three residual units, which either kind of block has."""

    def __init__(self, width: int):
        super().__init__()
        self.res_unit1, self.res_unit2, self.res_unit3 = (
            ResidualUnit(width, dilation) for dilation in DILATIONS
        )

    @property
    def res_units(self) -> tuple[ResidualUnit, ResidualUnit, ResidualUnit]:
        return self.res_unit1, self.res_unit2, self.res_unit3


class EncoderBlock(_Block):
    """Doubles the width, divides the rate by ``stride``."""

    def __init__(self, width: int, stride: int):
        super().__init__(width)
        self.snake1 = Snake(width)
        self.conv1 = Conv1d(width, 2 * width, 2 * stride, stride=stride, padding=-(-stride // 2))

    def __call__(self, x: mx.array) -> mx.array:
        for unit in self.res_units:
            x = unit(x)
        return self.conv1(self.snake1(x))


class DecoderBlock(_Block):
    """Halves the width, multiplies the rate by ``stride``."""

    def __init__(self, width: int, stride: int):
        super().__init__(width // 2)
        self.snake1 = Snake(width)
        self.conv_t1 = ConvTranspose1d(width, width // 2, stride)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.conv_t1(self.snake1(x))
        for unit in self.res_units:
            x = unit(x)
        return x


class AcousticEncoder(nn.Module):
    """Samples ``[B, N, 1]`` -> features ``[B, frames, hidden]``."""

    def __init__(self, width: int, hidden: int, strides: tuple[int, ...]):
        super().__init__()
        widths = [width * 2**i for i in range(len(strides) + 1)]
        self.conv1 = Conv1d(1, width, TAPS, padding=TAPS // 2)
        self.block = [EncoderBlock(w, s) for w, s in zip(widths, strides, strict=False)]
        self.snake1 = Snake(widths[-1])
        self.conv2 = Conv1d(widths[-1], hidden, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.conv1(x)
        for block in self.block:
            x = block(x)
        return self.conv2(self.snake1(x))


class AcousticDecoder(nn.Module):
    """Features ``[B, T, hidden]`` -> samples ``[B, T * hop, 1]``, unclipped."""

    def __init__(self, width: int, hidden: int, strides: tuple[int, ...]):
        super().__init__()
        widths = [width // 2**i for i in range(len(strides) + 1)]
        self.conv1 = Conv1d(hidden, width, TAPS, padding=TAPS // 2)
        self.block = [DecoderBlock(w, s) for w, s in zip(widths, strides, strict=False)]
        self.snake1 = Snake(widths[-1])
        self.conv2 = Conv1d(widths[-1], 1, TAPS, padding=TAPS // 2)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.conv1(x)
        for block in self.block:
            x = block(x)
        return self.conv2(self.snake1(x))
