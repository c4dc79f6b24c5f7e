"""``evaluate speed``: the arithmetic is right, and everything that takes part does its own work."""

from __future__ import annotations

import gc
import json
import math
import re
import shlex
import threading
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_higgs.codec.config import CodecConfig
from mlx_higgs.evaluate import contenders
from mlx_higgs.evaluate.__main__ import build_parser, main
from mlx_higgs.evaluate.bandwidth import Fit, copy_bandwidth, fit_line
from mlx_higgs.evaluate.codec_speed import measure_codec, peer_codec, random_codec
from mlx_higgs.evaluate.first_audio import measure_first_audio, voice_prompt
from mlx_higgs.evaluate.paced import paced
from mlx_higgs.evaluate.peer import peer_module
from mlx_higgs.evaluate.peer_v2 import TALKER
from mlx_higgs.evaluate.peers import Peer
from mlx_higgs.evaluate.reads import by_part, frame_bytes, frame_readings, watch
from mlx_higgs.evaluate.rounds import Contender, ratio, take_turns
from mlx_higgs.evaluate.shapes import SHAPES, Width, random_talker
from mlx_higgs.loading import load_codec
from mlx_higgs.prefix import positions
from mlx_higgs.sources import DEMO

COMMAND = ["speed", "--shape", "tiny", "--frames", "2", "--rounds", "2", "--prompt", "4"]


def tiny(seed: int, bits: int = 32, shape: str = "tiny"):
    return random_talker(SHAPES[shape], Width.of(bits, "float32"), seed)


# -- bytes --------------------------------------------------------------------------------------


def published(bits: int, shape: str = "v2-3b"):
    return random_talker(SHAPES[shape], Width.of(bits, "bfloat16"), lazy=True)


@pytest.mark.parametrize(("bits", "gigabytes"), [(16, 5.688), (8, 3.046), (6, 2.341), (4, 1.636)])
def test_a_frame_of_the_published_talker(bits: int, gigabytes: float):
    """28 layers: attention 704.6 M, one FFN 2113.9 M; the audio head's 25.2 M stay as they are."""
    read = frame_bytes(published(bits))
    per_weight = 2 if bits == 16 else (bits + 0.5) / 8  # a scale and a bias for 64 weights
    matrices = {name: read.parts[name] for name in ("attention", "ffn", "audio_head")}
    assert matrices == {
        "attention": 704_643_072 * per_weight,
        "ffn": 2_113_929_216 * per_weight,
        "audio_head": 25_214_976 * 2,
    }
    assert read.parts["other"] == (57 + 8) * 3072 * 2  # norms, and a row of each codebook
    assert read.weights / 1e9 == pytest.approx(gigabytes, abs=5e-4)
    assert read.kv_per_position == 28 * 2 * 8 * 128 * 2
    assert read.at(1500) == read.weights + 1500 * 114_688


@pytest.mark.parametrize(("bits", "gigabytes"), [(16, 9.916), (8, 5.292), (6, 4.059), (4, 2.826)])
def test_mlx_audio_reads_both_ffns(bits: int, gigabytes: float):
    pytest.importorskip("mlx_audio")
    model = published(bits)
    theirs = by_part(Peer(model, Width.of(bits, "bfloat16").quantization).readings())
    assert sum(theirs.values()) / 1e9 == pytest.approx(gigabytes, abs=5e-4)
    assert theirs["ffn"] == 2 * frame_bytes(model).parts["ffn"]


@pytest.mark.parametrize(("bits", "gigabytes"), [(16, 7.309), (8, 3.903), (6, 2.994), (4, 2.086)])
def test_a_frame_of_the_published_v3(bits: int, gigabytes: float):
    """36 layers: attention 943.7 M, FFN 2689.6 M; the table of codes is the head, 21.0 M.

    For generation the head is kept in float32: 42 MB more.
    """
    model = published(bits, "v3-4b")
    read = frame_bytes(model)
    per_weight = 2 if bits == 16 else (bits + 0.5) / 8
    matrices = {name: read.parts[name] for name in ("attention", "ffn", "audio_head")}
    assert matrices == {
        "attention": 943_718_400 * per_weight,
        "ffn": 2_689_597_440 * per_weight,
        "audio_head": 21_012_480 * 2,
    }
    assert read.weights / 1e9 == pytest.approx(gigabytes, abs=5e-4)
    assert read.kv_per_position == 36 * 2 * 8 * 128 * 2
    model.fuse()
    joined = frame_bytes(model).parts
    assert joined["audio_head"] == 21_012_480 * 4
    assert [joined[name] for name in ("attention", "ffn")] == [
        read.parts[name] for name in ("attention", "ffn")
    ]


