"""Laws of the check: each fault moves its own measure, and the verdict names the way out."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mlx_higgs.types import SAMPLE_RATE
from mlx_higgs.voices.check import Verdict, check_clip, letters, measure
from mlx_higgs.voices.clip import read_clip
from mlx_higgs.voices.folders import BUNDLED
from mlx_higgs.voices.prepare import prepare

CLIP = BUNDLED / "en_woman.wav"
WORDS = CLIP.with_suffix(".txt").read_text("utf-8")
WAVE, _ = read_clip(CLIP)


def verdicts(wave: np.ndarray, words: str = WORDS) -> dict[str, Verdict]:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    _, found = check_clip(buffer.getvalue(), words)
    return {verdict.about: verdict for verdict in found}


@pytest.mark.parametrize("path", sorted(BUNDLED.glob("*.wav")), ids=lambda path: path.stem)
def test_the_bundled_voices_are_good(path: Path):
    _, found = check_clip(path, path.with_suffix(".txt").read_text("utf-8"))
    assert [verdict.about for verdict in found if verdict.level != "good"] == []


def noisy(level: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return WAVE + (10 ** (level / 20) * rng.standard_normal(len(WAVE))).astype(np.float32)


@pytest.mark.parametrize(
    ("wave", "words", "about", "level", "way_out"),
    [
        (WAVE[: SAMPLE_RATE // 2], WORDS[:10], "length", "bad", "5 to 12 s"),
        (np.tile(WAVE, 6), WORDS * 6, "length", "poor", "5 to 12 s"),
        (WAVE * 0.02, WORDS, "level", "poor", "closer"),
        (np.clip(WAVE * 8, -1, 1), WORDS, "clipping", "bad", "less gain"),
        (np.clip(WAVE * 8, -1, 1) * 0.3, WORDS, "clipping", "bad", "less gain"),
        (noisy(-25), WORDS, "noise", "bad", "quiet room"),
        (noisy(-34), WORDS, "noise", "poor", "quiet room"),
        (WAVE[: -SAMPLE_RATE // 2], WORDS, "ending", "bad", "voices add"),
        (WAVE, WORDS[:10], "words", "bad", "words are missing"),
        (WAVE, WORDS * 2, "words", "bad", "lacks some"),
    ],
)
def test_each_fault_is_found(wave: np.ndarray, words: str, about: str, level: str, way_out: str):
    found = verdicts(wave, words)[about]
    assert found.level == level
    assert way_out in found.message


@pytest.mark.parametrize("change", [lambda wave: wave * 0.5, lambda wave: -wave, np.copy])
def test_what_is_no_fault_is_none(change: Callable):
    assert {verdict.level for verdict in verdicts(change(WAVE)).values()} == {"good"}


@pytest.mark.parametrize("hz", [60, 100, 440])
def test_a_pure_tone_is_not_clipped(hz: float):
    wave = 0.9 * np.sin(2 * np.pi * hz * np.arange(SAMPLE_RATE * 2) / SAMPLE_RATE)
    assert measure(wave, SAMPLE_RATE, "x").clipped == 0


@pytest.mark.parametrize("level", [-60.0, -45.0, -30.0])
def test_noise_is_measured_in_the_pauses(level: float):
    noise = np.random.default_rng(1).standard_normal(6 * SAMPLE_RATE) * 10 ** (level / 20)
    tone = 0.3 * np.sin(2 * np.pi * 200 * np.arange(6 * SAMPLE_RATE) / SAMPLE_RATE)
    spoken = tone * (np.arange(6 * SAMPLE_RATE) // (SAMPLE_RATE // 2) % 2)
    found = measure(spoken + noise, SAMPLE_RATE, "x")
    assert found.noise == pytest.approx(level, abs=1.5)


def test_adding_mends_the_ending():
    cut = WAVE[: -SAMPLE_RATE // 2]
    assert verdicts(cut)["ending"].level == "bad"
    assert verdicts(prepare(cut, SAMPLE_RATE).wave)["ending"].level == "good"


def test_texts_of_any_script_count_alike():
    """The same sentence: about the same number of letters, as it takes the same time."""
    english = letters("Tomorrow I will go to the library to read books.")
    for text in (
        "明天我要去图书馆看书学习。",
        "Завтра я пойду в библиотеку читать книги.",
        "내일 나는 도서관에 책을 읽으러 간다.",
    ):
        assert 0.5 < letters(text) / english < 1.5
    assert letters("7") == letters("four")
    assert letters("é") == letters("e\u0301")
