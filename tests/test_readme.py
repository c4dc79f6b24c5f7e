"""Everything in README and docs that looks like a command or code runs.

A hub name stands for the real weights, which no test has: the bundled demo takes its place, and a
random checkpoint that of v3.
"""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from brief_v3 import write_brief_v3

from mlx_higgs import loading, sources
from mlx_higgs.evaluate.bandwidth import CopyBandwidth
from mlx_higgs.models.v3 import Model
from mlx_higgs.narrate.manuscript import read
from mlx_higgs.pieces import Chunking

ROOT = Path(__file__).parent.parent
SECONDS = 4.0  # of each voice's clip
TOGETHER = {"distributed.md"}  # for several processes: test_distributed_docs.py runs them
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Blocks that .ci/run runs in fresh environments, and lines that need what no test has.
ELSEWHERE = {
    "-m venv": "runs in .ci/run, or needs a GPU (docs/install.md)",
    "pre-commit install": "changes the checkout's git hooks",
    ".ci/run": "is the program that runs the tests",
    "convert/tiny.py": "needs torch: tests/test_convert_reference.py runs it",
    "convert/dump_golden.py": "needs torch: tests/test_convert_reference.py runs it",
    "mx.default_device": "prints the GPU of an NVIDIA machine",
}


def blocks(language: str) -> list:
    found = []
    seen = set()
    for page in PAGES:
        if page.name in TOGETHER:
            continue
        for index, (name, body) in enumerate(FENCE.findall(page.read_text(encoding="utf-8"))):
            if name == language and body not in seen:
                found.append(pytest.param(body, id=f"{page.name}-{index}"))
                seen.add(body)
    return found


def shorten(examples: Path) -> None:
    """The same files with less to say and to hear."""
    (examples / "dialogue.txt").write_text("[Alice] one.\n\n[Bob] [pause:500ms] two.\n")
    (examples / "book.md").write_text("# one\n\n# two\n\nthree.\n")
    for clip in (examples / "voice_prompts").glob("*.wav"):
        wave, rate = soundfile.read(clip)
        words = clip.with_suffix(".txt").read_text(encoding="utf-8").split()
        kept = int(SECONDS * rate)
        soundfile.write(clip, wave[:kept], rate)
        clip.with_suffix(".txt").write_text(" ".join(words[: len(words) * kept // len(wave)]))


def test_the_example_is_a_book():
    manuscript = read(ROOT / "examples" / "book.md", Chunking())
    assert len(manuscript.titles) > 1
    assert len(manuscript.pieces) > len(manuscript.titles)


def lines(block: str) -> list[str]:
    joined = block.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="session")
def tiny_v3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_brief_v3(tmp_path_factory.mktemp("v3") / "v3", seed=1)


@pytest.fixture(autouse=True)
def in_a_copy_of_the_checkout(tmp_path: Path, monkeypatch, tiny_v3: Path):
    """A folder with what the pages refer to; hub names are the demo; the user's voices are none."""
    for home in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(home, str(tmp_path / home.lower()))
    monkeypatch.delenv("MLX_HIGGS_VOICES", raising=False)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shorten(tmp_path / "examples")
    copied = CopyBandwidth(mlx=1.0, numpy=1.0)  # measuring it takes seconds
    monkeypatch.setattr("mlx_higgs.evaluate.speed.copy_bandwidth", lambda _: copied)
    resolve = sources.resolve

    def without_the_hub(source, revision=None):
        if source in Model.ORIGIN.repos:
            return resolve(tiny_v3)
        hub = isinstance(source, str) and source.startswith("bosonai/")
        return resolve("demo" if hub else source, revision)

    for module in (sources, loading):
        monkeypatch.setattr(module, "resolve", without_the_hub)
    monkeypatch.setattr("mlx_higgs.convert.resolve", without_the_hub, raising=False)
    monkeypatch.chdir(tmp_path)


def run(line: str) -> None:
    words = shlex.split(line)
    assert words[:2] == ["python", "-m"], f"no test knows how to run: {line}"
    module = words[2]
    if module == "pytest":
        assert all((ROOT / word).exists() for word in words[3:]), line
        return
    name = module if hasattr(importlib.import_module(module), "main") else f"{module}.__main__"
    paths = [str(ROOT / w) if w.startswith(("tests/", "mlx_higgs/")) else w for w in words[3:]]
    # the demo stands in for a model that knows these words, and may say one of them badly
    badly = 3 if module in ("mlx_higgs.generate", "mlx_higgs.narrate") else 0
    assert importlib.import_module(name).main(paths) in (0, badly), line


@pytest.mark.parametrize("block", blocks("bash"))
def test_commands_run(block: str):
    for line in lines(block):
        if not any(mark in line for mark in ELSEWHERE):
            run(line)


def test_the_commands_of_the_figures_run():
    table = re.findall(r"^\|.*\| `(python -m .*?)` \|$", (ROOT / "README.md").read_text(), re.M)
    assert len(table) >= 5
    for line in table:
        run(line)


@pytest.mark.parametrize("block", blocks("python"))
def test_python_runs(block: str):
    subprocess.run([sys.executable, "-c", block], check=True, capture_output=True)


def test_every_page_link_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_file_tree_names_every_module():
    tree = re.search(r"## Files\n+```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tree is not None
    for path in (ROOT / "mlx_higgs").iterdir():
        public = not path.name.startswith("_") and path.suffix != ".pyc"
        assert not public or path.name in tree[1], f"README's tree lacks {path.name}"
