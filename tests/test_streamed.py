"""``generate --stream``: into a file, a pipe, a loudspeaker; a reader may leave."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sound_card import Device

from mlx_higgs.delivery import EXACT, LOW
from mlx_higgs.generate import main
from mlx_higgs.server.job import SpeechJob
from mlx_higgs.types import GenerationError, Speech

TEXT = ["--text", "one two three four", "--seed", "2", "--max-frames", "30"]
COMMAND = [sys.executable, "-m", "mlx_higgs.generate", *TEXT, "--stream", "-o", "-"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def spoken(server) -> Speech:
    return server.generate("one two three four", seed=2, max_new_frames=30)


def rounded(wave: np.ndarray) -> np.ndarray:
    return np.clip(wave, -1, 1)


def test_a_file_is_the_same_streamed(capsys, spoken: Speech):
    assert main([*TEXT, "--stream", "-o", "out.wav"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["out.wav"]
    assert "first sound after" in err
    wave, _ = soundfile.read("out.wav")
    assert np.abs(wave - rounded(spoken.pcm)).max() < 1e-4


def test_low_latency_in_mp3_and_its_report(capsys, spoken: Speech):
    assert main([*TEXT, "--stream", "--latency", "low", "-o", "out.mp3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert 0 < report["first_audio"] < report["seconds"]
    assert report["duration"] == spoken.duration
    assert soundfile.info("out.mp3").format == "MP3"


def test_a_wav_of_unknown_length_on_standard_output(spoken: Speech):
    done = subprocess.run(COMMAND, capture_output=True, check=True)
    header, sizes = done.stdout[:44], b"\xff\xff\xff\xff"
    assert (header[:4], header[4:8], header[36:40], header[40:44]) == (
        b"RIFF",
        sizes,
        b"data",
        sizes,
    )
    wave, rate = soundfile.read(io.BytesIO(done.stdout))
    assert rate == 24_000
    assert np.abs(wave - rounded(spoken.pcm)).max() < 1e-4
    assert list(Path().iterdir()) == []


def test_a_reader_that_leaves_ends_it_without_a_complaint():
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        err = process.stderr.read().decode()
    assert process.returncode == 0
    assert "The reader left after" in err
    assert "error" not in err.lower()


def test_played_while_it_is_made(capsys, monkeypatch, spoken: Speech):
    device = Device()
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    heard = []
    monkeypatch.setattr(SpeechJob, "_hear", lambda job, wave: heard.append(list(device.calls)))
    monkeypatch.setattr(SpeechJob, "first_audio", 0.0, raising=False)
    monkeypatch.setattr("mlx_higgs.audio.SILENCE", -1.0)
    assert main([*TEXT, "--stream", "--play", "-o", "out.wav"]) == 0
    assert heard[0] == []
    assert heard[1] == ["start"]  # before the second chunk is made
    assert device.rate == 24_000
    played, there = device.heard, rounded(spoken.pcm)
    assert np.array_equal(played[played != 0], there[there != 0])
    assert capsys.readouterr().out.splitlines() == ["out.wav"]


def test_what_breaks_off_leaves_no_file(capsys, monkeypatch):
    def broken(job, wave):
        raise GenerationError("The decoded waveform is not a number.")

    monkeypatch.setattr(SpeechJob, "_hear", broken)
    assert main([*TEXT, "--stream", "-o", "out.mp3"]) == 1
    assert "not a number" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--latency", "low"], "--latency low is for --stream"),
        (["--stream", "--fade-in-ms", "5"], "leave out --stream"),
    ],
)
def test_what_does_not_go_together_is_said_before_any_work(options, message, capsys):
    assert main([*TEXT, *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_the_stream_demo_runs(capsys):
    script = Path(__file__).parent.parent / "examples" / "stream_demo.py"
    for latency, rows in (("exact", 8 + 10 + EXACT.first), ("low", 8 + LOW.right + LOW.first)):
        command = [
            sys.executable,
            str(script),
            "--text",
            "one two three four",
            "--seed",
            "2",
            "--force",
        ]
        command += ["--latency", latency]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        lines = done.stdout.splitlines()
        assert lines[0].endswith(f"{rows} frames generated")
        assert lines[-1] == "streamed.wav"
        assert soundfile.info("streamed.wav").frames > 0
