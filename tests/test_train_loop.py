"""Runs from the command line: what they leave, and that stopping anywhere changes nothing."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import tensors
from tiny_training import Setting, setting

from mlx_higgs.loading import load_model
from mlx_higgs.train.__main__ import build_parser, main
from mlx_higgs.train.options import read_options
from mlx_higgs.train.state import STATE

FULL = ("--fine-tune-type", "full", "--batch-size", 2, "--code-noise", 0.2)
FAST = (*FULL, "--steps-per-report", 2, "--steps-per-eval", 4, "--save-every", 3)
TIMES = ("minutes", "positions_per_second", "peak_gb")
ITERS = 9


@pytest.fixture
def place(tmp_path: Path, seed: int) -> Setting:
    return setting(tmp_path, seed)


def run(place: Setting, *more, out: str | None = None) -> int:
    return main(place.arguments(*more, out=out))


def log(folder: Path) -> list[dict[str, str]]:
    """The log's lines without what the clock says."""
    with (folder / "log.csv").open(newline="") as file:
        return [{k: v for k, v in line.items() if k not in TIMES} for line in csv.DictReader(file)]


def weights(folder: Path) -> dict[str, bytes]:
    arrays = mx.load(str(folder / "adapters.safetensors"))
    return {name: bytes(memoryview(array)) for name, array in arrays.items()}


def assert_same_run(found: Path, expected: Path) -> None:
    """Every loss and every weight, to the last bit."""
    assert log(found) == log(expected)
    assert weights(found) == weights(expected)


def killed(place: Setting, code: str, *more, out: str) -> subprocess.CompletedProcess:
    """The same command in a process of its own, in which ``code`` runs first."""
    program = f"import sys\nfrom mlx_higgs.train.__main__ import main\n{code}\nsys.exit(main())"
    words = place.arguments(*more, out=out)
    return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)


def at(iteration: int, action: str) -> str:
    """Do ``action`` after an update, before anything is saved of it."""
    return (
        "import os, signal\nfrom mlx_higgs.train import run\nadvance = run.Run._advance\n"
        "def stopping(self, score):\n    advance(self, score)\n"
        f"    if self.trainer.iteration == {iteration}: {action}\n"
        "run.Run._advance = stopping"
    )


# -- what a run leaves -------------------------------------------------------------------------


def test_a_run_leaves_an_adapter_a_log_and_a_plot(place, capsys):
    more = (*FAST, "--iters", ITERS, "--test", "--audio-loss", "sum", "--text-loss-weight", 0.5)
    assert run(place, *more) == 0
    names = {path.name for path in place.out.iterdir()} - {"loss.png"}
    steps = {f"{step:07}_adapters.safetensors" for step in (3, 6, 9)}
    assert names == {"adapters.safetensors", "adapter_config.json", "log.csv", STATE, *steps}
    config = json.loads((place.out / "adapter_config.json").read_text())
    assert (config["fine_tune_type"], config["num_layers"]) == ("full", -1)
    lines = [(line["split"], line["iteration"]) for line in log(place.out)]
    trains = [("train", str(n)) for n in (2, 4, 6, 8, 9)]
    assert sorted(lines) == sorted([*trains, ("valid", "4"), ("valid", "8"), ("valid", "9")])
    for line in log(place.out):
        books = [float(line[f"audio_{k}"]) for k in range(8)]
        expected = sum(books) + 0.5 * float(line["text"])
        assert float(line["loss"]) == pytest.approx(expected, rel=1e-4)
    assert "test loss" in capsys.readouterr().err


def test_the_trained_weights_are_those_in_the_files(place):
    assert run(place, *FAST, "--iters", 2) == 0
    base = tensors(load_model(place.model, text_head=True))
    trained = mx.load(str(place.out / "adapters.safetensors"))
    assert trained.keys() == base.keys()
    assert all(not np.array_equal(np.array(trained[name]), np.array(base[name])) for name in base)


