"""Laws of clips: what is read is bounded and sound; what is prepared ends in silence and stays."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mlx_higgs import audio
from mlx_higgs.types import SAMPLE_RATE, InputError
from mlx_higgs.voices import list_voices
from mlx_higgs.voices.clip import MAX_BYTES, read_clip
from mlx_higgs.voices.prepare import ENDING, LEAD, TAIL, prepare

FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_U8"),
    ("WAV", "FLOAT"),
    ("WAV", "ALAW"),
    ("WAVEX", "PCM_24"),
    ("FLAC", "PCM_16"),
    ("MP3", "MPEG_LAYER_III"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
]
MUTATIONS = 60  # of each format


def speech(seconds: float, rate: int = SAMPLE_RATE, level: float = 0.5) -> np.ndarray:
    """A tone that swells and falls three times a second, as syllables do, and is never silent."""
    time = np.arange(round(seconds * rate)) / rate
    return level * np.sin(2 * np.pi * 220 * time) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time))


def encoded(wave: np.ndarray, rate: int, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def decibels(wave: np.ndarray) -> float:
    return float(20 * np.log10(np.max(np.abs(wave)) + 1e-9))


# -- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
@pytest.mark.parametrize(("rate", "channels"), [(24_000, 1), (48_000, 2), (16_000, 1)])
def test_first_bytes_decide_not_the_name(
    tmp_path: Path, kind: str, subtype: str, rate: int, channels: int
):
    sound = speech(1.0, rate)
    data = encoded(np.stack([sound] * channels, 1), rate, kind, subtype)
    wave, found = read_clip(data)
    assert (wave.dtype, wave.ndim) == (np.float32, 1)
    assert len(wave) / found == pytest.approx(1.0, abs=0.13)  # MP3 pads its ends
    assert np.max(np.abs(wave)) == pytest.approx(0.5, abs=0.05)
    path = tmp_path / "clip.txt"
    path.write_bytes(data)
    again, _ = read_clip(path)
    assert np.array_equal(wave, again)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\0\0\0\x20ftypM4A \0\0\0\0", r"m4a.*afconvert.*ffmpeg"),
        (b"\x1aE\xdf\xa3 webm", "no WAV, FLAC, MP3 or OGG"),
        (b"FORM\0\0\0\0AIFF", "no WAV, FLAC, MP3 or OGG"),
        (b"<html>", "no WAV, FLAC, MP3 or OGG"),
        (b"RIFF\0\0\0\0WAVE", "without a format"),
        (encoded(speech(1.0), 24_000, "WAV", "MS_ADPCM"), r"unusual codec \(0x2\)"),
        (encoded(speech(61, 8000), 8000), "lasts 61 s"),
        (encoded(np.zeros(8000), 8000), "is silent"),
        (encoded(np.full(8000, np.nan), 8000, "WAV", "FLOAT"), "not numbers"),
        (encoded(np.full(8000, 1e20), 8000, "WAV", "FLOAT"), "full scale"),
        (encoded(speech(1.0, 2000), 2000), "at 2000 Hz"),
        (encoded(np.zeros((800, 9)), 8000), "9 channels"),
        (encoded(np.zeros(0), 8000), "no sound"),
    ],
)
def test_what_cannot_be_used_says_so(data: bytes, message: str):
    with pytest.raises(InputError, match=message):
        read_clip(data)


def test_a_forged_header_is_not_believed():
    """Lengths are counted while decoding; what the header promises is never allocated."""
    data = bytearray(encoded(speech(2.0), SAMPLE_RATE))
    place = data.index(b"data") + 4
    data[place : place + 4] = data[4:8] = (2**32 - 1).to_bytes(4, "little")
    wave, rate = read_clip(bytes(data))
    assert len(wave) == 2 * rate


@pytest.mark.parametrize(
    ("total", "message"),
    [(0, "does not say how long"), (2**36 - 1, "lasts"), (30 * SAMPLE_RATE, "FLAC"), (4096, None)],
)
def test_a_flac_of_another_length_than_it_says(total: int, message: str | None):
    data = bytearray(encoded(speech(3.0), SAMPLE_RATE, "FLAC"))
    info = int.from_bytes(data[21:26], "big") >> 36 << 36  # STREAMINFO: 36 bits count the samples
    data[21:26] = (info | total).to_bytes(5, "big")
    if message is None:
        assert len(read_clip(bytes(data))[0]) == total
    else:
        with pytest.raises(InputError, match=message):
            read_clip(bytes(data))


def test_bounds_are_the_callers(tmp_path: Path):
    data = encoded(np.stack([speech(2.0)] * 2, 1), SAMPLE_RATE, "FLAC")
    assert len(read_clip(data, max_seconds=2.0, max_samples=96_000)[0]) == 48_000
    with pytest.raises(InputError, match=r"at most 1\.9 s"):
        read_clip(data, max_seconds=1.9)
    with pytest.raises(InputError, match="95,999 samples"):
        read_clip(data, max_samples=95_999)
    with pytest.raises(InputError, match="more than 100 bytes"):
        read_clip(data, max_bytes=100)
    huge = tmp_path / "huge.wav"
    with huge.open("wb") as file:
        file.truncate(MAX_BYTES * 1000)  # holds no blocks on the disk
    with pytest.raises(InputError, match="more than"):
        read_clip(huge)


@pytest.mark.parametrize("path", ["none.wav", ".", "/dev/zero", "nul\0.wav"])
def test_only_files_are_opened(path: str):
    with pytest.raises(InputError, match=r"no file|cannot be read"):
        read_clip(Path(path))


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut, changed, filled in or with pieces missing, in its header more often than elsewhere."""
    changed = bytearray(data)
    if rng.random() < 0.25:
        return bytes(changed[: rng.randrange(len(changed))])
    for _ in range(rng.choice([1, 1, 3, 30])):
        place = rng.randrange(min(len(changed), rng.choice([80, len(changed)])))
        kind = rng.randrange(4)
        if kind == 0:
            changed[place] = rng.randrange(256)
        elif kind == 1:
            changed[place : place + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f"])
        elif kind == 2:
            changed[place:place] = rng.randbytes(rng.randrange(20))
        else:
            del changed[place : place + rng.randrange(40)]
    return bytes(changed)


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_damaged_clips_are_read_or_refused(kind: str, subtype: str, seed: int):
    rng = random.Random(seed)
    data = encoded(speech(0.6), SAMPLE_RATE, kind, subtype)
    refused = 0
    for _ in range(MUTATIONS):
        try:
            wave, rate = read_clip(damaged(data, rng))
            prepare(wave, rate)
        except InputError:
            refused += 1
            continue
        assert np.all(np.isfinite(wave))
    assert refused


# -- preparing ----------------------------------------------------------------------------------


def with_silence(before: float, wave: np.ndarray, after: float, noise: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    rate = SAMPLE_RATE
    padded = np.pad(wave, (round(before * rate), round(after * rate)))
    return padded + noise * rng.standard_normal(len(padded))


@pytest.mark.parametrize("level", [0.9, 0.02])
def test_silence_is_told_against_the_loudest_part(level: float):
    """A quiet recording is trimmed as a loud one is, and loses nothing more."""
    wave = with_silence(1.5, speech(3.0, level=level), 2.0, noise=level * 1e-3)
    clip = prepare(wave.astype(np.float32), SAMPLE_RATE)
    assert clip.seconds == pytest.approx(LEAD + 3.0 + TAIL + ENDING, abs=0.03)
    loud = 0.15 * level
    heard = np.flatnonzero(np.abs(clip.wave) > loud)
    assert (heard[-1] - heard[0]) / SAMPLE_RATE == pytest.approx(3.0, abs=0.03)
    assert len(clip.done) == 3


@pytest.mark.parametrize("after", [0.0, 0.05, 3.0])
def test_it_ends_in_a_fade_and_silence(after: float, seed: int):
    noise = np.random.default_rng(seed).uniform(0.001, 0.2)
    wave = with_silence(0.0, speech(2.0), after, noise)
    clip = prepare(wave, SAMPLE_RATE)
    silence = round(ENDING * SAMPLE_RATE)
    assert not clip.wave[-silence:].any()
    ending = clip.wave[: len(clip.wave) - silence]
    assert decibels(ending[-24:]) < decibels(ending[-2400:]) - 20
    assert any("faded out" in line for line in clip.done)


@pytest.mark.parametrize("seconds", [0.11, 0.3, 0.9])
def test_short_clips_are_padded_to_a_second(seconds: float):
    clip = prepare(speech(seconds), SAMPLE_RATE)
    assert clip.seconds == pytest.approx(max(1.0, seconds + ENDING))
    assert not clip.wave[-round((1 - seconds - 0.05) * SAMPLE_RATE) :].any()


def test_nothing_to_hear_is_refused():
    click = np.zeros(SAMPLE_RATE, np.float32)
    click[1000:1100] = 0.5
    with pytest.raises(InputError, match="of sound"):
        prepare(click, SAMPLE_RATE)
    with pytest.raises(InputError, match="of sound"):
        prepare(np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE)


def test_any_rate_and_level_become_24_khz_of_16_bits():
    clip = prepare(speech(2.0, 44_100, level=2.0), 44_100)
    wave, rate = soundfile.read(io.BytesIO(clip.wav()), dtype="float32")
    assert rate == SAMPLE_RATE
    assert np.array_equal(wave, clip.wave)
    assert np.max(np.abs(wave)) == pytest.approx(1.0, abs=0.02)
    assert [line.split()[0] for line in clip.done] == ["converted", "made", "faded"]


@pytest.mark.parametrize("seconds", [0.2, 0.6, 4.0])
def test_preparing_twice_is_preparing_once(seconds: float, seed: int):
    rng = np.random.default_rng(seed)
    wave = with_silence(rng.uniform(0, 2), speech(seconds), rng.uniform(0, 2), 1e-4)
    once = prepare(wave, SAMPLE_RATE)
    twice = prepare(*read_clip(once.wav()))
    assert twice.done == []
    assert np.array_equal(once.wave, twice.wave)


@pytest.mark.parametrize("name", ["en_woman", "en_man", "en_man_deep"])
def test_a_good_clip_is_left_alone(name: str):
    path = list_voices()[name]
    clip = prepare(*read_clip(path))
    assert clip.done == []
    assert np.array_equal(clip.wave, audio.read_reference(path))
