"""Laws of audio files: any clip becomes mono 24 kHz, a file appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mlx_higgs import audio
from mlx_higgs.types import SAMPLE_RATE, InputError


def tone(seconds: float, rate: int, hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg"])
@pytest.mark.parametrize(("rate", "channels"), [(24_000, 1), (48_000, 2), (16_000, 1)])
def test_any_clip_becomes_mono_24_khz(tmp_path: Path, suffix: str, rate: int, channels: int):
    path = tmp_path / f"clip{suffix}"
    soundfile.write(path, np.stack([tone(1.0, rate)] * channels, axis=1), rate)
    wave = audio.read_reference(path)
    assert wave.dtype == np.float32
    assert wave.ndim == 1
    assert abs(len(wave) - SAMPLE_RATE) < 3000  # MP3 pads its ends
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    assert np.argmax(spectrum) * SAMPLE_RATE / len(wave) == pytest.approx(440, abs=3)
    middle = wave[6000:18000]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_channels_are_averaged(tmp_path: Path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, np.stack([np.full(24_000, 0.2), np.full(24_000, 0.6)], 1), 24_000)
    assert np.allclose(audio.read_reference(path), 0.4, atol=1e-4)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (tone(0.1, 8000), "lasts 0.10 s"),
        (tone(61, 8000), "lasts 61 s"),
        (np.zeros(8000), "is silent"),
        (np.full(8000, np.nan), "not numbers"),
    ],
)
def test_clips_that_cannot_be_used_raise(tmp_path: Path, samples: np.ndarray, message: str):
    path = tmp_path / "clip.wav"
    soundfile.write(path, samples, 8000, subtype="FLOAT")
    with pytest.raises(InputError, match=message):
        audio.read_reference(path)


def test_missing_and_unreadable_clips_raise(tmp_path: Path):
    with pytest.raises(InputError, match="does not exist"):
        audio.read_reference(tmp_path / "none.wav")
    (tmp_path / "text.wav").write_text("this is no sound")
    with pytest.raises(InputError, match="cannot be read as audio"):
        audio.read_reference(tmp_path / "text.wav")
    with pytest.raises(InputError, match="does not exist"):
        audio.read_reference(tmp_path)


@pytest.mark.parametrize("suffix", sorted(audio.FORMATS))
def test_every_format_can_be_read_back(tmp_path: Path, suffix: str):
    wave = tone(1.5, SAMPLE_RATE).astype(np.float32)
    path = audio.write(tmp_path / f"out{suffix}", wave)
    back, rate = soundfile.read(path)
    assert rate in (24_000, 48_000)
    assert abs(len(back) / rate - 1.5) < 0.06
    assert np.abs(back).max() == pytest.approx(0.5, abs=0.05)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_loud_samples_saturate_instead_of_wrapping(tmp_path: Path):
    path = audio.write(tmp_path / "out.wav", np.array([2.0, -2.0, 0.0], np.float32))
    assert soundfile.read(path)[0] == pytest.approx([1, -1, 0], abs=1e-4)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch):
    old = tmp_path / "out.wav"
    old.write_bytes(b"old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(audio, "_encode", fail)
    with pytest.raises(OSError, match="disk full"):
        audio.write(old, np.zeros(3, np.float32))
    assert old.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.wav"]


def test_outputs_are_refused_before_any_work(tmp_path: Path):
    (tmp_path / "there.wav").write_bytes(b"")
    (tmp_path / "folder.wav").mkdir()
    refusals = {
        "there.wav": "exists",
        "folder.wav": "is a folder",
        "none/out.wav": "does not exist",
        "out.aac": "no known suffix",
        "out": "no known suffix",
    }
    for name, message in refusals.items():
        with pytest.raises(InputError, match=message):
            audio.check_output(tmp_path / name)
    assert audio.check_output(tmp_path / "there.wav", force=True)
    assert audio.check_output(tmp_path / "OUT.WAV")


def test_an_unwritable_folder_is_refused(tmp_path: Path, monkeypatch):
    def refuse(**kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(audio.tempfile, "NamedTemporaryFile", refuse)  # root may write everywhere
    with pytest.raises(InputError, match="cannot be written"):
        audio.check_output(tmp_path / "out.wav")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc here")
def test_names_that_no_file_can_have_are_refused(tmp_path: Path):
    for path in ("/proc/out.wav", f"{tmp_path}/{'x' * 300}.wav", f"{tmp_path}/a\0b.wav"):
        with pytest.raises(InputError, match="cannot be written"):
            audio.check_output(path)


def test_fades_reach_zero_and_touch_nothing_else():
    wave = audio.fade(np.ones(1000, np.float32), 1000, in_ms=100, out_ms=200)
    assert wave[0] == 0
    assert wave[-1] == 0
    assert (wave[100:800] == 1).all()
    assert (np.diff(wave[:100]) > 0).all()
    assert (np.diff(wave[800:]) < 0).all()
    assert (audio.fade(np.ones(10, np.float32), 1000) == 1).all()
    assert len(audio.fade(np.ones(10, np.float32), 1000, 500, 500)) == 10
    with pytest.raises(InputError, match="not -1 ms"):
        audio.fade(np.ones(10), 1000, -1)


def test_a_clip_that_was_replaced_is_read_again(tmp_path: Path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, np.full(12_000, 0.25), 24_000)
    first = audio.read_reference(path)
    assert audio.read_reference(path) is first
    soundfile.write(path, np.full(13_000, 0.5), 24_000)
    assert len(audio.read_reference(path)) == 13_000
