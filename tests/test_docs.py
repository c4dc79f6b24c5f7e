"""docs/training.md: its commands run one after the other in one folder, its examples are accepted.

The bundled demo takes the place of the full model, and small numbers that of large ones.
"""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_higgs import audio
from mlx_higgs.delay import DelayPattern
from mlx_higgs.train.__main__ import build_parser
from mlx_higgs.train.data.formats import read_lines
from mlx_higgs.train.options import read_options
from mlx_higgs.train.samples import row_labels

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SMALLER = {
    r"bosonai/\S+": "demo",
    r"--limit \d+": "--limit 1",
    r"--resume": "--resume --iters 2",
    r"(?m)^iters: \d+": "iters: 1",
    r"grad_accumulation_steps: \d+": "grad_accumulation_steps: 1",
    r"(?m)^quantize: \d+.*": "",  # slow in 16 bits on a CPU; test_train_loop.py trains with it
}
WORDS = ("one", "four five", "seven", "nine")


def blocks(language: str) -> list[str]:
    found = [body for name, body in BLOCKS if name == language]
    assert found, f"docs/training.md has no {language}"
    return found


def smaller(text: str) -> str:
    for pattern, replacement in SMALLER.items():
        text = re.sub(pattern, replacement, text)
    return text


def write_recordings(folder: Path) -> None:
    """Pieces of the bundled voices; nobody has to understand them."""
    folder.mkdir()
    wave = audio.read_reference(ROOT / "examples" / "voice_prompts" / "en_woman.wav")
    for index in range(10):
        audio.write(folder / f"{index:03}.wav", wave[index * 9_600 :][:9_600], 24_000)
        (folder / f"{index:03}.txt").write_text(WORDS[index % len(WORDS)])


def run(line: str) -> None:
    python, dash_m, module, *words = shlex.split(line)
    assert (python, dash_m) == ("python", "-m"), f"no test knows how to run: {line}"
    name = module if hasattr(importlib.import_module(module), "main") else f"{module}.__main__"
    assert importlib.import_module(name).main(words) == 0, line


def test_the_commands_run_in_their_order(tmp_path: Path, monkeypatch):
    pytest.importorskip("mlx_lm")
    pytest.importorskip("pocketsphinx")
    monkeypatch.chdir(tmp_path)
    write_recordings(Path("recordings"))
    Path("voice.yaml").write_text(smaller(blocks("yaml")[0]))
    Path("sentences.txt").write_text("one two three\n")
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            run(smaller(line))
    assert Path("voice.wav").is_file()
    assert {path.name for path in Path("my_voice").iterdir()} >= {
        *re.findall(r"^\| `([a-z_]+\.\w+)` \|", PAGE, re.MULTILINE),
        "0000001_adapters.safetensors",
        "0000001.wav",
        "log.csv",
        "loss.png",
    }


@pytest.mark.parametrize("block", blocks("yaml"))
def test_the_options_are_accepted(tmp_path: Path, block: str):
    (tmp_path / "options.yaml").write_text(block)
    read_options(build_parser().parse_args(["-c", str(tmp_path / "options.yaml")]))


@pytest.mark.parametrize("block", [*blocks("jsonl"), *blocks("json")])
def test_each_form_of_data_is_read(tmp_path: Path, block: str):
    (tmp_path / "data.jsonl").write_text(block)
    for line, conversation in read_lines(tmp_path / "data.jsonl"):
        assert not line.problems + line.warnings
        (target,) = conversation.targets
        assert [clip.path for clip in target.clips] == [tmp_path / "002.wav"]


def test_the_picture_of_the_labels_is_what_the_code_makes():
    rows = re.findall(r"^codebook \d((?: {1,4}(?:c\d|[BEe]))+)", PAGE, re.MULTILINE)
    shown = np.array([row.split() for row in rows])
    K, T = len(rows), 1 + max(int(cell[1:]) for cell in shown.flat if cell[0] == "c")
    delay = DelayPattern(K, bos_id=10, eos_id=11, edge_frames=1)
    codes = np.tile(np.arange(T)[:, None], (1, K))
    seen, learnt = np.array(delay.apply(mx.array(codes))).T, row_labels(codes, delay).T
    for cell, code, label in zip(shown.flat, seen.flat, learnt.flat, strict=True):
        wanted = {"B": 10, "E": 11, "e": 11}.get(cell)
        assert code == (int(cell[1:]) if wanted is None else wanted)
        assert (label == code) if cell[0] in "cE" else (label < 0)
