"""Weak checkpoints: what is said of them, and their speech that did not end is drawn again."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_longform import Studio

from mlx_higgs import HiggsAudioServer, doubts
from mlx_higgs.convert import convert
from mlx_higgs.defaults import Defaults
from mlx_higgs.delivery import STEADY, WHOLE
from mlx_higgs.fuse import fuse
from mlx_higgs.generate import main as generate
from mlx_higgs.loading import load
from mlx_higgs.longform import LongJob, speak
from mlx_higgs.pieces import RETRIES, Chunking
from mlx_higgs.recipes import Recipe, find, of, shipped
from mlx_higgs.server import SpeechJob, SpeechRequest
from mlx_higgs.sources import DEMO
from mlx_higgs.text import frame_cap
from mlx_higgs.types import CheckpointError

GOOD = {"kl_mean": 0.004, "end_of_speech": 1.0, "wer_change_points": 0.2, "f0_drift_semitones": 0.1}
BAD = {"kl_mean": 0.12, "end_of_speech": 0.968, "wer_change_points": 4.2, "date": "2026-11-22"}
RUNS = {"texts": 50, "seeds": 4, "reference": "demo"}
LONG = "hello friend please turn the page"


def checkpoint(folder: Path, **ours: Any) -> Path:
    """The demo, with something to be known of it."""
    shutil.copytree(DEMO, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mlx_higgs": ours}))
    return folder


@pytest.fixture
def weak(server: HiggsAudioServer, monkeypatch) -> HiggsAudioServer:
    """The bundled demo, as if its rounding were known to be weak."""
    monkeypatch.setitem(server.higgs.__dict__, "doubt", "it is weak")
    return server


@pytest.fixture
def endless(monkeypatch) -> None:
    """No text is said to its end within so few frames."""
    monkeypatch.setattr("mlx_higgs.server.engine.CAP_SHARE", 0.1)


# -- what is known ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (GOOD, ()),
        ({}, ()),
        (GOOD | {"kl_mean": 0.031}, ("KL 0.031 nat",)),
        (GOOD | {"end_of_speech": 0.985}, ("1.5 % of 200 runs never ended",)),
        (GOOD | {"wer_change_points": 3.1}, ("3.1 points more words wrong",)),
        (GOOD | {"f0_drift_semitones": -0.6}, ("pitch -0.6 semitones off",)),
        (BAD, ("measured on 2026-11-22 against its original", "3.2 % of 200 runs", "KL 0.12")),
    ],
)
def test_figures_speak_for_themselves(tmp_path: Path, measured: dict, said: tuple[str, ...]):
    figures = measured | RUNS if measured else {}
    doubt = load(checkpoint(tmp_path / "m", measured=figures), read_now=False).doubt
    assert bool(doubt) == bool(said)
    assert all(words in doubt for words in said)


def test_limits_are_the_last_good_values(tmp_path: Path):
    edge = {
        "kl_mean": doubts.MOST_KL,
        "end_of_speech": doubts.LEAST_ENDED,
        "wer_change_points": doubts.MOST_WORDS,
        "f0_drift_semitones": -doubts.MOST_DRIFT,
    }
    assert not load(checkpoint(tmp_path / "m", measured=edge), read_now=False).doubt


def test_figures_count_more_than_cautions(tmp_path: Path):
    cautious = {"recipe": "q4", "caution": "it ends never"}
    told = load(checkpoint(tmp_path / "a", **cautious), read_now=False).doubt
    assert "q4 is known to be weak: it ends never" in told
    assert not load(checkpoint(tmp_path / "b", measured=GOOD, **cautious), read_now=False).doubt


@pytest.mark.parametrize("ours", [["q4"], {"measured": [1]}, {"measured": {"kl_mean": "low"}}])
def test_a_block_that_means_nothing_is_named(tmp_path: Path, ours: Any):
    folder = checkpoint(tmp_path / "m")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mlx_higgs": ours}))
    with pytest.raises(CheckpointError, match="mlx_higgs"):
        assert load(folder, read_now=False).doubt


def test_cautions_are_of_a_kind_of_model():
    assert "seed" in load("demo", quantize="q4", read_now=False).doubt
    assert load("demo", quantize="4", read_now=False).doubt  # the same by its bits
    assert not load("demo", quantize="q8", read_now=False).doubt
    assert not load("demo", read_now=False).doubt
    for name, recipe in shipped().items():
        assert set(recipe.cautions) <= {"v2", "v3"}, name
    assert "never ends" in doubts.of_recipe(of("q4"), "v3", talker(None))


def test_few_bits_are_doubted_where_a_model_needs_more():
    mixed = Recipe("mine")
    for bits in (2, 3, 4):
        said = doubts.of_recipe(mixed, "v2", talker(bits))
        assert f"with {bits} bits" in said
        assert "seed" in said
    assert not doubts.of_recipe(mixed, "v2", talker(5))
    assert not doubts.of_recipe(mixed, "v2", talker(None))  # nothing that speaks is rounded


def talker(bits: int | None):
    return load("demo", quantize=None if bits is None else str(bits), read_now=False).talker


def test_what_calibration_found_counts_more_than_bits(tmp_path: Path):
    few = talker(4)
    for kl, weak in ((0.02, False), (0.05, True)):
        config = {"mlx_higgs": {"recipe": "mine", "calibration": {"kl": kl}}}
        said = doubts.of_config(config, few, tmp_path)
        assert bool(said) == weak
        assert not weak or "0.05 nat" in said
    with pytest.raises(CheckpointError, match=r"calibration\.kl is 'low'"):
        doubts.of_config({"mlx_higgs": {"calibration": {"kl": "low"}}}, few, tmp_path)


@pytest.mark.parametrize(
    ("name", "bits"), [("q8-q4", 8.0), ("q5", 5.0), ("q4", 4.0), ("mxfp8", 8.0)]
)
def test_bits_of_what_speaks(name: str, bits: int):
    assert doubts.spoken_bits(load("demo", quantize=name, read_now=False).talker) == bits


def test_it_is_said_while_converting(tmp_path: Path, capsys):
    folder = convert("demo", tmp_path / "q4", quantize="q4")
    assert "warning: q4 is known to be weak" in capsys.readouterr().err
    assert json.loads((folder / "config.json").read_text())["mlx_higgs"]["caution"]
    convert("demo", tmp_path / "q8", quantize="q8")
    assert "warning" not in capsys.readouterr().err


def test_python_is_told_once(tmp_path: Path, caplog):
    folder = checkpoint(tmp_path / "m", measured=BAD | RUNS)
    with caplog.at_level(logging.WARNING, "mlx_higgs"):
        HiggsAudioServer.from_pretrained(folder)
    (record,) = caplog.records
    assert "3.2 % of 200 runs never ended" in record.message


def test_what_was_measured_does_not_outlive_the_weights(tmp_path: Path, seed: int):
    from test_fuse import adapter_for

    source = checkpoint(tmp_path / "m", recipe="q8", measured=GOOD)
    out = fuse(str(source), adapter_for(source, tmp_path / "a", seed), tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["mlx_higgs"] == {"recipe": "q8"}


# -- sampling -----------------------------------------------------------------------------------


def test_a_recipes_sampling_is_the_default_and_a_request_wins(tmp_path: Path):
    recipe = Recipe("calm", plan=find("q8").plan, sampling={"temperature": 0.3, "ras_win_len": 7})
    at_once = load("demo", quantize=recipe, read_now=False).defaults.sampling
    folder = convert("demo", tmp_path / "out", quantize=recipe)
    assert load(folder, read_now=False).defaults.sampling == at_once
    source, said = (json.loads((f / "generation_config.json").read_text()) for f in (DEMO, folder))
    assert said == source | recipe.sampling  # only what it names
    assert (at_once.temperature, at_once.ras_window) == (0.3, 7)
    assert SpeechRequest("one", temperature=0.9).sampling(at_once).temperature == 0.9


def test_a_temperature_ends_greedy(tmp_path: Path):
    shutil.copytree(DEMO, tmp_path / "m")
    path = tmp_path / "m/generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_sample": False}))
    recipe = Recipe("calm", plan=find("q8").plan, sampling={"temperature": 0.3})
    folder = convert(str(tmp_path / "m"), tmp_path / "out", quantize=recipe)
    assert Defaults.from_pretrained(folder).sampling.temperature == 0.3


# -- drawn again --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "end", "attempts"),
    [
        (["eos"], "eos", 1),
        (["length", "eos"], "eos", 2),
        (["repetition", "length", "repetition"], "length", 3),
        (["length", "repetition", "silence", "eos"], "silence", 3),
    ],
)
def test_the_best_of_the_attempts_is_kept(ends: list[str], end: str, attempts: int):
    studio = Studio({LONG: list(ends)})
    job = speak(studio.start, SpeechRequest(LONG, seed=5), Chunking(), alone=2, live=False)
    speech = job.run()
    assert (speech.stop_reason, job.said[0].attempts) == (end, attempts)
    assert studio.seeds[0] == 5
    assert len(set(studio.seeds)) == len(studio.seeds) == attempts
    assert speech.codes is not None
    assert speech.seed == 5  # which draws all of this again


def test_what_was_heard_is_not_drawn_again():
    studio = Studio({LONG: ["length", "eos"]})
    job = speak(studio.start, SpeechRequest(LONG, seed=5), Chunking(), alone=2)
    assert len(list(job)) == studio.frames
    assert (job.stop_reason, len(studio.requests)) == ("length", 1)


def test_only_the_weak_are_drawn_again(server: HiggsAudioServer):
    request = SpeechRequest("one", seed=1)
    assert type(server.start_long(request)) is SpeechJob
    asked = server.start_long(request, chunking=Chunking(retries=1))
    assert isinstance(asked, LongJob)
    plain = server.start_long(request, chunking=Chunking(retries=0))
    assert type(plain) is SpeechJob
    for job in (asked, plain):
        job.close()


def test_a_weak_one_is_guarded_wherever_it_speaks(weak: HiggsAudioServer):
    for delivery in (STEADY, WHOLE):
        job = weak.start_long(SpeechRequest("one", seed=1), delivery)
        assert isinstance(job, LongJob)
        job.close()
    unguarded = weak.start_long(SpeechRequest("one", seed=1, guards=False))
    assert type(unguarded) is SpeechJob
    unguarded.close()


def test_guarded_speech_is_the_same_where_all_is_well(server: HiggsAudioServer, monkeypatch):
    plain = server.generate("one two", seed=4)
    monkeypatch.setitem(server.higgs.__dict__, "doubt", "it is weak")
    guarded = server.generate("one two", seed=4)
    (_, together), *_ = server.generate_batch([SpeechRequest("one two", seed=4)])
    for speech in (guarded, together):
        assert speech.stop_reason == "eos"
        assert np.array_equal(speech.codes, plain.codes)
        assert np.allclose(speech.pcm, plain.pcm, atol=1e-5)


def test_the_cap_tightens_and_the_end_is_honest(weak: HiggsAudioServer, endless):
    job = weak.start_long(SpeechRequest(LONG, seed=4))
    speech = job.run()
    assert speech.stop_reason == "length"
    assert speech.num_frames_raw <= 0.1 * frame_cap(LONG + ".") + 1
    assert job.said[0].attempts == RETRIES + 1


def test_a_cap_that_was_asked_for_is_no_failure(weak: HiggsAudioServer):
    job = weak.start_long(SpeechRequest(LONG, seed=4, max_new_frames=20))
    assert job.run().num_frames_raw == 20
    assert job.said[0].attempts == 1


def test_a_batch_is_guarded_too(weak: HiggsAudioServer, endless):
    requests = [SpeechRequest(LONG, seed=i) for i in range(3)]
    found = dict(weak.generate_batch(requests, max_batch=2))
    assert {speech.stop_reason for speech in found.values()} == {"length"}


# -- the command --------------------------------------------------------------------------------


def test_generate_warns_tries_and_ends_with_3(tmp_path: Path, monkeypatch, capsys, endless):
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "m", measured=BAD | RUNS)
    options = ["--model", "m", "--text", LONG, "--seed", "1", "--json"]
    assert generate(options) == 3
    out, err = capsys.readouterr()
    assert "warning: measured on 2026-11-22 against its original: 3.2 % of 200 runs" in err
    assert "warning: the speech was cut at its longest in all 3 attempts" in err
    assert "The speech may be wrong. The sound is there" in err
    report = json.loads(out)
    assert report["stop_reason"] == report["pieces"][0]["stop_reason"] == "length"
    assert report["pieces"][0]["attempts"] == 3
    assert Path("speech.wav").is_file()
    assert generate([*options, "--retries", "0", "--force"]) == 0
    assert "stopped by length" in capsys.readouterr().err


def test_a_stream_says_that_it_was_heard(tmp_path: Path, monkeypatch, capsys, endless):
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "m", measured=BAD | RUNS)
    assert generate(["--model", "m", "--text", LONG, "--seed", "1", "--stream"]) == 3
    err = capsys.readouterr().err
    assert "What was heard cannot be drawn again" in err
    assert "in all" not in err


def test_a_good_one_says_nothing_more(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "m", measured=GOOD | RUNS)
    assert generate(["--model", "m", "--text", "one", "--seed", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "warning" not in err
    assert "pieces" not in json.loads(out)
