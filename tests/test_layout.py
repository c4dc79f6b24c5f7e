"""The shape of the repository: who may import whom, and what a command costs before it works.

The rules are read off the source with ``ast``; only the start-up tests run anything.
"""

from __future__ import annotations

import ast
import os
import re
import resource
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mlx_higgs"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# A module, or a folder of them, imports only from levels before its own, or from its own level
# without a cycle. The lazy façade mlx_higgs/__init__.py stands outside: it is above all of them, so
# nothing may import from it but the version.
LEVELS = (
    (
        "__version__",
        "types",
        "weights",
        "delay",
        "sampling",
        "delivery",
        "cli",
        "audio",
        "playback",
        "resample",
        "text",
        "store",
        "disk",
        "memory",
        "pieces",
        "sentences",
        "joints",
        "loudness",
        "vocabulary",
        "mel",
        "ranks",
    ),
    ("codec", "prompts"),
    ("models", "quantization", "lora"),
    (
        "shard",
        "sources",
        "loading",
        "defaults",
        "footprint",
        "step",
        "frames",
        "answer",
        "prefix",
        "batch",
        "code2wave",
        "streaming",
        "takes",
        "longform",
        "voices",
        "hearing",
        "ledger",
        "saving",
        "recipes",
        "doubts",
        "cards",
        "peft",
        "adapters",
    ),
    ("server",),
    ("train", "calibration"),
    (
        "generate",
        "jobs",
        "joblines",
        "progress",
        "streamed",
        "speech_options",
        "narrate",
        "convert",
        "convert_options",
        "calibrated",
        "fuse",
        "evaluate",
    ),
)
VERSION = "mlx_higgs.__version__"
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

ONLY_IN_FUNCTIONS = {
    "huggingface_hub",
    "jiwer",
    "matplotlib",
    "mlx_lm",
    "pocketsphinx",
    "prometheus_client",
    "pywhispercpp",
    "sentencex",
    "sounddevice",
    "soundfile",
    "tensorboardX",
    "tqdm",
    "transformers",
    "yaml",
}
PRODUCT_EXTRAS = ("play", "train", "eval", "whisper", "server")  # the package imports these
IMPORT_NAMES = {"pyyaml": "yaml"}
NEVER = {"convert", "examples", "tests", "torch"}  # the workshop is not in the wheel
HEAVY = {"huggingface_hub", "mlx", "mlx_lm", "numpy", "torch", "transformers"}
START_UP = 0.25  # seconds a --help may take beyond what the interpreter itself needs


# -- reading imports ----------------------------------------------------------------------------


@cache
def modules() -> dict[str, Path]:
    """Every module by its dotted name: ``mlx_higgs.codec`` is ``codec/__init__.py``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(
    node: ast.AST, in_function: bool = False
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Each import that can run, and whether a function must be called for it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, in_function
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for branch in child.orelse:
                yield from statements(branch, in_function)
        else:
            enters = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from statements(child, in_function or enters)


def targets(name: str, statement: ast.Import | ast.ImportFrom) -> list[str]:
    """The modules one statement of the module ``name`` imports, by absolute name."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    base = statement.module or ""
    if statement.level:
        is_package = modules()[name].name == "__init__.py"
        parents = name.split(".")[: None if is_package else -1]
        parents = parents[: len(parents) - (statement.level - 1)]
        base = ".".join([*parents, *([base] if base else [])])
    inner = [f"{base}.{alias.name}" for alias in statement.names]
    return [full if full in modules() or full == VERSION else base for full in inner]


@cache
def imports(name: str) -> list[tuple[str, bool]]:
    """What a module imports: absolute name, and whether only inside a function."""
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    return [
        (target, in_function)
        for statement, in_function in statements(tree)
        for target in targets(name, statement)
    ]


def own(name: str) -> list[str]:
    return [target for target, _ in imports(name) if target.split(".")[0] == "mlx_higgs"]


def foreign(name: str) -> list[tuple[str, bool]]:
    """Third-party imports of a module, by the name of what is installed."""
    tops = [(target.split(".")[0], in_function) for target, in_function in imports(name)]
    known = sys.stdlib_module_names | {"mlx_higgs"}
    return [(top, in_function) for top, in_function in tops if top not in known]


def part(name: str) -> str:
    """``mlx_higgs.codec.dac`` -> ``codec``, what the table of levels names."""
    return name.split(".")[1]


INSIDE = sorted(modules().keys() - {"mlx_higgs"})


# -- the layout ---------------------------------------------------------------------------------


