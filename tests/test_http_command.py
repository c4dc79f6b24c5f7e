"""``python -m mlx_higgs.server`` as a process: its line, its ways to end, what it refuses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from mlx_higgs.server.__main__ import KEY, build_parser, main, settings_of

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "mlx_higgs.server"]


@contextmanager
def started(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the first line it prints."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_it_says_where_speaks_and_ends(tmp_path):
    with started("--voices", str(tmp_path), **{KEY: "hush"}) as (process, line):
        assert line.startswith("Ready: http://127.0.0.1:")
        url = line.split()[1]
        headers = {"Authorization": "Bearer hush"}
        body = {"input": "one two", "response_format": "wav", "seed": 1}
        answer = httpx.post(f"{url}/v1/audio/speech", json=body, headers=headers, timeout=120)
        assert answer.status_code == 200, answer.text
        assert answer.content[:4] == b"RIFF"
        assert httpx.post(f"{url}/v1/audio/speech", json=body).status_code == 401
        process.send_signal(signal.SIGTERM)
        out, log = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == ""  # the one line, and no more
    assert "POST /v1/audio/speech 200" in log
    assert "one two" not in log
    assert "Traceback" not in log


def test_interrupted_while_it_loads():
    with started("--model", "demo", "--quiet") as (process, _):
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in log


def test_a_model_that_cannot_be_loaded_ends_it(tmp_path):
    with started("--model", str(tmp_path)) as (process, line):
        assert line == ""
        _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert log.startswith("mlx_higgs.server: error: ")
    assert "Traceback" not in log
    assert len(log.splitlines()) == 1


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert main(["--port", "0", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_port_in_use_is_one_sentence(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        line = refused(capsys, "--port", str(taken.getsockname()[1]))
    assert "is in use" in line
    assert "--port" in line


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--host", "no such host"], "cannot be listened on"),
        (["--allowed-origins", "*"], "--api-key"),
        (["--allowed-local-media-path", "no/such/folder"], "does not exist"),
        (["--default-voice", "nobody"], "en_woman"),
        (["--voice-alias", "alloy"], "NAME=VOICE"),
        (["--max-batch", "0"], "max_batch"),
    ],
)
def test_what_cannot_be_met_is_said_at_once(capsys, monkeypatch, arguments, word):
    monkeypatch.delenv(KEY, raising=False)
    if "no such host" in arguments:
        arguments = [*arguments, "--api-key", "hush"]
    assert word in refused(capsys, *arguments)


def test_missing_packages_are_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'mlx_higgs[server]'" in refused(capsys)


def test_the_key_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv(KEY, "from there")
    with pytest.raises(ValueError, match="blanks"):
        settings_of(build_parser().parse_args([]))
    monkeypatch.setenv(KEY, "fromthere")
    assert settings_of(build_parser().parse_args([])).api_key == "fromthere"
    assert settings_of(build_parser().parse_args(["--api-key", "other"])).api_key == "other"
    monkeypatch.setenv(KEY, "")
    assert settings_of(build_parser().parse_args([])).api_key is None