@pytest.mark.parametrize("bits", [16, 4])
def test_mlx_audio_reads_as_much_of_v3_but_for_the_head(bits: int):
    pytest.importorskip("mlx_audio")
    model = published(bits, "v3-4b")
    theirs = by_part(Peer(model, Width.of(bits, "bfloat16").quantization).readings())
    ours = frame_bytes(model).parts
    assert {**theirs, "other": 0} == {**ours, "other": 0}


@pytest.mark.parametrize("bits", [32, 8])
def test_joined_projections_read_the_same_bytes(seed: int, bits: int):
    model = tiny(seed, bits)
    before = frame_bytes(model)
    model.fuse()
    assert frame_bytes(model) == before
    assert {reading.path.split(".")[-1] for reading in frame_readings(model)[0]} >= {
        "qkv_proj",
        "gate_up_proj",
    }


def test_a_table_counts_as_it_is_used():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.unused = nn.Embedding(10, 4), nn.Linear(4, 4)

    model = Tied()
    (looked_up,) = watch(model, lambda: model.table(mx.zeros((1, 3), mx.int32)))
    assert (looked_up.path, looked_up.nbytes, looked_up.multiplies) == ("table", 3 * 16, False)
    (whole,) = watch(model, lambda: model.table.as_linear(mx.zeros((1, 4))))
    assert (whole.nbytes, whole.multiplies) == (10 * 16, True)
    (both,) = watch(model, lambda: model.table.as_linear(model.table(mx.zeros((3,), mx.int32))))
    assert (both.nbytes, both.multiplies) == (10 * 16, True)


def test_a_watched_model_is_left_as_it_was(seed: int):
    model = tiny(seed)
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(ZeroDivisionError):
        watch(model, lambda: 1 // 0)
    frame_bytes(model)
    assert [type(module) for module in model.modules()] == kinds


# -- time ---------------------------------------------------------------------------------------


def fitted(nbytes, ms) -> Fit:
    fit = fit_line(nbytes, ms)
    assert fit is not None
    return fit


def test_the_fit_finds_what_made_the_times(seed: int):
    rng = np.random.default_rng(seed)
    fixed, speed = rng.uniform(0.5, 9), rng.uniform(20, 900)
    nbytes = rng.uniform(1e9, 9e9, 4)
    fit = fitted(nbytes, fixed + nbytes / speed / 1e6)
    assert fit.fixed_ms == pytest.approx(fixed)
    assert fit.gb_per_s == pytest.approx(speed)
    assert fit.residuals_ms == pytest.approx([0] * 4, abs=1e-6)
    assert fit.ms(2e9) == pytest.approx(fixed + 2000 / speed)


def test_the_published_factors_fit_one_line():
    """mlx-audio on an M5 Max, 1 min of context: 24, 14.4, 13.2 and 10.4 ms for what it reads."""
    nbytes = np.array([9.915, 5.291, 4.058, 2.825]) * 1e9 + 750 * 114_688
    fit = fitted(nbytes, [24.0, 14.4, 13.2, 10.4])
    assert fit.fixed_ms == pytest.approx(4.9, abs=0.25)
    assert fit.gb_per_s == pytest.approx(526, abs=5)


def test_a_fit_without_a_slope():
    assert fit_line([1e9], [3.0]) is None
    assert fit_line([1e9, 1e9], [3.0, 4.0]) is None
    upside_down = fitted([1e9, 2e9, 3e9], [5.0, 4.0, 3.0])  # more work for fewer bytes
    assert (upside_down.gb_per_s, upside_down.fixed_ms) == (None, 4.0)
    assert upside_down.residuals_ms == [1.0, 0.0, -1.0]


def test_copying_is_measured():
    found = copy_bandwidth(1 << 16)
    assert found.best == max(found.mlx, found.numpy) > 0


def test_contenders_take_turns_in_alternating_order():
    calls = []
    two = [Contender(name, lambda n, name=name: calls.append((name, n))) for name in "ab"]
    timings = take_turns(two, 3, 4)
    warm, turns = calls[:2], calls[2:]
    assert warm == [("a", 2), ("b", 2)]
    assert [name for name, _ in turns] == list("abbaabba")
    assert {frames for _, frames in turns} == {3}
    assert {len(timing.cpu) for timing in timings.values()} == {4}


def test_a_ratio_is_taken_within_a_round():
    """A machine that is three times as slow for one round changes nothing."""
    assert ratio([2.0, 6.0, 2.0], [1.0, 3.0, 1.0]) == 2.0


# -- who takes part -----------------------------------------------------------------------------


def test_random_weights_come_from_the_seed(seed: int):
    arrays = [dict(tree_flatten(tiny(s).parameters())) for s in (seed, seed, seed + 1)]
    assert all(mx.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])
    assert not mx.array_equal(*(a["embed_tokens.weight"] for a in arrays[1:]))


