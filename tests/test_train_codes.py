"""Codes kept: encoded once for one content and one codec, whatever happens to the file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mlx_higgs import audio
from mlx_higgs.loading import load_codec
from mlx_higgs.sources import DEMO
from mlx_higgs.train.data.clips import decode, duration, extract, read_clip
from mlx_higgs.train.data.codes import FILE, CodesCache, codec_fingerprint
from mlx_higgs.train.data.conversation import Clip
from mlx_higgs.types import CheckpointError, InputError
from mlx_higgs.voices import find_voice

ROOT = Path(__file__).parent.parent


class FakeCodec:
    """Codes that depend on every sample; counts what it is asked."""

    def __init__(self):
        self.encoded = 0

    def encode(self, wave: np.ndarray) -> np.ndarray:
        self.encoded += 1
        frames = np.pad(wave, (0, -len(wave) % 960)).reshape(-1, 960)
        sums = np.abs(frames).sum(axis=1, keepdims=True) * np.arange(1, 5)
        return (sums * 1000).astype(np.int64) % 1000


def noise(seed: int, seconds: float = 0.5, rate: int = 24_000, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    wave = rng.uniform(-0.5, 0.5, (round(seconds * rate), channels))
    return (wave * 32768).astype(np.int16)


def write(path: Path, wave: np.ndarray, rate: int = 24_000) -> Path:
    soundfile.write(path, wave, rate)
    os.utime(path, ns=(1, 1))  # long ago: only content and size tell files apart
    return path


@pytest.fixture
def codec() -> FakeCodec:
    return FakeCodec()


@pytest.fixture
def clip(tmp_path: Path, seed: int) -> Clip:
    return Clip(write(tmp_path / "clip.wav", noise(seed)))


def cache(folder: Path | None, codec: FakeCodec, fingerprint: str = "one" * 20) -> CodesCache:
    return CodesCache(folder, lambda: codec, fingerprint)


def test_a_training_clip_gives_the_codes_of_a_reference():
    """What is trained as a reference is what generation will hear."""
    voice = find_voice("en_woman", [ROOT / "examples" / "voice_prompts"])
    codec = load_codec(DEMO / "codec")
    exact = codec.encode(audio.read_reference(voice.path, codec.sample_rate))
    found = CodesCache(None, lambda: codec, "x").codes(Clip(voice.path))
    assert np.array_equal(found, np.array(exact))


@pytest.mark.parametrize(("rate", "channels"), [(24_000, 1), (16_000, 2), (44_100, 1)])
def test_clips_are_read_as_references_are(tmp_path, seed, rate, channels):
    path = write(tmp_path / "clip.wav", noise(seed, 0.7, rate, channels), rate)
    assert np.array_equal(read_clip(Clip(path)), audio.read_reference(path))
    assert np.array_equal(read_clip(Clip(None, data=path.read_bytes())), read_clip(Clip(path)))


def test_a_piece_is_those_samples(tmp_path, seed):
    wave = noise(seed, 2.0)
    path = write(tmp_path / "clip.wav", wave)
    piece = Clip(path, 0.5, 0.75)
    samples, rate = decode(piece)
    assert rate == 24_000
    assert np.array_equal(samples * 32768, wave[12_000:30_000, 0])
    assert duration(piece) == 0.75
    assert np.array_equal(read_clip(Clip(path, 1.25))[:10], decode(Clip(path))[0][30_000:30_010])


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_an_extracted_piece_reads_the_same(tmp_path, seed, subtype):
    wave = np.random.default_rng(seed).uniform(-0.9, 0.9, (44_100, 2))
    soundfile.write(tmp_path / "clip.wav", wave, 44_100, subtype=subtype)
    piece = Clip(tmp_path / "clip.wav", 0.1, 0.6)
    extract(piece, tmp_path / "piece.wav")
    assert np.array_equal(read_clip(Clip(tmp_path / "piece.wav")), read_clip(piece))


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        (Clip(Path("nowhere.wav")), "does not exist"),
        (Clip(None, data=b"text"), "cannot be read as audio"),
        (Clip(None, data=b""), "cannot be read as audio"),
        (Clip(Path("one.wav"), 0.5, 0.6), "ends after its file"),
        (Clip(Path("one.wav"), 0.9), "0.10 s: 0.2 to 60 s"),
        (Clip(Path("one.wav"), 3.0), "-2.00 s: 0.2 to 60 s"),
        (Clip(Path("silent.wav")), "is silent"),
        (Clip(Path("long.wav")), "61.00 s: 0.2 to 60 s"),
        (Clip(Path("text.wav")), "cannot be read as audio"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_clip_is_said(tmp_path, monkeypatch, clip, words):
    monkeypatch.chdir(tmp_path)
    soundfile.write("one.wav", noise(0, 1.0), 24_000)
    soundfile.write("silent.wav", np.zeros(24_000), 24_000)
    soundfile.write("long.wav", np.ones(61 * 4_000) / 2, 4_000)
    Path("text.wav").write_text("no audio")
    with pytest.raises(InputError, match=words):
        read_clip(clip)


@pytest.mark.parametrize("kept", [True, False])
def test_encoded_once(tmp_path, codec, clip, kept):
    codes = cache(tmp_path / "codes" if kept else None, codec)
    first, second = codes.codes(clip), codes.codes(clip)
    assert codec.encoded == 1
    assert first.dtype == second.dtype == np.int16
    assert np.array_equal(first, second)
    assert np.array_equal(first, FakeCodec().encode(read_clip(clip)))


def test_a_later_run_builds_no_codec(tmp_path, codec, clip):
    first = cache(tmp_path, codec).codes(clip)

    def unneeded():
        raise AssertionError("the codec was built")

    assert np.array_equal(CodesCache(tmp_path, unneeded, "one" * 20).codes(clip), first)


def test_an_untouched_file_is_not_read_again(tmp_path, codec, clip, monkeypatch):
    codes = cache(tmp_path, codec)
    codes.codes(clip)
    monkeypatch.setattr("mlx_higgs.train.data.codes.read_clip", None)
    codes.codes(clip)


def test_a_copy_is_not_encoded_again(tmp_path, codec, clip):
    codes = cache(tmp_path, codec)
    first = codes.codes(clip)
    copy = tmp_path / "renamed.wav"
    copy.write_bytes(clip.path.read_bytes())
    assert np.array_equal(codes.codes(Clip(copy)), first)
    assert np.array_equal(codes.codes(Clip(None, data=copy.read_bytes())), first)
    assert codec.encoded == 1


def test_another_content_time_piece_or_codec_is_encoded_again(tmp_path, codec, clip, seed):
    codes = cache(tmp_path, codec)
    first = codes.codes(clip)
    wave = noise(seed + 1)
    soundfile.write(clip.path, wave, 24_000)  # same size, another time
    assert not np.array_equal(codes.codes(clip), first)
    assert codec.encoded == 2
    assert len(codes.codes(Clip(clip.path, 0.1, 0.2))) == 5
    assert len(codes.codes(Clip(clip.path, 0.1))) == 10
    assert codec.encoded == 4
    cache(tmp_path, codec, "two" * 20).codes(clip)
    assert codec.encoded == 5


def test_what_another_process_put_there_is_found(tmp_path, codec, clip):
    codes = cache(tmp_path, codec)
    known = np.arange(24, dtype=np.int32).reshape(6, 4)
    codes.put(codes.key(read_clip(clip)), known)
    assert np.array_equal(codes.codes(clip), known)
    assert codec.encoded == 0


def test_a_damaged_entry_is_encoded_again(tmp_path, codec, clip):
    codes = cache(tmp_path, codec)
    first = codes.codes(clip)
    codes._write("update codes set data = zeroblob(length(data))", ())
    assert np.array_equal(codes.codes(clip), first)
    assert codec.encoded == 2
    assert np.array_equal(codes.codes(clip), first)
    assert codec.encoded == 2


@pytest.mark.parametrize("damage", ["start", "pages", "empty", "while open"])
def test_a_damaged_file_begins_anew(tmp_path, codec, clip, damage):
    codes = cache(tmp_path, codec)
    first = codes.codes(clip)
    path = tmp_path / FILE
    data = bytearray(path.read_bytes())
    if damage == "start":
        data[:100] = bytes(100)
    else:
        data[4096:] = b"\xff" * (len(data) - 4096)
    if damage != "while open":
        codes.close()
        codes = None
    path.write_bytes(b"" if damage == "empty" else data)
    codes = codes or cache(tmp_path, codec)
    assert np.array_equal(codes.codes(clip), first)
    assert np.array_equal(cache(tmp_path, codec).codes(clip), first)


def test_a_place_that_cannot_be_is_named(tmp_path, codec):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        cache(tmp_path / "file", codec)


WRITER = """
import sys
from pathlib import Path
from tests.test_train_codes import FakeCodec, cache
from mlx_higgs.train.data.conversation import Clip
codes = cache(Path(sys.argv[1]), FakeCodec())
for path in sorted(Path(sys.argv[2]).glob("*.wav")):
    codes.codes(Clip(path))