def test_an_adapter_of_a_run_is_mlx_lms(place):
    tuner = pytest.importorskip("mlx_lm.tuner.utils")
    parameters = "lora_parameters: {rank: 3, scale: 4.0, keys: [self_attn.q_proj]}\n"
    (place.data / "c.yaml").write_text(parameters + "learning_rate: 1e-2\nbatch-size: 2\n")
    assert run(place, "-c", place.data / "c.yaml", "--iters", 3) == 0
    model = tuner.load_adapters(load_model(place.model, text_head=True), str(place.out))
    loaded, saved = tensors(model), mx.load(str(place.out / "adapters.safetensors"))
    assert {name.rpartition(".")[2] for name in saved} == {"lora_a", "lora_b"}
    assert all(mx.array_equal(loaded[name], array) for name, array in saved.items())
    assert model.layers[0].self_attn.q_proj.scale == 4.0


def test_the_base_may_be_quantised(tmp_path, seed):
    """Only the adapter learns; 8 bits round the loss, and little."""
    place = setting(tmp_path, seed, hidden_size=64, intermediate_size=64, head_dim=32)
    parameters = "lora_parameters: {rank: 3, scale: 4.0, keys: [self_attn.q_proj]}\n"
    losses = []
    for name, base in (("plain", ""), ("quantised", "quantize: 8\ngrad_checkpoint: true\n")):
        (place.data / "c.yaml").write_text(parameters + base)
        more = ("--iters", 2, "--steps-per-report", 1, "--seed", 0)
        assert run(place, "-c", place.data / "c.yaml", *more, out=name) == 0
        out = place.out.with_name(name)
        saved = mx.load(str(out / "adapters.safetensors"))
        assert {key.rpartition(".")[2] for key in saved} == {"lora_a", "lora_b"}
        assert all(mx.any(array).item() for key, array in saved.items() if "lora_b" in key)
        losses.append([float(line["loss"]) for line in log(out) if line["split"] == "train"])
    plain, quantised = losses
    assert quantised != plain
    assert quantised == pytest.approx(plain, rel=0.05)  # measured


def test_a_checkpoint_without_text_head_trains_on_speech_alone(place, capsys):
    path = place.model / "model.safetensors"
    kept = {k: v for k, v in mx.load(str(path)).items() if "text_lm_head" not in k}
    mx.eval(kept)
    mx.save_safetensors(str(path), kept)
    assert run(place, *FAST, "--iters", 2) == 0
    assert "no text head: the text's loss is left out" in capsys.readouterr().err
    assert log(place.out)[0]["text"] == ""


def test_training_learns_what_it_is_shown(place):
    assert run(place, *FAST, "--iters", 40, "--learning-rate", 0.01, "--code-noise", 0) == 0
    losses = [float(line["loss"]) for line in log(place.out) if line["split"] == "train"]
    assert losses[-1] < 0.7 * losses[0]


def test_the_fixed_prompt_is_heard_or_said_to_be_silent(place, capsys):
    voice = ("--eval-prompt", "one", "--eval-voice", place.data / "train0.wav")
    (place.data / "train0.txt").write_text("one two three")
    assert run(place, *FULL, *voice, "--iters", 1, "--grad-checkpoint") == 0
    heard = (place.out / "0000001.wav").is_file()
    assert heard != ("no speech yet" in capsys.readouterr().err)