@pytest.mark.parametrize("shape", ["tiny", "v3-tiny"])
@pytest.mark.parametrize("bits", [32, 8, 4])
def test_random_talkers_say_something_and_never_end(seed: int, bits: int, shape: str):
    model = contenders.endless(tiny(seed, bits, shape))
    rows = mx.zeros((1, 5, 8), mx.int32)
    logits = model.audio_logits(model.hidden(model.embed_rows(rows), None))
    assert 0.3 < mx.std(logits).item() < 3
    work = contenders.talker_work(model, contenders.drawn_prompt(model, 3, seed), seed)
    work(150)  # a random talker without the wrapper says EOS within some 8 rows
    work(2)


class Counting(contenders.Endless):
    """Counts steps, and frames in them."""

    steps = frames = 0

    def hidden(self, x, cache, is_audio=None):
        if is_audio is None:
            self.steps, self.frames = self.steps + 1, self.frames + x.shape[0]
        return self._model.hidden(x, cache, is_audio)


@pytest.mark.parametrize("shape", ["tiny", "v3-tiny"])
@pytest.mark.parametrize("loop", ["auto", "eager", "async"])
def test_a_call_of_our_loop_makes_the_frames_it_says(seed: int, loop: str, shape: str):
    model = Counting(tiny(seed, shape=shape))
    work = contenders.talker_work(model, contenders.drawn_prompt(model, 3, seed), seed, loop)
    work(2)
    before = model.steps
    work(5)
    assert model.steps - before == 5


def test_a_batch_makes_a_frame_of_every_stream(seed: int):
    model = Counting(tiny(seed))
    work = contenders.batch_work(model, contenders.drawn_prompt(model, 3, seed), seed, 3)
    work(2)
    steps, frames = model.steps, model.frames
    work(4)
    assert (model.steps - steps, model.frames - frames) == (4, 12)


@pytest.mark.parametrize("bits", [32, 8])
def test_the_floor_multiplies_with_each_needed_weight_once(seed: int, bits: int, monkeypatch):
    model, used = tiny(seed, bits), []
    multiply = contenders._multiply
    monkeypatch.setattr(
        contenders,
        "_multiply",
        lambda module, x: (used.append((module, x)), multiply(module, x))[1],
    )
    contenders.floor_work(model, streams=3)(2)
    needed = [reading for reading in frame_readings(model)[0] if reading.multiplies]
    assert [id(module) for module, _ in used] == [id(reading.module) for reading in needed] * 2
    read = frame_bytes(model)
    assert sum(r.nbytes for r in needed) == read.weights - read.parts["other"]
    assert {x.shape[0] for _, x in used} == {3}


@pytest.mark.parametrize("bits", [32, 8])
def test_the_peer_is_the_same_talker(seed: int, bits: int):
    """Its logits after one audio step are ours; float32 sums in another order."""
    pytest.importorskip("mlx_audio")
    lookup = peer_module(f"{TALKER}.generation").lookup_audio_embedding
    model = tiny(seed, bits)
    peer = Peer(model, Width.of(bits, "float32").quantization).talker
    row = mx.array(np.random.default_rng(seed).integers(0, 66, (8, 1)))
    x = lookup(peer.audio_codebook_embeddings, row, 66)
    _, theirs = peer(inputs_embeds=x[None], audio_out_mask=mx.ones((1, 1), mx.bool_))
    ours = model.audio_logits(model.hidden(model.embed_rows(row.T[None]), model.make_cache()))
    assert mx.allclose(ours, theirs, atol=1e-4).item()


