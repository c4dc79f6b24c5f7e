"""Several processes give what one gives: a talker cut among them, a batch, a book, a training.

They are real processes on this machine, over MLX's ring, as ``mlx.launch`` starts them.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import random_checkpoint
from launched import Ended, ended, kill, launch, started
from tiny_training import setting

from convert.tiny_v3 import write_v3
from mlx_higgs.convert import convert
from mlx_higgs.generate import main as generate
from mlx_higgs.ledger import RESULTS
from mlx_higgs.narrate.__main__ import main as narrate
from mlx_higgs.quantization import Plan, Quantization
from mlx_higgs.sources import DEMO
from mlx_higgs.train.__main__ import main as train

TESTS = Path(__file__).parent
WIDTHS = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
}
CLOSE = 1e-5  # float32 sums in another order: 4e-6 were seen
ONE_SAMPLE_LESS = (
    "from mlx_higgs.train import setup; read = setup.read_samples; "
    "setup.read_samples = lambda path, *a, **k: read(path, *a, **k)[:5]"
)
DIES = (  # in the middle of a speech
    "from mlx_higgs.frames import RowReader; read, left = RowReader.read, iter(range(5)); "
    "RowReader.read = lambda *a: read(*a) if next(left, 9) < 9 else os.kill(os.getpid(), 9)"
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def succeeded(ranks: list[Ended]) -> list[Ended]:
    for number, rank in enumerate(ranks):
        assert rank.code == 0, f"rank {number}: {rank.err}"
        assert number == 0 or not (rank.out or rank.err), "only rank 0 speaks"
    return ranks


def patched(module: str, code: str) -> list[str]:
    """``python`` words of a command in which ``code`` runs first, on rank 1 alone."""
    return [
        "-c",
        f"import os, sys\nfrom {module} import main\n"
        f"if os.environ['MLX_RANK'] == '1':\n    {code}\nsys.exit(main())",
    ]


# -- one talker ----------------------------------------------------------------------------------


def compare(whole: Path, part: Path, size: int, models: int) -> None:
    alone, rank = np.load(whole), np.load(part)
    for number in range(models):
        for name in ("greedy", "drawn", "batch"):
            assert np.array_equal(rank[f"{number}.{name}"], alone[f"{number}.{name}"]), name
        error = np.abs(rank[f"{number}.logits"] - alone[f"{number}.logits"]).max()
        assert error < CLOSE
        for name in ("heads", "bytes"):
            assert rank[f"{number}.{name}"] * size == alone[f"{number}.{name}"]


def test_a_talker_cut_in_two_and_in_four_says_the_same(here: Path, seed: int):
    random_checkpoint(here / "v2", seed, dtype="float32", **WIDTHS)
    write_v3(here / "v3", seed=seed, codes=256, **WIDTHS)
    convert(str(here / "v3"), here / "stored", quantize=Plan.of(Quantization.of(4, 32)), codec=DEMO)
    folders = ["v2", "v3", "v2=8", "stored"]
    for size, frames, chosen in ((2, 12, folders), (4, 3, folders[:2])):
        script = [TESTS / "sharded.py"]
        environ = {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
        alone = [sys.executable, *script, "whole", str(frames), *chosen]
        subprocess.run(alone, check=True, env=environ)
        succeeded(launch(size, *script, f"of{size}", frames, *chosen))
        logits = [np.load(f"of{size}-{rank}.npz") for rank in range(size)]
        for rank in range(size):
            compare(Path("whole-0.npz"), Path(f"of{size}-{rank}.npz"), size, len(chosen))
            for name in logits[0].files:
                assert np.array_equal(logits[rank][name], logits[0][name]), "all ranks agree"


def test_the_command_says_in_two_what_it_says_in_one(here: Path):
    convert("demo", here / "model", dtype="float32")
    words = ["--text", "one two", "--seed", "5", "--model", "model"]
    assert generate([*words, "-o", "one.wav"]) == 0
    for more in ([], ["--stream"]):
        two = ["--shard", "--force", "-o", "two.wav", *more]
        first, _ = succeeded(launch(2, "-m", "mlx_higgs.generate", *words, *two))
        assert first.out.split() == ["two.wav"]
        assert "on each of 2 ranks" in first.err
        assert Path("two.wav").read_bytes() == Path("one.wav").read_bytes()


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--shard"], "pass", "speech.wav exists"),
        (["--shard", "-o", "x.wav", "--model", "none"], "pass", "There is no folder none"),
        (["-o", "x.wav"], "pass", "2 processes were started for one text: add --shard"),
        (["--shard", "-o", "x.wav", "--adapter", "a"], "pass", "An adapter is not sharded"),
        (["--shard", "-o", "x.wav", "--quantize", "4"], "pass", "2 ranks cannot share 6 heads"),
        (["--shard", "-o", "x.wav", "--max-frames", "1"], "pass", "The model made no sound"),
        (["--shard", "-o", "x.wav"], "sys.argv += ['--codec', 'none']", "folder none"),
        (["--shard", "-o", "x.wav"], DIES, "Another rank was lost"),
    ],
)
def test_an_error_on_any_rank_is_said_once_and_ends_all(here: Path, more, code, message):
    Path("speech.wav").touch()
    words = ["--text", "one two three", "--seed", 5, *more]
    ranks = launch(2, *patched("mlx_higgs.generate", code), *words)
    assert all(rank.code for rank in ranks)
    told = [line for rank in ranks for line in rank.err.splitlines() if "error:" in line]
    assert len(told) == 1
    assert re.search(message, told[0])
    assert not Path("x.wav").exists()


# -- a batch -------------------------------------------------------------------------------------

TEXTS = ("one", "two three", "four", "six")
BATCH = ("--batch", "jobs.jsonl", "--max-batch", "2", "--output-dir")


def write_jobs() -> None:
    lines = [{"text": text, "seed": seed} for seed, text in enumerate(TEXTS)]
    lines.append({"text": "one two", "seed": 1, "max_frames": 1})  # makes no sound
    Path("jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def sounds(folder: str) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in Path(folder).iterdir() if path.suffix == ".wav"
    }


def entries(folder: str) -> list[dict]:
    """What is noted, line by line, without how long it took."""
    lines = (Path(folder) / RESULTS).read_text().splitlines()
    noted = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
    return sorted(noted, key=lambda entry: entry["line"])


def wait_for(folder: str, count: int) -> None:
    """Until there are so many sounds."""
    deadline = time.monotonic() + 60
    while len(list(Path(folder).glob("*.wav"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_batch_is_the_same_folder_whoever_makes_it(here: Path):
    write_jobs()
    assert generate([*BATCH, "alone"]) == 1  # one of the lines failed
    first, second = launch(2, "-m", "mlx_higgs.generate", *BATCH, "both")
    assert (first.code, second.code) == (1, 0)
    assert "line 5: The model made no sound" in first.err
    assert len(first.out.split()) == len(TEXTS)
    assert not second.err
    assert sounds("both") == sounds("alone")
    assert entries("both") == entries("alone")
    assert {path.name for path in Path("both").iterdir()} == {*sounds("alone"), RESULTS}
    refused = launch(2, "-m", "mlx_higgs.generate", *BATCH, "both", "--shard")
    assert "--shard is for one text" in refused[0].err


def test_a_batch_that_was_killed_goes_on(here: Path):
    write_jobs()
    assert generate([*BATCH, "alone"]) == 1
    command = ("-m", "mlx_higgs.generate", *BATCH, "both")
    with started(2, *command) as ranks:
        wait_for("both", 1)
        kill(ranks)
    with started(2, *command) as ranks:
        wait_for("both", len(sounds("both")) + 1)
        kill(ranks[1:])
        first = ended(ranks)[0]
    assert first.code == 1
    assert "Another rank was lost" in first.err
    assert generate([*BATCH, "both"]) == 1  # by one process, what is left
    assert sounds("both") == sounds("alone")
    made = [entry for entry in entries("both") if "error" not in entry]
    assert made == [entry for entry in entries("alone") if "error" not in entry]


# -- a book --------------------------------------------------------------------------------------

BOOK = "# One\none two. three.\n\n# Two\nfour. five.\n"
READ = ("book.md", "--seed", "3", "--chunk", "sentence", "--chunk-size", "8", "--subtitles", "srt")


def files(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def kill_on_the_way(words: list[str]) -> None:
    with started(2, "-m", "mlx_higgs.narrate", *words, "both") as ranks:
        deadline = time.monotonic() + 60
        while not list(Path("both").glob(".pieces/*.npz")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        kill(ranks)


@pytest.mark.parametrize("context", ["0", "1"])
def test_a_book_is_the_same_whoever_reads_it(here: Path, context: str):
    Path("book.md").write_text(BOOK)
    words = [*READ, "--context", context, "--output-dir"]
    assert narrate([*words, "alone"]) == 0
    if context == "1":
        kill_on_the_way(words)
    succeeded(launch(2, "-m", "mlx_higgs.narrate", *words, "both"))
    assert files("both") == files("alone")


# -- a training ----------------------------------------------------------------------------------

LEARN = ("--fine-tune-type", "full", "--optimizer", "sgd", "--learning-rate", 0.1)
LEARN = (*LEARN, "--code-noise", 0.2, "--steps-per-report", 2, "--steps-per-eval", 3)


def trained(folder: Path) -> dict[str, np.ndarray]:
    return {k: np.array(v) for k, v in mx.load(str(folder / "adapters.safetensors")).items()}


def losses(folder: Path) -> list[tuple[str, str, float]]:
    with (folder / "log.csv").open(newline="") as file:
        return [(x["split"], x["iteration"], float(x["loss"])) for x in csv.DictReader(file)]


@pytest.mark.parametrize(("size", "batch"), [(2, 4), (4, 3)])  # 3: one rank has nothing to do
def test_ranks_learn_what_one_process_learns(here: Path, seed: int, size: int, batch: int):
    place = setting(here, seed)
    words = (*LEARN, "--iters", 3, "--batch-size", batch, "--test")
    assert train(place.arguments(*words)) == 0
    together = place.arguments(*words, out="together")
    first, *_ = succeeded(launch(size, "-m", "mlx_higgs.train", *together))
    assert first.err.count("test loss") == 1
    alone, shared = trained(place.out), trained(here / "together")
    start = mx.load(str(place.model / "model.safetensors"))
    moved = max(np.abs(alone[name] - np.array(start[name])).max() for name in alone)
    error = max(np.abs(alone[name] - shared[name]).max() for name in alone)
    assert error < 1e-4 * moved  # float32 sums in another order: 5e-6 were seen
    for one, other in zip(losses(place.out), losses(here / "together"), strict=True):
        assert one[:2] == other[:2]
        assert one[2] == pytest.approx(other[2], rel=1e-5)


def test_ranks_go_on_where_they_were_stopped(here: Path, seed: int):
    place = setting(here, seed)
    words = [*LEARN, "--batch-size", 2]
    for more in (["--iters", 2], ["--iters", 4, "--resume"]):
        halves = place.arguments(*words, *more, out="halves")
        succeeded(launch(2, "-m", "mlx_higgs.train", *halves))
    whole = place.arguments(*words, "--iters", 4)
    succeeded(launch(2, "-m", "mlx_higgs.train", *whole))
    expected, found = trained(place.out), trained(here / "halves")
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    other = launch(2, *patched("mlx_higgs.train.__main__", ONE_SAMPLE_LESS), *whole, "--force")
    assert [rank.code for rank in other] == [2, 2]
    assert "Rank 1 has 5 samples" in other[1].err
    assert not other[0].err.count("error")
