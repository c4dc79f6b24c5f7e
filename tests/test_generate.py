"""The command: one line in, one file out; bad input is one line, exit code 2 and no file."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mlx_higgs import playback
from mlx_higgs.cli import dashed
from mlx_higgs.generate import main
from mlx_higgs.loading import load
from mlx_higgs.types import Speech

GOLDEN = Path(__file__).parent / "golden"
TEXT = ["--text", "one two", "--seed", "3"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def spoken(server) -> Speech:
    return server.generate("one two", seed=3)


def test_a_file_its_path_its_seed_and_its_reason(capsys, spoken: Speech):
    assert main([*TEXT, "-o", "out.wav"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "out.wav"
    assert "seed 3, stopped by eos" in err
    assert "s made" in err  # the progress bar
    assert "bundled demo" in err
    wave, rate = soundfile.read("out.wav")
    assert rate == 24_000
    assert np.abs(wave - np.clip(spoken.pcm, -1, 1)).max() < 1e-4


def test_json_is_one_object(capsys, spoken: Speech):
    assert main([*TEXT, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["path"] == "speech.wav"
    assert report["stop_reason"] == "eos"
    assert report["seed"] == 3
    assert report["duration"] == spoken.duration
    assert report["num_frames_raw"] == spoken.num_frames_raw
    assert report["real_time_factor"] == pytest.approx(report["seconds"] / spoken.duration)


def test_pipes_in_and_out(spoken: Speech):
    command = [sys.executable, "-m", "mlx_higgs.generate", "--seed", "3", "-o", "-"]
    done = subprocess.run(command, input=b"one two\n", capture_output=True, check=True)
    wave, _ = soundfile.read(io.BytesIO(done.stdout))
    assert np.abs(wave - np.clip(spoken.pcm, -1, 1)).max() < 1e-4
    assert list(Path().iterdir()) == []


def test_a_text_file_and_another_format():
    Path("text.txt").write_text("one two", encoding="utf-8")
    assert main(["--file", "text.txt", "--seed", "3", "-o", "out.mp3"]) == 0
    assert soundfile.info("out.mp3").format == "MP3"


def test_play_plays_the_samples(monkeypatch, spoken: Speech):
    played = []
    monkeypatch.setattr(playback, "player", lambda: None)
    monkeypatch.setattr(playback, "play", lambda pcm, rate: played.append((pcm, rate)))
    assert main([*TEXT, "--play"]) == 0
    assert np.array_equal(played[0][0], spoken.pcm)


def test_no_player_is_said_before_any_work(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main([*TEXT, "--play"]) == 2
    assert "mlx_higgs[play]" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_underscores_are_accepted():
    words = ["--ref_audio", "a_b.wav", "--ref_text=x_y", "-o", "c_d.wav", "--", "--e_f"]
    assert dashed(words) == [
        *["--ref-audio", "a_b.wav", "--ref-text=x_y", "-o", "c_d.wav", "--", "--e_f"]
    ]


def test_force_replaces():
    Path("out.wav").write_bytes(b"old")
    assert main([*TEXT, "-o", "out.wav", "--force", "--max-frames", "20"]) == 0
    assert soundfile.info("out.wav").frames == 12 * 960


def test_quantize_while_loading():
    assert main([*TEXT, "--quantize", "8", "--max-frames", "20"]) == 0
    assert soundfile.info("speech.wav").frames == 12 * 960


def checkpoint(codec: bool = True, **config) -> str:
    """The demo with a changed config."""
    from mlx_higgs.sources import DEMO

    folder = Path(shutil.copytree(DEMO, "changed"))
    if not codec:
        shutil.rmtree(folder / "codec")
    old = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**old, **config}))
    return "changed"


def empty_folder() -> list[str]:
    Path("empty").mkdir()
    return ["--model", "empty"]


def truncated() -> str:
    file = Path(checkpoint()) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return "changed"


def wav(name: str, seconds: float) -> str:
    Path("clips").mkdir(exist_ok=True)
    soundfile.write(f"clips/{name}", np.full(round(seconds * 8000), 0.3), 8000)
    return f"clips/{name}"


def text_as_wav() -> str:
    Path("clips").mkdir()
    Path("clips/text.wav").write_text("no sound")
    return "clips/text.wav"


BAD = {
    "empty text": (lambda: ["--text", " "], "nothing to say"),
    "text file missing": (lambda: ["--file", "none.txt"], "none.txt"),
    "reference missing": (lambda: ["--ref-audio", "no.wav", "--ref-text", "x"], "does not exist"),
    "reference unreadable": (
        lambda: ["--ref-audio", text_as_wav(), "--ref-text", "x"],
        "cannot be read",
    ),
    "reference short": (lambda: ["--ref-audio", wav("a.wav", 0.1), "--ref-text", "x"], "0.10 s"),
    "reference long": (lambda: ["--ref-audio", wav("b.wav", 61), "--ref-text", "x"], "61 s"),
    "transcript missing": (lambda: ["--ref-audio", wav("c.wav", 1)], "no transcript"),
    "voice unknown": (lambda: ["--voice", "nobody"], "en_woman"),
    "folder missing": (lambda: ["-o", "none/out.wav"], "does not exist"),
    "suffix unknown": (lambda: ["-o", "out.xyz"], "no known suffix"),
    "model missing": (lambda: ["--model", "./none"], "no folder ./none"),
    "no checkpoint": (empty_folder, "empty holds no config.json: it is not a checkpoint."),
    "another model without a codec": (
        lambda: ["--model", checkpoint(False, model_type="llama")],
        "'llama'",
    ),
    "another model": (lambda: ["--model", checkpoint(model_type="llama")], "'llama'"),
    "shard truncated": (lambda: ["--model", truncated()], "is truncated"),
    "variant unsupported": (lambda: ["--model", checkpoint(hidden_act="gelu")], "hidden_act"),
    "text too long": (lambda: ["--text", "word " * 30_000, "--chunk", "none"], "cannot fit"),
    "sampling": (lambda: ["--top-p", "2"], "top_p is 2.0"),
    "bits": (lambda: ["--quantize", "7"], "bits 7"),
    "codec missing": (lambda: ["--codec", "./none"], "no folder ./none"),
    "fade negative": (lambda: ["--fade-in-ms", "-5"], "not -5.0 ms"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_writes_nothing(name: str, capsys):
    make, message = BAD[name]
    arguments = make()
    before = sorted(Path().rglob("*"))
    text = [] if {"--text", "--file"} & set(arguments) else ["--text", "one"]
    assert main([*text, *arguments]) == 2
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert message in err
    assert out == ""
    assert sorted(Path().rglob("*")) == before


def test_a_text_too_long_says_what_bounds_it(capsys):
    assert main(["--text", "word " * 4_800, "--chunk", "none", "--max-frames", "100000"]) == 2
    err = capsys.readouterr().err
    assert "of the 8192 positions that prompt and speech share" in err
    assert "Split it" in err
    assert "--max-frames" not in err
    whole = ["--chunk", "none"]
    assert main(["--text", "word " * 4_800, *whole]) == 2  # more frames would not help either
    assert "--max-frames" not in capsys.readouterr().err
    assert main(["--text", "word " * 1_000, *whole]) == 2
    assert "raise --max-frames" in capsys.readouterr().err


def test_an_output_that_exists_is_kept(capsys):
    Path("out.wav").write_bytes(b"old")
    assert main([*TEXT, "-o", "out.wav"]) == 2
    assert "--force" in capsys.readouterr().err
    assert Path("out.wav").read_bytes() == b"old"


def test_no_speech_is_exit_code_1_and_no_file(capsys):
    assert main([*TEXT, "--max-frames", "3"]) == 1
    assert "no sound" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_the_clone_demo_runs():
    script = Path(__file__).parent.parent / "examples" / "clone_demo.py"
    command = [sys.executable, str(script), "--text", "one", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "cloned.wav"
    assert ("cannot clone" in done.stdout) != load("demo").defaults.clones
    assert soundfile.info("cloned.wav").frames > 0
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "exists" in done.stderr


def test_a_long_text_is_said_in_pieces_whole_or_streamed(capsys):
    options = ["--text", "one two. three four.", "--chunk", "sentence", "--chunk-size", "12"]
    options += ["--seed", "3", "--max-frames", "24", "--gap-ms", "50", "--json"]
    codes = [main([*options, "-o", "whole.wav"]), main([*options, "-o", "s.wav", "--stream"])]
    whole, streamed = map(json.loads, capsys.readouterr().out.splitlines())
    faults = [piece for piece in whole["pieces"] if piece["stop_reason"] != "eos"]
    assert codes == [3 if faults else 0] * 2
    assert whole["pieces"] == streamed["pieces"]
    assert [piece["text"] for piece in whole["pieces"]] == ["one two.", "three four."]
    assert Path("s.wav").read_bytes() == Path("whole.wav").read_bytes()
