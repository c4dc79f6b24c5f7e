"""docs/distributed.md: its commands run on this machine, its arithmetic is that of the formulas."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from launched import LIMIT, ROOT, launch, ports

from mlx_higgs import audio
from mlx_higgs.evaluate.shapes import SHAPES
from mlx_higgs.loading import build_model

PAGE = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
SPEED = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
LAUNCHER = Path(sys.executable).with_name("mlx.launch")
SMALLER = {
    "examples/jobs.jsonl": "jobs.jsonl",
    "examples/book.md": "book.md",
    "--iters 600": "--iters 1 --batch-size 2",
}


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/distributed.md has no {language}"
    return found


def adjacent_ports() -> int:
    """The first of two that are free, as mlx.launch takes them."""
    for _ in range(20):
        (first,) = ports(1)
        with socket.socket() as listener:
            if listener.connect_ex(("127.0.0.1", first + 1)):  # nobody listens
                return first
    pytest.skip("no two ports in a row are free here")


def run(line: str) -> subprocess.CompletedProcess:
    for words, fewer in SMALLER.items():
        line = line.replace(words, fewer)
    line = line.replace("mlx.launch -n 2", f"{LAUNCHER} -n 2 -p {adjacent_ports()}")
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    return subprocess.run(
        line,
        shell=True,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


@pytest.mark.skipif(not LAUNCHER.is_file(), reason="mlx.launch is not installed here")
def test_the_commands_run(tmp_path: Path, monkeypatch):
    pytest.importorskip("mlx_lm")
    monkeypatch.chdir(tmp_path)
    Path("recordings").mkdir()
    wave = audio.read_reference(ROOT / "examples" / "voice_prompts" / "en_woman.wav")
    for index in range(2):
        audio.write(f"recordings/{index}.wav", wave[index * 9_600 :][:9_600], 24_000)
        Path(f"recordings/{index}.txt").write_text("one")
    Path("jobs.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    Path("book.md").write_text("# One\none.\n\n# Two\ntwo.\n")
    (shell,) = blocks("sh")
    made = ("morning.wav", "speech/00002.wav", "book/02-two.wav", "my_voice/adapters.safetensors")
    for line, path in zip(shell.splitlines(), made, strict=True):
        done = run(line)
        assert "exited with code" not in done.stderr, done.stderr
        assert Path(path).is_file(), done.stderr


def test_what_the_page_shows_of_python_runs(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block, shown in zip(blocks("python"), (r"\d\.\d\d s", r"\d+ µs a sum"), strict=True):
        Path("shown.py").write_text(block.replace("1000):", "20):"))
        first, second = launch(2, "shown.py")
        assert (first.code, second.code) == (0, 0), first.err + second.err
        assert re.fullmatch(shown, first.out.strip())
        assert not second.out


def test_the_hostfile_is_one():
    common = pytest.importorskip("mlx._distributed_utils.common")
    (block,) = blocks("json")
    known = common.Hostfile([]).to_json()
    assert json.loads(block).keys() == known.keys()


def cells(page: str, first: str) -> list[str]:
    """The cells of the first row of a table that begins so."""
    found = re.search(rf"^\| {re.escape(first)}[^|]*\|(.*)\|$", page, re.MULTILINE)
    assert found, first
    return [cell.strip() for cell in found[1].split("|")]


def test_the_sums_are_those_of_the_published_shapes():
    talkers = [build_model(SHAPES[name]) for name in ("v2-3b", "v3-4b")]
    args = [talker.args for talker in talkers]
    shown = [f"{a.num_hidden_layers}, {a.hidden_size}" for a in args]
    assert cells(PAGE, "layers, width") == shown
    exchanged = [2 * a.num_hidden_layers * 2 * a.hidden_size + 4 * a.num_codebooks for a in args]
    assert cells(PAGE, "bytes together") == [f"{size:,}" for size in exchanged]
    assert cells(PAGE, "MB a second") == [f"{size * 25 / 1e6:.1f}" for size in exchanged]
    assert cells(PAGE, "sums") == [
        f"2 × {a.num_hidden_layers} + 1 = {2 * a.num_hidden_layers + 1}" for a in args
    ]
    assert f"{750 * 2 * 28 * 2 * 3072 / 1e6:.0f} MB for the 30 s" in PAGE


def test_the_times_of_a_sum_are_those_of_the_speed_page():
    v2, v3 = SPEED.split("Of the published 4B talker", 1)
    limits = []
    for page, ffn, sums in ((v2, "audio FFN", 57), (v3, "FFN", 73)):
        rows = [cells(page, name) for name in ("attention", ffn, "keys and values")]
        columns = [sum(map(float, column)) for column in zip(*rows, strict=True)]
        limits += [columns[place] / 2 / sums for place in (0, 1, 3)]  # bfloat16, q8, q4
    for chip in ("M4 |", "M4 Pro", "M4 Max", "M3 Ultra"):
        bandwidth, *shown = cells(PAGE, chip.rstrip(" |") if chip != "M4 |" else "M4 ")
        assert shown == [f"{limit / float(bandwidth) * 1e6:.0f}" for limit in limits], chip