def test_tensorboard_gets_every_line(place):
    pytest.importorskip("tensorboardX")
    assert run(place, *FAST, "--iters", 2, "--tensorboard") == 0
    (events,) = (place.out / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()
    assert b"valid/audio_7" in events.read_bytes()


def test_testing_alone_takes_what_was_trained(place, capsys):
    assert run(place, *FAST, "--iters", 4, "--test") == 0
    trained = [line for line in capsys.readouterr().err.splitlines() if line.startswith("test ")]
    assert run(place, *FAST, "--no-train", "--test") == 0
    assert [capsys.readouterr().err.strip()] == trained


def test_starting_from_an_adapter_goes_on_with_its_weights(place, capsys):
    assert run(place, *FAST, "--iters", 4, "--test") == 0
    trained = capsys.readouterr().err.splitlines()[-1]
    start = ("--resume-adapter-file", place.out / "adapters.safetensors")
    assert run(place, *FAST, *start, "--no-train", "--test", out="next") == 0
    assert capsys.readouterr().err.splitlines()[-1] == trained


def test_a_base_that_is_scored_alone_is_told(place, capsys):
    assert run(place, *FAST, "--no-train", "--test", out="nothing") == 0
    assert "nothing holds no adapter: the base itself is scored" in capsys.readouterr().err
    assert not place.out.with_name("nothing").exists()


def test_another_strength_or_base_is_refused(place, tmp_path, capsys):
    pytest.importorskip("mlx_lm")
    yaml = place.data / "c.yaml"
    yaml.write_text("lora_parameters: {rank: 2, scale: 2.0}\nbatch_size: 2\n")
    assert run(place, "-c", yaml, "--iters", 2) == 0
    other = Path(shutil.copytree(place.model, tmp_path / "other"))
    arrays = mx.load(str(other / "model.safetensors"))
    changed = {k: 2 * v if k.endswith("norm.weight") else v for k, v in arrays.items()}
    mx.save_safetensors(str(other / "model.safetensors"), changed)
    for more in (("--no-train", "--test"), ("--iters", 3, "--resume")):
        said = error(place, capsys, "-c", yaml, *more, "--model", other)
        assert "was trained on another base" in said
    yaml.write_text("lora_parameters: {rank: 2}\nbatch_size: 2\n")
    said = error(place, capsys, "-c", yaml, "--no-train", "--test")
    assert "has scale 2, this run 20: set it in lora_parameters" in said


def test_an_adapter_without_the_text_head_starts_one_with_it(place):
    assert run(place, *FAST, "--iters", 2, "--text-loss-weight", 0) == 0
    start = ("--resume-adapter-file", place.out / "adapters.safetensors")
    assert run(place, *FAST, *start, "--iters", 2, out="next") == 0
    head = "audio_decoder_proj.text_lm_head.weight"
    assert head not in weights(place.out)
    assert head in weights(place.out.with_name("next"))


# -- stopping and going on ---------------------------------------------------------------------


def test_a_killed_run_goes_on_to_the_same_end(place):
    assert run(place, *FAST, "--iters", ITERS) == 0
    kill = at(8, "os.kill(os.getpid(), signal.SIGKILL)")
    result = killed(place, kill, *FAST, "--iters", ITERS, out="killed")
    assert result.returncode == -9, result.stderr
    assert not (place.out.with_name("killed") / "0000009_adapters.safetensors").exists()
    assert run(place, *FAST, "--iters", ITERS, "--resume", out="killed") == 0
    assert_same_run(place.out.with_name("killed"), place.out)


def test_a_kill_within_a_save_loses_nothing(place):
    assert run(place, *FAST, "--iters", 3) == 0
    between = (
        "import os, signal\nfrom mlx_higgs.train import run\n"
        "def last(save):\n"
        "    return lambda *words: (save(*words), os.kill(os.getpid(), signal.SIGKILL))\n"
        "run.save_state, run.save_adapter = last(run.save_state), last(run.save_adapter)"
    )
    result = killed(place, between, *FAST, "--iters", 3, out="killed")
    assert result.returncode == -9, result.stderr
    assert run(place, *FAST, "--iters", 3, "--resume", out="killed") == 0
    assert_same_run(place.out.with_name("killed"), place.out)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_first(place, name):
    assert run(place, *FAST, "--iters", ITERS) == 0
    stop = at(5, f"os.kill(os.getpid(), signal.{name})")
    result = killed(place, stop, *FAST, "--iters", ITERS, out="stopped")
    assert result.returncode == 130
    assert "Interrupted at iteration 5 of 9." in result.stderr
    assert "--resume goes on from there" in result.stderr
    assert run(place, *FAST, "--iters", ITERS, "--resume", out="stopped") == 0
    assert_same_run(place.out.with_name("stopped"), place.out)


def test_a_half_written_state_never_replaces_a_good_one(place):
    assert run(place, *FAST, "--iters", ITERS) == 0
    tear = (
        "import os, signal\nimport mlx.core as mx\nsave = mx.save_safetensors\n"
        "def torn(path, arrays, metadata=None):\n"
        "    save(path, arrays, metadata)\n"
        "    if metadata and '\"iteration\": 6' in metadata.get('facts', ''):\n"
        "        os.truncate(path, os.path.getsize(path) // 2)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "mx.save_safetensors = torn"
    )
    result = killed(place, tear, *FAST, "--iters", ITERS, out="torn")
    assert result.returncode == -9, result.stderr
    assert run(place, *FAST, "--iters", ITERS, "--resume", out="torn") == 0
    assert_same_run(place.out.with_name("torn"), place.out)


def test_adapters_with_dropout_accumulation_and_a_schedule_go_on_too(place):
    pytest.importorskip("mlx_lm", reason="adapters are mlx-lm's")
    config = place.data / "c.yaml"
    config.write_text(
        "lora_parameters: {rank: 4, scale: 2.0, dropout: 0.3}\noptimizer: adamw\n"
        "lr_schedule: {name: cosine_decay, arguments: [1e-2, 9, 1e-4], warmup: 2}\n"
        "batch_size: 2\ngrad_accumulation_steps: 2\nsteps_per_report: 2\nsteps_per_eval: 4\n"
    )
    assert run(place, "-c", config, "--iters", ITERS) == 0
    assert run(place, "-c", config, "--iters", 3, out="parts") == 0
    assert run(place, "-c", config, "--iters", ITERS, "--resume", out="parts") == 0
    parts = place.out.with_name("parts")
    assert weights(parts) == weights(place.out)
    later = [line for line in log(place.out) if int(line["iteration"]) > 4]
    assert [line for line in log(parts) if int(line["iteration"]) > 4] == later
    assert len({line["learning_rate"] for line in later if line["split"] == "train"}) > 1


def test_time_that_is_up_stops_in_order(place, capsys):
    assert run(place, *FAST, "--iters", ITERS) == 0
    capsys.readouterr()
    assert run(place, *FAST, "--iters", ITERS, "--max-minutes", 1e-6, out="late") == 0
    said = capsys.readouterr().err
    assert "Stopped after 1e-06 minutes at iteration 1 of 9." in said
    assert "the same command with --resume goes on" in said
    assert run(place, *FAST, "--iters", ITERS, "--resume", out="late") == 0
    assert_same_run(place.out.with_name("late"), place.out)


def test_a_finished_run_says_so(place, capsys):
    assert run(place, *FAST, "--iters", 2) == 0
    assert run(place, *FAST, "--iters", 2, "--resume") == 0
    assert "All 2 iterations are done" in capsys.readouterr().err


def test_a_loss_that_is_no_number_keeps_the_last_save(place, capsys):
    assert run(place, *FAST, "--iters", 3) == 0
    burst = (*FULL, "--learning-rate", 1e30, "--grad-clip", 0, "--save-every", 1)
    assert run(place, *burst, "--iters", ITERS, "--resume") == 1
    assert "is not finite at iteration" in capsys.readouterr().err
    assert all(np.isfinite(np.frombuffer(v, np.float32)).all() for v in weights(place.out).values())


def test_weights_that_are_no_numbers_are_not_saved(place, capsys):
    assert run(place, *FAST, "--iters", 3) == 0
    burst = ("--learning-rate", 1e39, "--grad-clip", 0, "--save-every", 1, "--iters", 4)
    assert run(place, *FULL, *burst, "--resume") == 1
    assert "The weights are not finite after iteration 4" in capsys.readouterr().err
    assert all(np.isfinite(np.frombuffer(v, np.float32)).all() for v in weights(place.out).values())
    assert not (place.out / f"{4:07}_adapters.safetensors").exists()


def test_a_float16_checkpoint_is_trained_in_full_as_float32(tmp_path, seed, capsys):
    place = setting(tmp_path, seed, dtype="float16")
    assert run(place, *FAST, "--iters", 3) == 0
    assert "float32 is trained" in capsys.readouterr().err
    trained = mx.load(str(place.out / "adapters.safetensors"))
    assert {array.dtype for array in trained.values()} == {mx.float32}
    said = error(place, capsys, *FAST, "--force", "--dtype", "float16")
    assert "dtype float16 is too narrow" in said


# -- errors ------------------------------------------------------------------------------------


def error(place: Setting, capsys, *more) -> str:
    assert run(place, *more) == 2
    said = capsys.readouterr().err.strip()
    assert said.splitlines()[-1].startswith("mlx_higgs.train: error: ")
    return said.splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--data", "nowhere"), "There is no training data at nowhere"),
        (("--data", ""), "name its folder with --data"),
        (("--model", "nowhere"), "no folder nowhere"),
        (("--max-seq-length", 8), "max_seq_length is 8"),
        (("--code-noise", 1), "code_noise is 1.0"),
        (("--iters", 0), "iters is 0"),
        (("--seed", -1), "seed is -1"),
        (("--codebook-weights", 1, 2), "codebook_weights are 2: the model has 8"),
        (("--no-train",), "--no-train goes with --test"),
        (("--resume-adapter-file", "nowhere"), "no adapter file nowhere"),
        (("--eval-prompt", "..."), "nothing to say"),
        (("--eval-prompt", "one", "--eval-voice", "nobody"), "no voice 'nobody'"),
    ],
)
def test_bad_options_are_one_line(place, capsys, more, words):
    assert words in error(place, capsys, *FAST, *more)
    assert not (place.out / STATE).exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rat: 1\n", "'learning_rat': did you mean learning_rate"),
        ("batch_size: two\n", "batch_size is 'two', not a whole number"),
        ("optimizer: adamm\n", "not one of adam, adamw"),
        ("learning_rate: fast\n", "learning_rate is 'fast'"),
        ("codebook_weights: [1, a]\n", "codebook_weights has 'a', not a number"),
        ("- a\n", "holds no names with values"),
        ("a: [\n", "is not YAML"),
    ],
)
def test_bad_configs_are_one_line(place, capsys, text, words):
    pytest.importorskip("yaml")
    (place.data / "c.yaml").write_text(text)
    assert words in error(place, capsys, "-c", place.data / "c.yaml")


