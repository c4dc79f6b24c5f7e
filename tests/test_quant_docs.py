"""docs/quantization.md: its commands run, its tables are what they print."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from mlx_higgs.doubts import LEAST_ENDED, MOST_DRIFT, MOST_KL, MOST_WORDS
from mlx_higgs.evaluate.quant_markdown import MODELS, markdown_sizes
from mlx_higgs.evaluate.quant_sizes import sizes
from mlx_higgs.loading import open_model
from mlx_higgs.quantization import quantizable
from mlx_higgs.recipes import find
from mlx_higgs.sources import DEMO

PAGE = (Path(__file__).parent.parent / "docs" / "quantization.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
SMALLER = {
    r"bosonai/[\w.-]+": "demo",
    r" --limit \d+": "",
    r" --seeds \d+": "",
    r"demo@q8 demo@q6 mixed-4.5 demo@q4": "mixed-4.5",  # each says all texts
    r"--recipe mixed-4.5": "--recipe q4",  # test_recipes.py calibrates
    r"(quant --reference .*)$": r"\1 --limit 1 --seeds 1",
}


def smaller(line: str) -> str:
    for pattern, replacement in SMALLER.items():
        line = re.sub(pattern, replacement, line)
    return line


def test_the_commands_run_in_their_order(tmp_path: Path, monkeypatch, capsys):
    for name in ("pocketsphinx", "jiwer", "matplotlib"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    assert len(LINES) == 8
    for line in LINES:
        python, dash_m, module, *words = shlex.split(smaller(line))
        assert (python, dash_m) == ("python", "-m")
        home = importlib.import_module(module)
        home = home if hasattr(home, "main") else importlib.import_module(f"{module}.__main__")
        assert home.main(words) == 0, line
        assert capsys.readouterr().out or "--recipe" in line
    assert (tmp_path / "choose.png").is_file()
    assert '"measured"' in (tmp_path / "higgs-q6" / "config.json").read_text()


def test_the_recipe_of_one_s_own_is_read(tmp_path: Path):
    (block,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.toml").write_text(block, encoding="utf-8")
    recipe = find(str(tmp_path / "mine.toml"))
    chosen = quantizable(open_model(DEMO), recipe.plan)
    bits = {path: how.bits for path, how in chosen.items()}
    assert bits["layers.1.self_attn.q_proj"] == 6
    assert bits["layers.0.self_attn.q_proj"] == 8
    assert bits["layers.1.audio_mlp.down_proj"] == 5
    assert bits["layers.1.audio_mlp.up_proj"] == 4


def test_the_bytes_are_what_the_command_prints():
    (command,) = (line for line in LINES if "--shape" in line)
    shapes = re.findall(r"v\d-\w+", command)
    assert "\n".join(markdown_sizes(sizes(shapes))) in PAGE


def test_the_measured_table_has_the_columns_of_the_command():
    (command,) = (line for line in LINES if "--candidate demo@" in line)
    _, _, table = PAGE.partition(f"| {' | '.join(MODELS)} |\n")
    names = re.findall(r"^\| (\S+) \|", table.split("\n\n")[0], re.MULTILINE)
    candidates = re.search(r"--candidate (.*?) --", command)
    assert candidates is not None
    assert set(names) - {"---"} == {"demo", *candidates[1].split()}


def test_the_limits_are_those_in_force():
    said = [float(figure) for figure in re.findall(r"^\| [^|]+ \| ([\d.]+)(?: %)? \|$", PAGE, re.M)]
    assert said == [MOST_KL, 100 * LEAST_ENDED, MOST_WORDS, MOST_DRIFT]
