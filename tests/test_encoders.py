"""The bytes of an answer: one container, streamed or whole, that decodes to what was said."""

from __future__ import annotations

import gc
import io
import threading
import weakref

import numpy as np
import pytest
import soundfile

from mlx_higgs import audio
from mlx_higgs.server import encoders
from mlx_higgs.server.encoders import MEDIA_TYPES, STREAMABLE, encoder, whole
from mlx_higgs.types import SAMPLE_RATE, InputError

FRAME = 960


def speech(seed: int, seconds: float = 3.0) -> np.ndarray:
    """A gliding tone with noise: no two places are alike."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    glide = np.sin(2 * np.pi * (200 + 60 * t) * t)
    return (0.5 * glide + 0.02 * rng.normal(size=len(t))).astype(np.float32)


def streamed(format: str, wave: np.ndarray, block: int) -> list[bytes]:
    """What each push gives, and the finish."""
    with_all = encoder(format)
    parts = [with_all.push(wave[i : i + block]) for i in range(0, len(wave), block)]
    return [*parts, with_all.finish()]


def decoded(data: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(data), dtype="float32")[0]


def similar(found: np.ndarray, wave: np.ndarray) -> bool:
    """Whether ``wave`` is in ``found``, behind what the encoder put before it."""
    part = wave[SAMPLE_RATE : 2 * SAMPLE_RATE]
    shifts = np.correlate(found[SAMPLE_RATE : 2 * SAMPLE_RATE + 3000], part, "valid")
    at = SAMPLE_RATE + int(np.argmax(shifts))
    return bool(np.corrcoef(found[at : at + len(part)], part)[0, 1] > 0.98)


@pytest.mark.parametrize("format", STREAMABLE)
def test_a_stream_is_one_container_with_all_that_was_said(format: str, seed: int):
    wave = speech(seed)
    data = b"".join(streamed(format, wave, FRAME))
    if format == "pcm":
        found = np.frombuffer(data, "<i2").astype(np.float32) / 32768
    else:
        found = decoded(data)
    assert len(found) >= len(wave)
    assert similar(found, wave)
    if format == "opus":
        assert len(found) == len(wave)
        assert data.count(b"OpusHead") == 1
    if format == "wav":
        assert data.count(b"RIFF") == 1


@pytest.mark.parametrize("format", ["mp3", "wav", "pcm"])
def test_how_a_wave_is_cut_leaves_no_trace(format: str, seed: int):
    wave = speech(seed, 1.5)
    cuts = [b"".join(streamed(format, wave, block)) for block in (37, FRAME, len(wave))]
    assert cuts[0] == cuts[1] == cuts[2]


def test_bytes_come_while_it_is_said(seed: int):
    """From the first frame on; a page of Opus holds a second."""
    wave = speech(seed)
    for format in ("mp3", "wav", "pcm"):
        assert all(streamed(format, wave, FRAME)[:-1]), format
    early = streamed("opus", wave, SAMPLE_RATE)[:-1]
    assert len(early[0]) > 0
    assert sum(map(len, early[1:])) > 0


@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_a_whole_file_has_its_true_sizes(format: str, seed: int, tmp_path):
    wave = speech(seed)
    data = whole(format, wave)
    if format == "pcm":
        assert data == whole("wav", wave)[44:]
        return
    assert len(decoded(data)) == len(wave)
    if format in ("wav", "flac"):
        written = audio.write(tmp_path / f"a.{format}", wave)
        np.testing.assert_array_equal(decoded(data), soundfile.read(written, dtype="float32")[0])


def test_a_streamed_wav_says_that_nobody_knows_how_long(seed: int):
    wave = speech(seed, 0.5)
    stream, file = b"".join(streamed("wav", wave, FRAME)), whole("wav", wave)
    assert stream[44:] == file[44:]
    assert stream[4:8] == stream[40:44] == b"\xff" * 4
    assert int.from_bytes(file[4:8], "little") == len(file) - 8
    assert int.from_bytes(file[40:44], "little") == len(file) - 44
    assert stream[8:40] == file[8:40]


def test_a_rate_reaches_the_header():
    for format in ("wav", "flac", "mp3", "opus"):
        data = whole(format, speech(0, 0.5)[:8000], 16_000)
        assert soundfile.info(io.BytesIO(data)).samplerate == 16_000, format


def test_loud_samples_are_clipped_not_wrapped():
    loud = np.array([-9.0, -1.0, 0.0, 1.0, 9.0], np.float32)
    assert np.frombuffer(whole("pcm", loud), "<i2").tolist() == [-32768, -32768, 0, 32767, 32767]
    assert np.abs(decoded(whole("flac", np.repeat(loud, 1000)))[:1000] + 1).max() < 1e-4


@pytest.mark.parametrize("format", STREAMABLE)
def test_nothing_said_is_still_a_file(format: str):
    data = encoder(format).finish()
    assert data.startswith({"wav": b"RIFF", "opus": b"OggS"}.get(format, b""))


@pytest.mark.parametrize("format", ["mp3", "opus"])
def test_an_encoder_lets_go_when_it_is_given_up(format: str, seed: int):
    given_up = encoder(format)
    given_up.push(speech(seed, 0.2))
    file = weakref.ref(given_up._file)
    given_up.close()
    given_up.close()
    gc.collect()
    assert file() is None
    with pytest.raises(ValueError, match="closed"):
        given_up.push(speech(seed, 0.2))
    forgotten = encoder(format)
    file = weakref.ref(forgotten._file)
    del forgotten
    gc.collect()
    assert file() is None


def test_an_encoder_may_be_closed_while_another_thread_pushes(seed: int):
    wave = speech(seed, 20.0)
    for format in ("mp3", "opus"):
        one, stopped = encoder(format), []

        def push(one=one, stopped=stopped):
            try:
                one.push(wave)
            except ValueError:
                stopped.append(True)

        thread = threading.Thread(target=push)
        thread.start()
        one.close()
        thread.join()
        assert stopped == [True]


def test_a_stream_keeps_nothing_back_but_its_own_frame(seed: int):
    for format in ("mp3", "opus"):
        one = encoder(format)
        for _ in range(5):
            one.push(speech(seed, 1.0))
            assert not one._sink.take()
        one.close()


@pytest.mark.parametrize("format", ["flac", "aac", "", "MP3", "../x", "wav\0"])
def test_what_cannot_be_streamed_is_said(format: str):
    with pytest.raises(InputError, match="use") as told:
        encoder(format)
    assert "\n" not in str(told.value)
    if format == "flac":
        assert "mp3" in str(told.value)
    else:
        with pytest.raises(InputError, match="not written here"):
            whole(format, np.zeros(FRAME, np.float32))


def test_every_stream_is_also_a_file():
    assert set(STREAMABLE) < MEDIA_TYPES.keys()
    assert {f".{name}" for name in MEDIA_TYPES} - {".pcm"} <= audio.FORMATS.keys()
    assert encoders.BYTES * 8 == 16