def test_the_command_line_wins_over_the_config(place):
    pytest.importorskip("yaml")
    (place.data / "c.yaml").write_text("iters: 50\nseed: 3\nlearning_rate: 1e-3\n")
    assert run(place, *FAST, "-c", place.data / "c.yaml", "--iters", 2) == 0
    config = json.loads((place.out / "adapter_config.json").read_text())
    assert (config["iters"], config["seed"], config["learning_rate"]) == (2, 3, 1e-3)


def test_yaml_takes_exponents_for_numbers_everywhere(place):
    pytest.importorskip("yaml")
    config = place.data / "c.yaml"
    config.write_text("data: x\noptimizer_config: {adam: {eps: 1e-8, betas: [9e-1, 0.99]}}\n")
    options = read_options(build_parser().parse_args(["-c", str(config)]))
    assert options.optimizer_config == {"adam": {"eps": 1e-8, "betas": [0.9, 0.99]}}


def test_a_precision_may_be_named_in_both_places(place, capsys):
    pytest.importorskip("yaml")
    config = place.data / "c.yaml"
    config.write_text("data: x\ndtype: bfloat16\n")
    given = ["-c", str(config)]
    assert read_options(build_parser().parse_args(given)).dtype == "bfloat16"
    given += ["--dtype", "float32"]
    assert read_options(build_parser().parse_args(given)).dtype == "float32"
    config.write_text("dtype: float8\n")
    assert "not one of float32, float16, bfloat16" in error(place, capsys, "-c", config)


