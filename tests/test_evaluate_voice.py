"""Laws of pitch and voice: known pitches are found, and a voice is nearest to itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlx_higgs.audio import read_reference
from mlx_higgs.evaluate.outcomes import sounding_seconds
from mlx_higgs.evaluate.pitch import median_f0, semitones
from mlx_higgs.evaluate.similarity import distance, embed, nearest, similarity
from mlx_higgs.resample import resample
from mlx_higgs.types import InputError

VOICES = Path(__file__).parent.parent / "examples" / "voice_prompts"
NAMES = ("en_man", "en_man_deep", "en_woman")
RATE = 24_000


@pytest.fixture(scope="module")
def clips() -> dict[str, np.ndarray]:
    return {name: read_reference(VOICES / f"{name}.wav") for name in NAMES}


def buzz(hertz: float, rate: int, seconds: float = 0.5) -> np.ndarray:
    """Twelve harmonics, weaker towards the top: a vowel of sorts."""
    time = np.arange(round(seconds * rate)) / rate
    return sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 13)).astype(np.float32)


@pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
def test_a_known_pitch_is_found(rate: int, seed: int):
    for hertz in np.random.default_rng(seed).uniform(65, 390, 8):
        assert median_f0(buzz(hertz, rate), rate) == pytest.approx(hertz, rel=0.01)


def test_noise_and_silence_have_no_pitch(seed: int):
    noise = np.random.default_rng(seed).standard_normal(RATE).astype(np.float32)
    for wave in (noise, np.zeros(RATE, np.float32), np.zeros(10, np.float32)):
        assert median_f0(wave, RATE) is None
        with pytest.raises(InputError, match="No voice"):
            embed(wave, RATE)


def test_playing_faster_raises_the_pitch_by_as_much(clips: dict):
    """The rate is a lie of 2 semitones: everything is that much higher."""
    for wave in clips.values():
        f0, higher = (median_f0(wave, rate) for rate in (RATE, round(RATE * 2 ** (2 / 12))))
        assert semitones(higher, f0) == pytest.approx(2, abs=0.2)


def test_level_and_rate_and_pauses_are_no_part_of_a_voice(clips: dict):
    """The floor is 0.3 dB (16 kHz); two flite voices are 5 dB apart at least."""
    for wave in clips.values():
        same = embed(wave, RATE)
        pause = np.zeros(RATE // 2, np.float32)
        assert distance(same, embed(0.1 * wave, RATE)) < 0.1
        assert distance(same, embed(np.concatenate([pause, wave, pause]), RATE)) < 0.5
        assert distance(same, embed(resample(wave, RATE, 16_000), 16_000)) < 0.5
        assert similarity(same, same) == 1


def test_every_piece_of_a_clip_is_nearest_to_its_own_voice(clips: dict):
    """Pieces of 2.3 s and more, against the voices' other pieces; nothing is heard twice."""
    pieces = {
        name: [embed(piece, RATE) for piece in np.array_split(wave, 3)]
        for name, wave in clips.items()
    }
    for name, own in pieces.items():
        for index, piece in enumerate(own):
            others = {n: np.mean(np.delete(p, index, 0), axis=0) for n, p in pieces.items()}
            assert nearest(piece, others) == name
    with pytest.raises(InputError, match="no voice"):
        nearest(pieces["en_man"][0], {})


def test_pauses_at_the_ends_are_not_sounding(clips: dict):
    wave, pause = clips["en_man"], np.zeros(RATE, np.float32)
    seconds = sounding_seconds(wave, RATE)
    assert 0.8 * len(wave) / RATE < seconds < len(wave) / RATE
    assert sounding_seconds(np.concatenate([pause, wave, pause]), RATE) == pytest.approx(seconds)
    assert sounding_seconds(pause, RATE) == sounding_seconds(pause[:3], RATE) == 0
