"""The resampler: torchaudio's figures, tones, lengths, and what it refuses."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_higgs.resample import resample, sinc_kernel
from mlx_higgs.types import InputError

GOLDEN = load_file(Path(__file__).parent / "golden" / "codec_resample.safetensors")
PAIRS = [tuple(map(int, name.split(".")[:2])) for name in GOLDEN if name.endswith(".in")]


@pytest.mark.parametrize(("from_rate", "to_rate"), PAIRS)
def test_agrees_with_torchaudio(from_rate: int, to_rate: int) -> None:
    wave = GOLDEN[f"{from_rate}.{to_rate}.in"]
    expected = GOLDEN[f"{from_rate}.{to_rate}.out"]
    # measured 4e-7 at a standard deviation of 1
    np.testing.assert_allclose(resample(wave, from_rate, to_rate), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("from_rate", "to_rate"),
    # 44,101 has no divisor in common with 24,000: one filter per output sample of a second
    [*PAIRS, (16_000, 24_000), (24_000, 44_100), (44_101, 24_000)],
)
def test_a_tone_stays_the_tone(from_rate: int, to_rate: int, seed: int) -> None:
    frequency = np.random.default_rng(seed).uniform(100, 0.35 * min(from_rate, to_rate))
    wave = np.sin(2 * np.pi * frequency * np.arange(from_rate // 4) / from_rate)
    out = resample(wave, from_rate, to_rate)
    expected = np.sin(2 * np.pi * frequency * np.arange(len(out)) / to_rate)
    inner = slice(100, -100)  # the ends fade into silence
    np.testing.assert_allclose(out[inner], expected[inner], atol=0.02)  # the window's ripple


def test_what_the_lower_rate_cannot_hold_is_gone() -> None:
    wave = np.sin(2 * np.pi * 20_000 * np.arange(48_000) / 48_000)
    assert np.abs(resample(wave, 48_000, 24_000)[100:-100]).max() < 0.01


@pytest.mark.parametrize("rates", [(24_000, 16_000), (44_100, 24_000), (11_025, 24_000), (7, 5)])
def test_length_is_rounded_up(rates: tuple[int, int]) -> None:
    for samples in (1, 2, 3, 100, 147, 148, 1001):
        out = resample(np.ones(samples), *rates)
        assert out.shape == (ceil(samples * rates[1] / rates[0]),)
        assert out.dtype == np.float32


def test_one_phase_per_output_of_a_period() -> None:
    assert sinc_kernel(3, 2).shape == (2, 22)
    np.testing.assert_allclose(sinc_kernel(3, 2).sum(1), 1, atol=0.01)


def test_the_same_rate_gives_a_copy() -> None:
    wave = np.arange(4, dtype=np.float32)
    out = resample(wave, 24_000, 24_000)
    assert np.array_equal(out, wave)
    assert not np.shares_memory(out, wave)


def test_no_samples_stay_none() -> None:
    assert resample(np.zeros(0), 44_100, 24_000).shape == (0,)


@pytest.mark.parametrize("rate", [0, -1, 0.5, float("nan"), float("inf")])
def test_rates_that_are_none(rate: float) -> None:
    with pytest.raises(InputError, match="sample rate"):
        resample(np.zeros(10), rate, 24_000)  # type: ignore[arg-type]


def test_only_mono() -> None:
    with pytest.raises(InputError, match="mono"):
        resample(np.zeros((2, 10)), 44_100, 24_000)