def test_a_missing_clip_is_told_by_its_line(place, capsys):
    (place.data / "train3.wav").unlink()
    said = error(place, capsys, *FAST)
    assert "train.jsonl:4: " in said
    assert "train3.wav does not exist" in said


def test_other_commands_are_found_by_their_name(place, capsys):
    assert main(["data", "check", str(place.data / "train.jsonl"), "--quick"]) == 0
    with pytest.raises(SystemExit) as stopped:
        main(["adapter", "--help"])
    assert stopped.value.code == 0
    assert "import" in capsys.readouterr().out


def test_empty_data_is_one_line(place, capsys):
    (place.data / "train.jsonl").write_text("\n")
    assert "holds no conversation" in error(place, capsys, *FAST)


def test_a_run_is_not_overwritten_or_continued_by_another(place, capsys):
    assert run(place, *FAST, "--iters", 2) == 0
    assert "--resume goes on with it" in error(place, capsys, *FAST)
    assert "has batch_size 2, not 3" in error(place, capsys, "--resume", *FAST, "--batch-size", 3)
    assert run(place, *FAST, "--iters", 3, "--force") == 0
    assert log(place.out)[-1]["iteration"] == "3"


def test_a_torn_state_is_one_line(place, capsys):
    assert run(place, *FAST, "--iters", 2) == 0
    (place.out / STATE).write_bytes((place.out / STATE).read_bytes()[:1000])
    assert "is no state of a run" in error(place, capsys, "--resume", *FAST)
