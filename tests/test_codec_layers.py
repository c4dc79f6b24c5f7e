"""Both forms of every convolution give one answer, and short inputs give none."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_higgs.codec.layers import (
    Conv1d,
    ConvTranspose1d,
    Snake,
    conv_native,
    conv_products,
    taps_first,
)


def noise(rng: np.random.Generator, *shape: int) -> mx.array:
    return mx.array(rng.standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dilation", [1, 3, 9])
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_products_are_the_convolution(stride: int, dilation: int, groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    taps = int(rng.integers(1, 9))
    length = (taps - 1) * dilation + int(rng.integers(1, 40))
    x, weight = noise(rng, 2, length, 6), noise(rng, 9, taps, 6 // groups)
    ours = conv_products(x, weight, stride, dilation, groups)
    native = conv_native(x, weight, stride, dilation, groups)
    np.testing.assert_allclose(np.array(ours), np.array(native), atol=1e-4)


@pytest.mark.parametrize("stride", [2, 3, 4, 5, 8])
def test_transposed_convolution_is_mlxs(stride: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layer = ConvTranspose1d(6, 4, stride)
    layer.weight, layer.bias = noise(rng, 4, 2 * stride, 6), noise(rng, 4)
    x = noise(rng, 2, int(rng.integers(1, 12)), 6)
    native = mx.conv_transpose1d(x, layer.weight, stride, -(-stride // 2), 1, stride % 2)
    assert layer(x).shape == (2, x.shape[1] * stride, 4)
    np.testing.assert_allclose(np.array(layer(x)), np.array(native + layer.bias), atol=1e-4)


def test_storage_order_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight, x = noise(rng, 5, 7, 6), noise(rng, 1, 20, 6)
    assert mx.array_equal(taps_first(weight), weight)
    np.testing.assert_allclose(
        np.array(conv_products(x, taps_first(weight))), np.array(conv_native(x, weight)), atol=1e-4
    )


@pytest.mark.parametrize("native", [False, True])
def test_too_short_an_input_gives_nothing(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX alone turns 5 samples under 10 taps and stride 5 into one output."""
    monkeypatch.setattr("mlx_higgs.codec.layers.on_cpu", lambda: not native)
    layer = Conv1d(2, 3, 10, stride=5)
    for length in range(10):
        assert layer(mx.zeros((1, length, 2))).shape == (1, 0, 3)
    assert layer(mx.zeros((1, 10, 2))).shape == (1, 1, 3)


def test_snake_takes_alphas_of_either_sign() -> None:
    layer = Snake(3)
    layer.alpha = mx.array([0.5, -0.5, 0.0])
    y = layer(mx.ones((1, 1, 3)))[0, 0]
    expected = [1 + np.sin(0.5) ** 2 / 0.5, 1 - np.sin(0.5) ** 2 / 0.5, 1]
    np.testing.assert_allclose(np.array(y), expected, atol=1e-6)
