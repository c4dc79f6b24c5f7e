"""Memory: what is expected before a load is what the load takes, and what need not stay goes."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile
import tiny_adapter
from checkpoints import all_logits, nbytes, random_checkpoint, tensors

from mlx_higgs import footprint as footprints
from mlx_higgs import generate, memory
from mlx_higgs.adapters import apply_adapter, save_adapter
from mlx_higgs.batch import Batch
from mlx_higgs.codec import HiggsCodec
from mlx_higgs.codec.config import CodecConfig
from mlx_higgs.convert import convert
from mlx_higgs.evaluate.shapes import SHAPES
from mlx_higgs.footprint import choose, footprint
from mlx_higgs.frames import prefill
from mlx_higgs.generate import main
from mlx_higgs.loading import build_model, load, load_model, open_model
from mlx_higgs.memory import bounded, gigabytes, parse_size
from mlx_higgs.quantization import PLANS, Plan, Quantization
from mlx_higgs.sampling import SamplingParams
from mlx_higgs.server import HiggsAudioServer
from mlx_higgs.server.warm import compile_kernels
from mlx_higgs.sources import DEMO
from mlx_higgs.types import Audio, InputError, Text

DEEP: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 16,
    "vocab_size": 12000,  # a text head of a fifth of all the rest
}
MIXED = Plan(Quantization.of(mode="mxfp8"), None)


def used() -> int:
    gc.collect()
    return mx.get_active_memory()


# -- what is expected ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "weights", "peak"),  # GB
    [
        ("none", 10.75, 11.39),
        ("8", 5.76, 6.39),
        ("8/4", 4.51, 5.14),
        ("6/4", 3.80, 4.44),
        ("4", 3.10, 3.74),
    ],
)
def test_the_real_v2_by_arithmetic(name: str, weights: float, peak: float):
    """Its 5.771 billion parameters without the text head, at 8.5, 6.5 and 4.5 bits each."""
    before = used()
    model = build_model(SHAPES["v2-3b"])
    model.set_dtype(mx.bfloat16)
    expected = footprint(model, PLANS[name], CodecConfig())
    assert expected.weights / 1e9 == pytest.approx(weights, abs=0.005)
    assert expected.peak / 1e9 == pytest.approx(peak, abs=0.01)
    assert used() - before < 1e6


@pytest.mark.parametrize("plan", [*PLANS.values(), MIXED], ids=lambda plan: plan.name)
def test_expected_weights_are_those_that_loading_gives(tmp_path: Path, seed: int, plan: Plan):
    source = random_checkpoint(tmp_path / "source", seed)
    expected = footprint(open_model(source), plan)
    assert expected.weights == nbytes(load_model(source, quantize=plan))
    stored = footprint(open_model(convert(str(source), tmp_path / "out", quantize=plan)), Plan())
    assert (stored.audio + stored.kept, stored.text) == (
        expected.audio + expected.kept,
        expected.text,
    )


def test_expected_peak_is_near_the_measured_one(tmp_path: Path, seed: int):
    wide = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2}
    source = random_checkpoint(tmp_path / "source", seed, dtype="float32", **wide)
    expected = footprint(open_model(source), Plan())
    before = used()
    mx.reset_peak_memory()
    model = load(source).model
    rng = np.random.default_rng(seed)
    codes = mx.array(rng.integers(0, 256, (round(footprints.REFERENCE * 25), 8)))
    caches = prefill(model, [Text([1] * 150), Audio(codes)])
    mx.eval([(layer.keys, layer.values) for layer in caches])
    measured = mx.get_peak_memory() - before
    assert 0.5 * expected.speaking < measured <= expected.speaking


def test_expected_peak_of_texts_side_by_side(tmp_path: Path, seed: int, monkeypatch):
    monkeypatch.setattr(footprints, "REFERENCE", 10.0)
    monkeypatch.setattr(footprints, "SPEECH", 10.0)
    wide = {
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 64,
    }
    source = random_checkpoint(tmp_path / "source", seed, dtype="float32", **wide)
    expected = footprint(open_model(source), Plan(), streams=4)
    before = used()
    mx.reset_peak_memory()
    model = load(source).model
    batch, rng = Batch(model, 4), np.random.default_rng(seed)
    prompt = [Text([1] * 50), Audio(mx.array(rng.integers(0, 256, (250, 8)))), Text([2] * 260)]
    rows = [batch.join(prompt, SamplingParams(seed=i, max_frames=12 + 4 * i)) for i in range(5)]
    for request in rows:
        for _ in request:
            pass
    measured = mx.get_peak_memory() - before
    assert 0.5 * expected.speaking < measured <= expected.speaking


def test_the_text_side_is_what_no_frame_reads():
    quantised = open_model(DEMO, quantize=Plan(None, Quantization.of(4)))
    for module in quantised.modules():
        if "scales" in module:
            module.scales = mx.full(module.scales.shape, float("nan"))
    row = mx.zeros((1, 1, 8), mx.int32)
    frame = quantised.hidden(quantised.embed_rows(row), quantised.make_cache())
    assert mx.isfinite(quantised.audio_logits(frame)).all()
    x, is_audio = quantised.embed_prompt([Text([1, 2])])
    assert mx.isnan(quantised.hidden(x, quantised.make_cache(), is_audio)).all()


# -- the choice ---------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path, seed: int, monkeypatch) -> Path:
    """A checkpoint whose talker, not whose codec, decides about the peak."""
    monkeypatch.setattr(footprints, "ENCODE_BUFFERS", 0)
    monkeypatch.setattr(footprints, "DECODE_BUFFERS", 0)
    return random_checkpoint(tmp_path / "source", seed, **DEEP)


def peaks(source: Path) -> dict[str, int]:
    codec = footprints.codec_config(DEMO / "codec")
    return {name: footprint(open_model(source), p, codec).peak for name, p in PLANS.items()}


def kilobytes(size: float) -> str:
    return f"{size / 1000:.3f}KB"


@pytest.mark.parametrize("asked", [None, "auto"])
def test_the_best_that_fits_is_chosen_and_said(source: Path, asked: str | None):
    sizes = peaks(source)
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    for name, size in sizes.items():
        choice = choose(source, DEMO / "codec", asked, kilobytes(size))
        assert choice.plan == PLANS[name]
        assert choice.line is not None
        assert f"expected peak {gigabytes(size, up=True)}" in choice.line
        if name != "none":
            assert f"at {name} bits" in choice.line


def test_nothing_is_said_where_nothing_is_chosen(source: Path, monkeypatch):
    monkeypatch.setattr(footprints, "machine_limit", lambda: peaks(source)["none"])
    assert choose(source, DEMO / "codec").line is None
    assert choose(source, DEMO / "codec", "auto").line is not None
    monkeypatch.setattr(footprints, "machine_limit", lambda: peaks(source)["none"] - 1)
    said = choose(source, DEMO / "codec")
    assert (said.plan, said.line is None) == (PLANS["8"], False)
    monkeypatch.setattr(footprints, "machine_limit", lambda: None)  # nothing tells
    assert choose(source, DEMO / "codec").plan == Plan()


@pytest.mark.parametrize(("streams", "late"), [(1, False), (1, True), (4, False), (4, True)])
def test_what_is_chosen_covers_how_it_is_used(source: Path, streams: int, late: bool, monkeypatch):
    monkeypatch.setattr(footprints, "ENCODE_BUFFERS", 1)
    codec = footprints.codec_config(DEMO / "codec")
    one, all_of_them = (
        footprint(open_model(source), Plan(), codec, streams=n) for n in (1, streams)
    )
    assert all_of_them.cache == streams * one.cache
    needed = all_of_them.together if late else all_of_them.peak
    assert needed > one.peak or (streams, late) == (1, False)
    if late:  # the encoder, and whatever else is in memory then
        others = all_of_them.cache if streams > 1 else 0
        assert needed >= one.weights + one.decoder + one.encoding + others
    use = {"streams": streams, "late_clips": late}
    choice = choose(source, DEMO / "codec", None, kilobytes(needed), **use)
    assert choice.plan == Plan()
    assert choice.line is not None
    assert f"expected peak {gigabytes(needed, up=True)}" in choice.line
    assert ("with 4 texts at once" in choice.line) == (streams == 4)
    assert choose(source, DEMO / "codec", None, kilobytes(needed - 1), **use).plan != Plan()
    with pytest.raises(InputError) as refusal:
        choose(source, DEMO / "codec", None, "10KB", **use)
    assert ("--max-batch" in str(refusal.value)) == (streams == 4)


def test_a_batch_and_an_adapter_are_planned_for(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked: list[tuple[int, bool]] = []

    class AskedError(Exception):
        pass

    def record(*_: Any, streams: int, late_clips: bool, text_head: bool, **_others: Any) -> None:
        assert not text_head
        asked.append((streams, late_clips))
        raise AskedError

    monkeypatch.setattr(footprints, "choose", record)
    lines = [{"text": "one"}, {"text": "two"}, {"text": "six", "voice": "en_woman"}]
    Path("jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("plain.jsonl").write_text(json.dumps(lines[0]) + "\n")
    batch = ["--output-dir", "D", "--batch"]
    for options in (
        ["--text", "one"],
        ["--text", "one", "--adapter", "x"],
        [*batch, "jobs.jsonl"],
        [*batch, "jobs.jsonl", "--max-batch", "2"],
        [*batch, "plain.jsonl"],
    ):
        with pytest.raises(AskedError):
            generate.generate(generate.build_parser().parse_args(options))
    assert asked == [(1, False), (1, True), (3, True), (2, True), (1, False)]


@pytest.mark.parametrize(
    ("size", "room", "need"),
    [
        (4_510_000_000, "4.5 GB", "4.6 GB"),
        (8_000_000_000, "8 GB", "8 GB"),
        (1_049_999_999, "1 GB", "1.1 GB"),
        (360_400_000, "360 MB", "361 MB"),
        (1_230_000, "1.2 MB", "1.3 MB"),
        (40_000, "0 MB", "0.1 MB"),
    ],
)
def test_room_is_rounded_down_and_needs_up(size: int, room: str, need: str):
    assert (gigabytes(size), gigabytes(size, up=True)) == (room, need)


def test_a_refusal_says_what_would_fit(source: Path):
    sizes = peaks(source)
    with pytest.raises(InputError, match=rf"at least {gigabytes(sizes['4'], up=True)} at 4 "):
        choose(source, DEMO / "codec", None, kilobytes(sizes["4"] - 1))
    with pytest.raises(InputError, match=r"At 6/4 bits it needs .*--quantize 6/4\."):
        choose(source, DEMO / "codec", "8", kilobytes(sizes["6/4"]))


def test_what_is_quantised_already_fits_or_not(source: Path, tmp_path: Path):
    folder = convert(str(source), tmp_path / "q", quantize=PLANS["8/4"])
    expected = footprint(open_model(folder), Plan(), footprints.codec_config(DEMO / "codec"))
    assert choose(folder, DEMO / "codec", None, kilobytes(expected.peak)).plan == Plan()
    with pytest.raises(InputError, match="as it is stored"):
        choose(folder, DEMO / "codec", None, kilobytes(expected.peak - 1))
    with pytest.raises(InputError, match="quantised already"):
        choose(folder, DEMO / "codec", "4")


@pytest.mark.parametrize(
    ("word", "plan"),
    [
        ("none", Plan()),
        ("8", Plan(Quantization(8), Quantization(8))),
        ("6/4", Plan(Quantization(6), Quantization(4))),
        ("3/2", Plan(Quantization(3), Quantization(2))),
    ],
)
def test_plans_by_name(word: str, plan: Plan):
    assert Plan.parse(word) == plan
    assert plan.name == word


@pytest.mark.parametrize("word", ["7", "8/7", "0", "8/", "/4", "8/4/2", "eight", "-8", "8.0", ""])
def test_words_that_are_no_plan(word: str):
    with pytest.raises(InputError):
        Plan.parse(word)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8_000_000_000),
        ("8 gb", 8_000_000_000),
        ("8GiB", 8 * 1024**3),
        ("7.5GiB", 15 * 1024**3 // 2),
        ("8000MB", 8_000_000_000),
        ("1TB", 1_000_000_000_000),
    ],
)
def test_sizes(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["8", "GB", "-8GB", "0GB", "8GBs", "8,5GB", "nan GB", "1e3GB", ""])
def test_texts_that_are_no_size(text: str):
    with pytest.raises(InputError, match="no amount of memory"):
        parse_size(text)


def test_the_machine_is_the_least_of_what_it_says(tmp_path: Path):
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert memory._available(tmp_path) is None
    write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert memory._available(tmp_path) == 5000 * 1024
    write("sys/fs/cgroup/memory.max", "max\n")
    write("sys/fs/cgroup/memory.current", "1000\n")
    assert memory._available(tmp_path) == 5000 * 1024
    write("sys/fs/cgroup/memory.max", "4001000\n")
    assert memory._available(tmp_path) == 4_000_000
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000000\n")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000\n")
    assert memory._available(tmp_path) == 2_000_000
    write("sys/fs/cgroup/memory/memory.stat", "inactive_file 5\ntotal_inactive_file 900000\n")
    assert memory._available(tmp_path) == 2_900_000
    write("sys/fs/cgroup/memory.current", "3001000\n")
    assert memory._available(tmp_path) == 1_000_000
    write("sys/fs/cgroup/memory.stat", "anon 1000\ninactive_file 500000\nactive_file 7\n")
    assert memory._available(tmp_path) == 1_500_000


# -- loading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANS)
def test_loading_peaks_at_the_result_without_the_text_head(tmp_path: Path, seed: int, name: str):
    source = random_checkpoint(tmp_path / "source", seed, **DEEP)
    before = used()
    mx.reset_peak_memory()
    model = load(source, quantize=PLANS[name]).model
    assert "self_attn.qkv_proj.weight" in " ".join(tensors(model))
    peak = mx.get_peak_memory() - before
    assert peak <= 1.15 * nbytes(model)
    assert used() - before <= 1.01 * nbytes(model)


@pytest.mark.parametrize("name", ["8/4", "none"])
def test_joined_and_split_side_by_side_speak_alike(tmp_path: Path, seed: int, name: str):
    source = random_checkpoint(tmp_path / "source", seed, dtype="float32")
    plain, joined = load_model(source, quantize=PLANS[name]), load(source, quantize=PLANS[name])
    assert np.abs(all_logits(plain) - all_logits(joined.model)).max() < 1e-4


def test_an_adapter_for_joined_matrices_says_how_to_load_it(tmp_path: Path, seed: int):
    settings = tiny_adapter.config("lora", tiny_adapter.KEYS)
    save_adapter(tmp_path, tiny_adapter.adapted(tiny_adapter.base(seed), settings, seed), settings)
    joined = tiny_adapter.base(seed)
    joined.fuse()
    with pytest.raises(InputError, match=r"joined into qkv_proj .* load the model with adapter="):
        apply_adapter(joined, tmp_path)


def test_weights_stay_on_disk_until_they_are_needed(tmp_path: Path, seed: int):
    source = random_checkpoint(tmp_path / "source", seed, **DEEP)
    before = used()
    higgs = load(source, quantize=PLANS["8/4"], read_now=False)
    shapes = {name: array.shape for name, array in tensors(higgs.talker).items()}
    assert used() - before < 1e5
    read, at_once = tensors(higgs.model), tensors(load(source, quantize=PLANS["8/4"]).model)
    assert used() - before >= 2 * nbytes(higgs.model)
    assert shapes == {name: array.shape for name, array in at_once.items()}
    assert all(mx.array_equal(read[name], at_once[name]) for name in at_once)


def test_a_plan_is_saved_and_loaded_again(tmp_path: Path, seed: int):
    source = random_checkpoint(tmp_path / "source", seed)
    folder = convert(str(source), tmp_path / "out", quantize=PLANS["8/4"])
    block = json.loads((folder / "config.json").read_text())["quantization"]
    assert block["bits"] == 8
    assert block["embed_tokens"]["bits"] == block["layers.0.mlp.up_proj"]["bits"] == 4
    saved, fresh = tensors(load_model(folder)), tensors(load_model(source, quantize=PLANS["8/4"]))
    assert saved.keys() == fresh.keys()
    assert all(mx.array_equal(saved[name], fresh[name]) for name in fresh)
    card = (folder / "README.md").read_text()
    assert "--q-bits 8/4" in card
    assert "prompt's text uses: 4 bits" in card


# -- the codec's encoder ------------------------------------------------------------------------


def test_an_encoder_released_leaves_nothing():
    codec = HiggsCodec.from_pretrained(DEMO / "codec")
    wave = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    before = used()
    mx.reset_peak_memory()
    codec._loaded_encoder()
    resident = used() - before
    assert resident > 1e6
    assert mx.get_peak_memory() - before <= 1.15 * resident
    codes = codec.encode(wave)
    codec.release_encoder()
    assert used() - before < 1e4  # the codes
    assert mx.array_equal(codec.encode(wave), codes)


@pytest.mark.parametrize("keep", [False, True])
def test_a_server_releases_it_after_cloning(tmp_path: Path, keep: bool):
    clip = tmp_path / "me.wav"
    soundfile.write(clip, 0.3 * np.sin(np.arange(24_000) / 10), 24_000)
    server = HiggsAudioServer(load("demo"), keep_encoder=keep)
    server.prepare_reference(clip, "one")
    assert (server.higgs.codec._encoder is not None) == keep


# -- the start and the run ----------------------------------------------------------------------


UNNEEDED = ("huggingface_hub", "matplotlib", "mlx_lm", "scipy", "torch", "transformers")


def test_speaking_imports_nothing_it_does_not_need(tmp_path: Path):
    clip = tmp_path / "me.wav"
    soundfile.write(clip, 0.3 * np.sin(np.arange(24_000) / 10), 24_000)
    options = ["--text", "one", "--seed", "1", "--max-frames", "20", "-o", str(tmp_path / "o.wav")]
    options += ["--ref-audio", str(clip), "--ref-text", "one"]
    code = (
        f"import sys; from mlx_higgs.generate import main; assert main({options!r}) == 0; "
        f"print([name for name in {UNNEEDED!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_warming_up_changes_nothing(server: HiggsAudioServer):
    before = server.generate("one two", seed=4, max_new_frames=20)
    server.warm_up()
    compile_kernels(server.higgs)
    after = server.generate("one two", seed=4, max_new_frames=20)
    assert np.array_equal(before.pcm, after.pcm)


def test_limits_come_back_when_the_last_block_ends(monkeypatch):
    limits = {"cache": 7, "wired": 5}

    def setter(name: str):
        def set_limit(size: int) -> int:
            old, limits[name] = limits[name], size
            return old

        return set_limit

    monkeypatch.setattr(mx, "set_cache_limit", setter("cache"))
    monkeypatch.setattr(mx, "set_wired_limit", setter("wired"))
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {memory.METAL_LIMIT: 1000})
    first, second = bounded(), bounded()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert limits == {"cache": memory.BUFFER_CACHE, "wired": 1000}
    with pytest.raises(KeyError), bounded():
        raise KeyError
    assert limits == {"cache": memory.BUFFER_CACHE, "wired": 1000}
    second.__exit__(None, None, None)
    assert limits == {"cache": 7, "wired": 5}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--memory-limit", "lots"], "'lots' is no amount of memory"),
        (["--memory-limit", "1MB"], "needs at least"),
        (["--quantize", "most"], "'most' is no way to quantise"),
        (["--quantize", "8/7"], "bits 7"),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, monkeypatch, capsys, options: list, words: str):
    monkeypatch.chdir(tmp_path)
    assert main(["--text", "one", *options]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_the_plan_is_said_before_the_load(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--text", "one", "--seed", "1", "--max-frames", "20"]
    assert main([*options, "--quantize", "8/4", "--memory-limit", "12GB"]) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("12 GB of memory: loading at 8/4 bits, expected peak ")
    assert main([*options, "--force"]) == 0
    assert "of memory" not in capsys.readouterr().err