@pytest.mark.parametrize("bits", [32, 8])
def test_the_v3_peer_is_the_same_talker(seed: int, bits: int):
    """After a prompt and a row, single and in a batch; its loops go on as far as they are told."""
    pytest.importorskip("mlx_audio")
    model = tiny(seed, bits, "v3-tiny")
    peer = Peer(model, Width.of(bits, "float32").quantization)
    heard: list[mx.array] = []
    score = type(peer.talker)._audio_logits
    peer.talker._audio_logits = lambda h: (heard.append(score(peer.talker, h)), heard[-1])[1]
    prompt = contenders.drawn_prompt(model, 3, seed)
    batch = peer.batch_work(prompt, 2)
    batch(2)  # the prompts, then a row
    (theirs,) = heard
    h = model.hidden(model.embed_prompt(prompt)[0], model.make_cache())[:, -1]
    for row in theirs:
        assert mx.allclose(model.audio_logits(h)[0], row, atol=1e-4).item()
    batch(5)
    assert len(heard) == 6
    alone, frames = peer.work(prompt), []
    embed = type(peer.talker)._embed_audio_codes
    try:
        type(peer.talker)._embed_audio_codes = lambda self, codes: (
            frames.append(1),
            embed(self, codes),
        )[1]
        for count, total in [(1, 1), (4, 5), (12, 17)]:  # beyond the ramp-in, where it waits
            alone(count)
            assert len(frames) == total
    finally:
        type(peer.talker)._embed_audio_codes = embed


def test_a_paced_loop_ends_with_its_work():
    before, calls = threading.active_count(), []

    def loop(pause):
        while True:
            pause()
            calls.append(1)

    work = paced(loop)
    for frames, total in [(2, 2), (3, 5)]:
        work(frames)
        assert len(calls) == total
    del work
    gc.collect()
    assert (len(calls), threading.active_count()) == (5, before)
    work = paced(lambda pause: pause())
    with pytest.raises(RuntimeError, match="The loop ended"):
        work(3)


# -- codec --------------------------------------------------------------------------------------

NARROW = CodecConfig(hidden=16, encoder_width=2, decoder_width=32, codebook_size=32, codebook_dim=8)


def test_a_random_codec_decodes_to_something(seed: int):
    codec, source = random_codec(seed, NARROW)
    wave = np.array(codec.decode(np.zeros((3, 8), np.int32)))
    assert wave.shape == (3 * 960,)
    assert np.isfinite(wave).all()
    speed = measure_codec(codec, source, frames=6, rounds=1, seed=seed)
    assert (speed.frames, speed.peer) == (50, None)  # two pieces of a second
    assert min(speed.ms_per_frame, speed.cpu_ms_per_frame, speed.streamed_over_whole) > 0


def test_the_peers_codec_is_the_same_codec(seed: int):
    """mlx-audio only has the published widths. Its waveform is 25 samples late, and wrong near
    both ends: it pads the two odd strides' convolutions on one side less."""
    pytest.importorskip("mlx_audio")
    codec, source = random_codec(seed)
    codes = np.random.default_rng(seed).integers(0, 1024, (3, 8), dtype=np.int32)
    ours, theirs = codec.decode(codes), peer_codec(source).decode(mx.array(codes))
    middle = slice(1300, 1500)
    error = mx.abs(ours[middle] - theirs[25:][middle]).max() / mx.abs(ours).max()
    assert error.item() < 1e-4


@pytest.mark.parametrize("shape", ["tiny", "v3-tiny"])
def test_a_known_voice_skips_all_but_the_text(seed: int, shape: str):
    model = contenders.endless(tiny(seed, shape=shape))
    found = measure_first_audio(model, load_codec(DEMO / "codec"), 0.4, seed, chunk=1)
    prompt = voice_prompt(model, 0.4, seed)
    assert found.prompt == positions(prompt, model.delay)
    assert found.prompt - found.voice == len(prompt[-1].ids)
    for wait in (found.cached, found.uncached):
        assert min(wait.first_row, wait.first_audio, found.row_ratio, found.row_cpu_ratio) > 0


# -- the command --------------------------------------------------------------------------------


@pytest.fixture
def small_buffer(monkeypatch):
    monkeypatch.setattr("mlx_higgs.evaluate.speed.BUFFER", 1 << 20)


