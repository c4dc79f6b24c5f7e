"""docs/chat.md: its Python runs, its command is understood, its tables are whole."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from chatty import write_chatty
from http_client import StubWorker, running

from mlx_higgs.server import ChatRequest
from mlx_higgs.server.__main__ import build_parser
from mlx_higgs.server.http import answers, chat_fields
from mlx_higgs.server.http.settings import Settings
from mlx_higgs.voices.library import VoiceLibrary

PAGE = (Path(__file__).parent.parent / "docs" / "chat.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
MODEL = "bosonai/higgs-tts-2-3b-base"
HERE = "http://127.0.0.1:8000"


def blocks(language: str, holding: str = "") -> list[str]:
    found = [body for name, body in BLOCKS if name == language and holding in body]
    assert found, f"docs/chat.md has no {language} with {holding}"
    return found


def ran(snippet: str, folder: Path) -> str:
    """What a snippet prints; it runs in a folder of its own."""
    work = folder / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=work, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("snippet", blocks("py", MODEL))
def test_python_runs(snippet: str, tmp_path: Path):
    """With the demo's speech and a head that writes by heart in the place of the full model."""
    model = write_chatty(tmp_path / "model")
    short = "temperature=0.3, max_new_tokens=80, seed="
    snippet = snippet.replace(MODEL, str(model)).replace("seed=", short)
    snippet = snippet.replace(", max_new_tokens=500", "")
    assert "all right" in ran(snippet, tmp_path).replace(" 0\n", "")
    if "answer.wav" in snippet:
        assert (tmp_path / "work" / "answer.wav").stat().st_size > 1000


def test_the_client_s_python_runs(tmp_path: Path):
    pytest.importorskip("openai")
    (snippet,) = blocks("py", "OpenAI")
    with running(StubWorker(), VoiceLibrary(tmp_path / "voices")) as url:
        assert ran(snippet.replace(HERE, url), tmp_path) == "Good day.\n"
    assert (tmp_path / "work" / "answer.wav").read_bytes()[:4] == b"RIFF"


def test_the_start_is_a_command_that_is_understood():
    (line,) = blocks("sh")
    assert build_parser().parse_args(line.split()[3:]).chat


def test_every_option_is_in_the_table():
    table = PAGE.split("| option |")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| ([^|]+) \|", table, re.M))))
    assert named == {field.name for field in fields(ChatRequest)} - {"messages"}


def test_fields_and_numbers_are_those_of_the_server():
    section = PAGE.split("## From a server")[1]
    schema = chat_fields.chat_schema(Settings())["properties"]
    for name in ("modalities", "audio", "stream", "stream_options", "preset", "top_k"):
        assert name in schema
        assert f"`{name}" in section or f"{name}=" in section
    for name in ("tools", "stop", "n", "logprobs", "response_format"):
        assert name in chat_fields.NOT_HERE
    assert f"for an hour; {answers.MOST} are kept" in section
    assert answers.SECONDS == 3600
