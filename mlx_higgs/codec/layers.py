"""Convolutions and the Snake activation, on ``[B, N, C]``, in each backend's fast form.

MLX's CPU convolutions are several times slower than the same sums written as matrix products
(a 7-tap convolution is 7 shifted products), so the CPU takes the products and Metal and CUDA
take ``mx.conv1d``. A transposed convolution is one product and an overlap-add everywhere.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..memory import on_cpu


def conv_native(
    x: mx.array, weight: mx.array, stride: int = 1, dilation: int = 1, groups: int = 1
) -> mx.array:
    """``mx.conv1d`` without padding: ``[B, N, C]``, weight ``[out, taps, in]``."""
    return mx.conv1d(x, weight, stride, 0, dilation, groups)


def conv_products(
    x: mx.array, weight: mx.array, stride: int = 1, dilation: int = 1, groups: int = 1
) -> mx.array:
    """The same sum as one matrix product per tap (and group)."""
    if groups > 1:
        pieces = zip(mx.split(x, groups, -1), mx.split(weight, groups, 0), strict=True)
        return mx.concatenate([conv_products(p, w, stride, dilation) for p, w in pieces], -1)
    taps = weight.shape[1]
    span = x.shape[1] - (taps - 1) * dilation
    shifts = [x[:, k * dilation : k * dilation + span : stride] for k in range(taps)]
    y = shifts[0] @ weight[:, 0].T
    for k in range(1, taps):
        y = y + shifts[k] @ weight[:, k].T
    return y


def taps_first(weight: mx.array) -> mx.array:
    """The same ``[out, taps, in]`` array, stored so that a tap is one contiguous matrix.

    Products of single taps would otherwise copy the weight at every call.
    """
    return mx.contiguous(weight.swapaxes(0, 1)).swapaxes(0, 1)


class Conv1d(nn.Module):
    """A convolution padded with zeros; weight ``[out, taps, in / groups]``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        taps: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        super().__init__()
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.weight = mx.zeros((out_channels, taps, in_channels // groups))
        self.bias = mx.zeros((out_channels,)) if bias else None

    @property
    def reach(self) -> int:
        """Inputs one output spans beyond the first."""
        return (self.weight.shape[1] - 1) * self.dilation

    def valid(self, x: mx.array) -> mx.array:
        """No padding: too short an input gives no output (MLX alone would invent one)."""
        if x.shape[1] <= self.reach:
            return mx.zeros((x.shape[0], 0, self.weight.shape[0]))
        conv = conv_products if on_cpu() else conv_native
        y = conv(x, self.weight, self.stride, self.dilation, self.groups)
        return y if self.bias is None else y + self.bias

    def __call__(self, x: mx.array) -> mx.array:
        if self.padding:
            x = mx.pad(x, [(0, 0), (self.padding, self.padding), (0, 0)])
        return self.valid(x)


class ConvTranspose1d(nn.Module):
    """Upsamples by ``stride``; weight ``[out, 2 * stride, in]``, ``N * stride`` outputs.

    Of the full result, ``ceil(stride / 2)`` samples are cut off in front (the reference's
    padding with ``output_padding = stride % 2``), the rest behind.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.cut = -(-stride // 2)
        self.weight = mx.zeros((out_channels, 2 * stride, in_channels))
        self.bias = mx.zeros((out_channels,))

    def halves(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """What each input adds to its own and to the next ``stride`` outputs.

        Both are ``[B, N, stride, out]``.
        """
        out, taps, width = self.weight.shape
        by_tap = self.weight.swapaxes(0, 1).reshape(taps * out, width)
        z = (x @ by_tap.T).reshape(*x.shape[:2], 2, self.stride, out)
        return z[:, :, 0], z[:, :, 1]

    def __call__(self, x: mx.array) -> mx.array:
        own, following = self.halves(x)
        y = mx.pad(own, [(0, 0), (0, 1), (0, 0), (0, 0)])
        y = y + mx.pad(following, [(0, 0), (1, 0), (0, 0), (0, 0)])
        y = y.flatten(1, 2)[:, self.cut : self.cut + x.shape[1] * self.stride]
        return y + self.bias


class Snake(nn.Module):
    """``x + sin(alpha x)^2 / alpha``: periodic, for waves. Alpha is per channel, of any sign.

    Source: Ziyin et al. 2020, as used by DAC (Kumar et al. 2023).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = mx.ones((channels,))

    def __call__(self, x: mx.array) -> mx.array:
        return x + mx.square(mx.sin(self.alpha * x)) / (self.alpha + 1e-9)