def test_json_has_every_figure(capsys, tmp_path: Path, small_buffer):
    plot = tmp_path / "roofline.png"
    words = ["--q-bits", "32", "8", "--batch", "1", "2", "--json", "--plot", str(plot)]
    assert main([*COMMAND, *words]) == 0
    report = json.loads(capsys.readouterr().out)
    first, second = report["widths"]
    for name in ("ms_per_frame", "cpu_ms_per_frame", "frames_per_second", "bytes_per_frame"):
        assert report[name] == first[name] > 0
    assert report["copy_gb_per_s"] == max(
        report["copy_mlx_gb_per_s"], report["copy_numpy_gb_per_s"]
    )
    assert report["fraction_of_bandwidth"] == pytest.approx(
        report["bytes_per_frame"] / 1e6 / report["ms_per_frame"] / report["copy_gb_per_s"]
    )
    assert first["bytes_per_frame"] == (
        sum(first["bytes_by_part"].values()) + first["kv_bytes_per_position"] * first["position"]
    )
    assert [width["width"] for width in report["widths"]] == ["float32", "q8"]
    assert [row["streams"] for row in second["batches"]] == [1, 2]
    assert [row["streams"] for row in second["batch_floors"]] == [1, 2]
    assert len(report["fit"]["residuals_ms"]) == 2
    assert report["rtf"]["codec"] is None
    assert report["rtf"]["talker"] == pytest.approx(first["ms_per_frame"] / 40)
    assert all(math.isfinite(v) for v in report.values() if isinstance(v, float))
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_sweep_tries_everything(capsys, small_buffer):
    assert main([*COMMAND, "--sweep", "--json"]) == 0
    (width,) = json.loads(capsys.readouterr().out)["widths"]
    names = [row["name"] for row in width["loops"]]
    assert names == ["ours", "eager", "async", "compiled", "separate q, k, v"]
    assert [row["streams"] for row in width["batches"]] == [1, 2, 4, 8, 16]


def test_v3_is_measured_alike(capsys, small_buffer):
    pytest.importorskip("mlx_audio")
    words = ["--shape", "v3-tiny", "--batch", "1", "2", "--peer", "mlx-audio", "--json"]
    assert main(["speed", *words, *COMMAND[3:]]) == 0
    (width,) = json.loads(capsys.readouterr().out)["widths"]
    assert width["peer"]["cpu_ratio"] > 0
    assert [row["streams"] for row in width["peer_batches"]] == [1, 2]
    assert width["peer_bytes_per_frame"] > 0


def test_a_person_can_read_it(capsys, small_buffer):
    assert main([*COMMAND, "--model", "demo"]) == 2  # a shape and a model
    assert main(["speed", "--model", "demo", *COMMAND[3:]]) == 0
    shown = capsys.readouterr().out
    for words in ("copy bandwidth", "GB/frame", "needed products alone", "real-time factor"):
        assert words in shown


def test_the_peer_is_named_when_it_is_missing(monkeypatch, capsys):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("mlx_higgs.evaluate.peer.version", missing)
    assert main([*COMMAND, "--peer", "mlx-audio"]) == 2
    assert "pip install mlx-audio" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shape", "huge"], "huge"),
        (["--model", "nowhere"], "nowhere"),
        (["--q-bits", "7"], "7"),
        (["--frames", "0"], "--frames is 0"),
        (["--rounds", "-1"], "--rounds is -1"),
        (["--prompt", "0"], "--prompt is 0"),
        (["--batch", "0"], "--batch is 0"),
        (["--voice-seconds", "nan"], "--voice-seconds is nan"),
        (["--seed", "-1"], "--seed is -1"),
        (["--plot", "nowhere/roof.png"], "nowhere"),
        (["--plot", "roof.txt"], "roof.txt"),
        (["--codec", "nowhere"], "nowhere"),
    ],
)
def test_bad_options_are_refused_in_one_line(words: list[str], said: str, capsys):
    assert main(["speed", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_commands_of_the_page_are_accepted():
    """docs/performance.md; its ``bash`` and ``python`` blocks run in tests/test_readme.py."""
    page = (Path(__file__).parent.parent / "docs" / "performance.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = " ".join(blocks).replace("\\\n", " ").splitlines()
    commands = [line.split("mlx_higgs.evaluate ", 1)[1] for line in lines if "mlx_higgs" in line]
    commands += re.findall(r"`python -m mlx_higgs.evaluate (speed .*?)`", page)
    assert len(commands) >= 4
    for command in commands:  # their output may go to a file
        arguments = build_parser().parse_args(shlex.split(command.split(" > ")[0]))
        assert (arguments.model or arguments.shape) in SHAPES


@pytest.mark.parametrize("words", [["--q-bits", "x"], ["--peer", "torch"], ["--dtype", "int8"]])
def test_words_that_are_no_options_are_refused(words: list[str], capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["speed", *words])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