"""


def test_two_processes_share_it(tmp_path, codec, seed):
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(40):
        write(clips / f"{number}.wav", noise(seed + number))
    command = [sys.executable, "-c", WRITER, str(tmp_path / "codes"), str(clips)]
    runs = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)]
    assert [(run.communicate()[1], run.returncode) for run in runs] == [(b"", 0)] * 2
    codes = cache(tmp_path / "codes", codec)
    for path in clips.glob("*.wav"):
        assert np.array_equal(codes.codes(Clip(path)), FakeCodec().encode(read_clip(Clip(path))))
    assert codec.encoded == 0


def test_thousands_of_clips_open_in_a_moment(tmp_path, codec, clip, monkeypatch):
    """A data set that has been seen costs a look at each file, not its decoding."""
    codes = cache(tmp_path / "codes", codec)
    clips = [Clip(clip.path, number / 10_000, 0.2) for number in range(2000)]
    key = codes.key(read_clip(clip))
    codes.put(key, np.zeros((125, 8), np.int16))
    for each in clips:
        codes._write("replace into clips values (?, ?)", (codes._seen(each), key))
    codes.close()
    monkeypatch.setattr("mlx_higgs.train.data.codes.read_clip", pytest.fail)
    codes = cache(tmp_path / "codes", codec)
    assert all(len(codes.codes(each)) == 125 for each in clips)
    assert codec.encoded == 0


def test_the_fingerprint_is_that_of_the_codec(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds no codec"):
        codec_fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = codec_fingerprint(tmp_path)
    assert codec_fingerprint(tmp_path) == first
    (tmp_path / "README.md").write_text("not part of it")
    assert codec_fingerprint(tmp_path) == first
    (tmp_path / "config.json").write_text("{ }")
    second = codec_fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert len({first, second, codec_fingerprint(tmp_path)}) == 3