def test_reader_of_imports_sees_every_form():
    source = (
        "import os\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"
        "def f():\n    from ..types import Audio\n    from . import dac, nothing\n"
        "try:\n    from ...mlx_higgs import audio\nexcept ImportError: pass\n"
    )
    seen = [
        (target, in_function)
        for statement, in_function in statements(ast.parse(source))
        for target in targets("mlx_higgs.codec.codec", statement)
    ]
    assert seen == [
        ("os", False),
        ("typing", False),
        ("mlx_higgs.types", True),
        ("mlx_higgs.codec.dac", True),
        ("mlx_higgs.codec", True),
        ("mlx_higgs.audio", False),
    ]


def test_every_module_has_a_level():
    missing = sorted({part(name) for name in INSIDE} - LEVEL.keys())
    assert not missing, f"new in mlx_higgs: {missing}; give them a level in LEVELS in {__file__}"


def test_contributing_shows_these_levels():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| (.*?) \|", text, re.MULTILINE)
    shown = {int(level): set(re.findall(r"`(\w+)`", names)) for level, names in rows}
    assert shown == {level: {*names} - {"__version__"} for level, names in enumerate(LEVELS)}


@pytest.mark.parametrize("name", INSIDE)
def test_imports_only_from_lower_levels(name):
    for target in own(name):
        assert target != "mlx_higgs", f"{name} imports the façade: name the module itself"
        here, there = part(name), part(target)
        assert LEVEL[there] <= LEVEL[here], (
            f"{name} (level {LEVEL[here]}) imports {target} (level {LEVEL[there]}): "
            f"move what they share down, or change LEVELS in {__file__}"
        )


def test_imports_have_no_cycle():
    graph = {name: {target for target in own(name) if target != name} for name in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize("name", sorted(modules()))
def test_slow_and_forbidden_imports(name):
    for top, in_function in foreign(name):
        assert top not in NEVER, f"{name} imports {top}: the package never needs it"
        assert in_function or top not in ONLY_IN_FUNCTIONS, (
            f"{name} imports {top} when it is imported: do it in the function that needs it"
        )


def test_dependencies_are_exactly_the_imports():
    """A dependency nobody imports is a slow install; an import nobody declares is a crash."""
    needed = {top for name in modules() for top, _ in foreign(name)}
    extras = PROJECT["optional-dependencies"]
    optional = set().union(*(distributions(extras[name], IMPORT_NAMES) for name in PRODUCT_EXTRAS))
    assert needed - optional == distributions(PROJECT["dependencies"])
    assert optional <= needed


def distributions(requirements: list[str], import_names: Mapping[str, str] = {}) -> set[str]:
    """``mlx[cpu]>=0.32; marker`` -> ``mlx``: nearly all of ours are imported by their own name."""
    names = {re.split(r"[^A-Za-z0-9_-]", one, maxsplit=1)[0] for one in requirements}
    return {import_names.get(name, name).replace("-", "_") for name in names}


# -- the commands -------------------------------------------------------------------------------

SCRIPTS = PROJECT["scripts"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def entry(script: str) -> tuple[str, str]:
    """``("mlx_higgs.evaluate", "main")``: what ``python -m`` names, and the function."""
    module, function = SCRIPTS[script].split(":")
    return module.removesuffix(".__main__"), function


def imported(importtime: str) -> set[str]:
    """Top-level names in the report of ``-X importtime``."""
    lines = [line for line in importtime.splitlines() if line.startswith("import time:")]
    return {line.split("|")[-1].strip().split(".")[0] for line in lines}


def spent(*arguments: str) -> float:
    """Seconds a process computes: those of the clock would tell of the machine's other work."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = python(*arguments)
    assert result.returncode == 0, result.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_importing_the_package_is_free():
    result = python("-X", "importtime", "-c", "import mlx_higgs")
    assert result.returncode == 0, result.stderr
    assert "mlx_higgs" in imported(result.stderr)
    assert not imported(result.stderr) & HEAVY


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_heavy(script):
    result = python("-X", "importtime", "-m", entry(script)[0], "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: ")
    assert "mlx_higgs" in imported(result.stderr)
    assert not imported(result.stderr) & HEAVY


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_quick(script):
    for _ in range(10):  # the first that nothing disturbed
        seconds = spent("-m", entry(script)[0], "--help") - spent("-c", "pass")
        if seconds < START_UP:
            return
    pytest.fail(f"{script} --help takes {seconds:.2f} s more than python itself")


@pytest.mark.parametrize("script", SCRIPTS)
def test_console_script_and_module_are_one_command(script):
    module, function = entry(script)
    assert module == script
    home = SCRIPTS[script].split(":")[0]
    as_script = f"import sys; from {home} import {function}; sys.exit({function}())"
    by_function, by_module = python("-c", as_script, "--help"), python("-m", module, "--help")
    assert by_function.returncode == by_module.returncode == 0, by_function.stderr
    assert by_function.stdout == by_module.stdout
    wrong = python("-c", as_script, "--nonsense"), python("-m", module, "--nonsense")
    assert [result.returncode for result in wrong] == [2, 2]
    assert wrong[0].stderr == wrong[1].stderr
