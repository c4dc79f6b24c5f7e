"""The shipped voices: what a reference clip should be, and where each comes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mlx_higgs.types import SAMPLE_RATE

FOLDER = Path(__file__).parents[1] / "examples/voice_prompts"
SCRIPT = FOLDER.parents[1] / "convert/make_voices.sh"
CLIPS = sorted(FOLDER.glob("*.wav"))


def decibels(wave: np.ndarray) -> float:
    """Peak in dBFS."""
    return 20 * np.log10(np.abs(wave).max() + 1e-9)


def test_the_voices_are_there() -> None:
    assert [clip.stem for clip in CLIPS] == ["en_man", "en_man_deep", "en_woman"]
    assert [text.stem for text in sorted(FOLDER.glob("*.txt"))] == [clip.stem for clip in CLIPS]


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.stem)
def test_a_clip_is_a_good_reference(clip: Path) -> None:
    info = soundfile.info(clip)
    assert (info.format, info.subtype, info.channels) == ("WAV", "PCM_16", 1)
    assert info.samplerate == SAMPLE_RATE
    assert 5 <= info.duration <= 12
    assert clip.stat().st_size < 600_000
    wave, _ = soundfile.read(clip)
    assert -4 < decibels(wave) < -2
    assert abs(wave.mean()) < 1e-3


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.stem)
def test_a_clip_ends_in_silence_after_a_fade(clip: Path) -> None:
    wave, rate = soundfile.read(clip)
    before, silence = np.split(wave, [-int(0.3 * rate)])
    assert not silence[1:].any()  # the resampler rings one sample into it
    assert decibels(before[-rate // 100 :]) < -40
    assert decibels(before[-rate // 2 :]) > -20  # speech right before it


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.stem)
def test_a_transcript_fits_its_clip(clip: Path) -> None:
    text = clip.with_suffix(".txt").read_text("utf-8").strip()
    assert 15 <= len(text.split()) <= 30
    assert text.isascii()
    assert text.endswith(".")
    assert 8 < len(text) / soundfile.info(clip).duration < 25  # characters per second of speech


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.stem)
def test_the_readme_says_how_each_was_made(clip: Path) -> None:
    readme, script = (FOLDER / "README.md").read_text("utf-8"), SCRIPT.read_text("utf-8")
    assert f"`{clip.stem}`" in readme
    options = script.split(f"make_voice {clip.stem} ")[1].splitlines()[0]
    assert f"flite {options} -f {clip.stem}.txt" in readme
    for effects in script.split("-c 1 ")[1].splitlines()[1:3]:
        assert effects.strip() in readme
