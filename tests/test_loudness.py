"""Loudness against what BS.1770-4 and EBU Tech 3341 say of signals, and against pyloudnorm."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from mlx_higgs import audio
from mlx_higgs.loudness import (
    SILENT,
    gain,
    integrated,
    k_weighting,
    loudness_of,
    matched,
    sections,
    true_peak,
)
from mlx_higgs.resample import resample
from mlx_higgs.types import InputError

RATES = [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000, 192_000]
RATE = 24_000
VOICES = sorted((Path(__file__).parent.parent / "examples" / "voice_prompts").glob("*.wav"))


def sine(seconds: float, rate: int = RATE, *, hertz: float = 997.0, db: float = 0.0) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (10 ** (db / 20) * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def noise(seconds: float, rate: int, seed: int) -> np.ndarray:
    wave = np.random.default_rng(seed).standard_normal(round(seconds * rate)) * 0.1
    return wave.astype(np.float32)


# -- the recommendation ---------------------------------------------------------------------------


def test_at_48_khz_the_filter_is_the_recommendations():
    shelf, low_cut = sections(48_000)
    assert shelf == pytest.approx(
        (
            1.53512485958697,
            -2.69169618940638,
            1.19839281085285,
            -1.69065929318241,
            0.73248077421585,
        ),
        abs=1e-13,
    )
    assert low_cut == pytest.approx(
        (1.0, -2.0, 1.0, -1.99004745483398, 0.99007225036621), abs=1e-13
    )


@pytest.mark.parametrize(
    ("rate", "tolerance"), [(8_000, 0.3), (16_000, 0.07), *((rate, 0.035) for rate in RATES[3:])]
)
def test_at_other_rates_it_lets_through_the_same(rate: int, tolerance: float):
    """The bilinear transform bends the shelf where it rises. Measured: 0.286 dB at 8 kHz, 0.066 at
    16, 0.031 at 22.05, 0.025 at 24."""
    hertz = np.linspace(20, 0.49 * min(rate, 48_000), 500)
    assert np.max(np.abs(response(rate, hertz) - response(48_000, hertz))) < tolerance


def response(rate: int, hertz: np.ndarray) -> np.ndarray:
    """In dB, from the coefficients."""
    z, out = np.exp(-2j * np.pi * hertz / rate), np.ones(len(hertz), dtype=complex)
    for b0, b1, b2, a1, a2 in sections(rate):
        out *= (b0 + b1 * z + b2 * z * z) / (1 + a1 * z + a2 * z * z)
    return 20 * np.log10(np.abs(out))


@pytest.mark.parametrize("rate", RATES)
def test_the_impulse_response_is_the_filters(rate: int):
    taps = k_weighting(rate)
    size = 1 << len(taps).bit_length()
    hertz = np.fft.rfftfreq(size, 1 / rate)[1:-1]
    got = 20 * np.log10(np.abs(np.fft.rfft(taps, size)))[1:-1]
    np.testing.assert_allclose(got, response(rate, hertz), atol=1e-5)


@pytest.mark.parametrize("rate", RATES[2:])
def test_a_full_scale_sine_has_3_01_lufs(rate: int):
    """BS.1770-4: 997 Hz at 0 dBFS in one channel."""
    assert integrated(sine(2, rate), rate) == pytest.approx(-3.01, abs=0.1)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([(-23, 20)], -23.0),
        ([(-33, 20)], -33.0),
        ([(-36, 10), (-23, 60), (-36, 10)], -23.0),
        ([(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)], -23.0),
        ([(-26, 20), (-20, 20.1), (-26, 20)], -23.0),
    ],
)
def test_the_gates_do_what_ebu_tech_3341_asks(levels, expected: float):
    """Its cases 1 to 5 (1 kHz sines, 0.1 LU) in mono: 3.01 dB below its two equal channels."""
    wave = np.concatenate([sine(seconds, hertz=1000, db=db) for db, seconds in levels])
    assert integrated(wave, RATE) == pytest.approx(expected - 3.01, abs=0.1)


@pytest.mark.parametrize("rate", [11_025, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [0.4, 1.0, 3.0, 20.03])
def test_equals_pyloudnorm(rate: int, seconds: float, seed: int):
    """Its last block may lack its end and count as whole; for these lengths it lacks none or 20 ms
    in 20 s."""
    pyloudnorm = pytest.importorskip("pyloudnorm")
    loud, soft = noise(seconds, rate, seed), noise(seconds, rate, seed + 1) * 0.02
    meter = pyloudnorm.Meter(rate)
    for wave in (loud, np.concatenate([soft, loud, soft])):
        expected = meter.integrated_loudness(wave.astype(np.float64))
        assert integrated(wave, rate) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("path", VOICES, ids=lambda path: path.stem)
def test_equals_pyloudnorm_on_speech(path: Path):
    pyloudnorm = pytest.importorskip("pyloudnorm")
    wave = audio.read_reference(path)
    expected = pyloudnorm.Meter(RATE).integrated_loudness(wave.astype(np.float64))
    assert integrated(wave, RATE) == pytest.approx(expected, abs=0.1)


# -- laws -----------------------------------------------------------------------------------------


def test_twice_as_loud_is_6_lu_more(seed: int):
    wave = noise(2, RATE, seed)
    assert integrated(2 * wave, RATE) - integrated(wave, RATE) == pytest.approx(6.0206, abs=1e-4)


def test_the_rate_makes_no_difference():
    wave = audio.read_reference(VOICES[0])
    assert integrated(resample(wave, RATE, 48_000), 48_000) == pytest.approx(
        integrated(wave, RATE), abs=0.03
    )


def test_silence_around_speech_makes_no_difference():
    wave = audio.read_reference(VOICES[0])
    quiet = np.zeros(30 * RATE, dtype=np.float32)
    around = np.concatenate([quiet, wave, quiet])
    assert integrated(around, RATE) == pytest.approx(integrated(wave, RATE), abs=0.15)


def test_blocks_of_the_convolution_leave_no_seam(seed: int):
    """Against the weighted wave in one piece."""
    wave = noise(30, 11_025, seed).astype(np.float64)
    weighted = np.convolve(wave, k_weighting(11_025))[: len(wave)]
    edges = np.round(np.arange(301) * 1102.5).astype(int)
    powers = [np.mean(weighted[a:b] ** 2) for a, b in zip(edges, edges[4:], strict=False)]
    expected = -0.691 + 10 * math.log10(np.mean(powers))  # steady noise passes both gates
    assert integrated(wave, 11_025) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("samples", [1, 100, 2_400, 9_599])
def test_a_clip_shorter_than_a_block_is_one(samples: int):
    wave = sine(2)[:samples]
    longer = integrated(sine(2), RATE)
    if samples > 2_000:  # 0.1 s: enough for the filter to settle
        assert integrated(wave, RATE) == pytest.approx(longer, abs=0.2)
    assert integrated(wave, RATE) < 0


@pytest.mark.parametrize("wave", [[], [0.0] * 100, [0.0] * RATE, [1e-6] * RATE])
def test_silence_is_minus_infinity_and_stays_as_it_is(wave):
    wave = np.array(wave, dtype=np.float32)
    assert integrated(wave, RATE) == SILENT == -math.inf
    np.testing.assert_array_equal(matched(wave, RATE, -20), wave)


def test_turns_of_one_speaker_are_measured_together(seed: int):
    loud, soft = noise(3, RATE, seed), 0.5 * noise(3, RATE, seed + 1)
    both = loudness_of([loud, soft, np.zeros(RATE, dtype=np.float32)], RATE)
    assert integrated(soft, RATE) < both < integrated(loud, RATE)
    assert loudness_of([loud], RATE) == integrated(loud, RATE)
    assert loudness_of([], RATE) == SILENT


# -- matching -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [-30.0, -23.0, -18.0])
def test_matched_has_the_loudness_asked_for(target: float):
    for path in VOICES:
        wave = matched(audio.read_reference(path), RATE, target)
        assert wave.dtype == np.float32
        limited = 20 * math.log10(true_peak(wave, RATE)) > -1.01
        loudness = integrated(wave, RATE)
        assert loudness == pytest.approx(target, abs=0.01) or (limited and loudness < target)


def test_the_peak_stays_under_its_ceiling(seed: int):
    wave = noise(1, RATE, seed) * 0.1
    wave[RATE // 2] = 1.0  # a click: far louder than the rest
    louder = matched(wave, RATE, -5, peak_db=-3)
    assert 20 * math.log10(true_peak(louder, RATE)) == pytest.approx(-3, abs=1e-3)
    assert integrated(louder, RATE) < -5


def test_gain_is_one_for_silence():
    assert gain(SILENT, 0.5, -20) == gain(-30, 0.0, -20) == 1.0


def test_true_peaks_lie_between_the_samples():
    """A quarter of the rate, sampled 45 degrees off its peaks: 3.01 dB above every sample. The
    ripple of the resampler adds 0.104 dB there, of the 0.2 dB that EBU Tech 3341 allows."""
    wave = np.sin(np.pi / 2 * np.arange(RATE) + np.pi / 4).astype(np.float32)
    assert np.max(np.abs(wave)) == pytest.approx(0.7071, abs=1e-4)
    middle = wave * np.hanning(RATE)
    assert 20 * math.log10(true_peak(middle, RATE)) == pytest.approx(0, abs=0.12)


def test_true_peak_skips_nothing(seed: int):
    """Against the whole wave at four times the rate."""
    rng = np.random.default_rng(seed)
    for size in (1, 30, 2_399, 2_401, 20_000):
        wave = (rng.standard_normal(size) * rng.random(size)).astype(np.float32)
        expected = np.max(np.abs(resample(wave, 1, 4)))
        expected = max(expected, np.max(np.abs(wave)))
        assert true_peak(wave, RATE) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: integrated(np.zeros((2, 9)), RATE), r"mono wave \[N\], not shape \[2, 9\]"),
        (lambda: integrated(np.full(9, np.nan), RATE), "not numbers"),
        (lambda: true_peak(np.full(9, np.inf), RATE), "not numbers"),
        (lambda: integrated(np.zeros(9), 0), "sample rate of 0 Hz"),
        (lambda: integrated(np.zeros(9), 300_000), "sample rate of 300000 Hz"),
        (lambda: integrated(np.zeros(9), 24_000.5), "sample rate of 24000.5 Hz"),
        (lambda: matched(sine(1), RATE, 3), "loudness of 3 LUFS"),
        (lambda: matched(sine(1), RATE, math.nan), "loudness of nan LUFS"),
        (lambda: matched(sine(1), RATE, -20, peak_db=1), "peak 1 dB"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message: str):
    with pytest.raises(InputError, match=message):
        call()
