"""docs/server.md: its commands run, its tables are whole, what other programs send is served."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from http_client import StubWorker, running

from mlx_higgs.server.__main__ import build_parser
from mlx_higgs.server.http import batch_api
from mlx_higgs.server.http.fields import speech_schema
from mlx_higgs.server.http.settings import Settings
from mlx_higgs.voices.library import VoiceLibrary

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
HERE = "http://127.0.0.1:8000"
SIX = ("alloy", "echo", "fable", "onyx", "nova", "shimmer")  # what many programs offer


@pytest.fixture
def worker() -> StubWorker:
    return StubWorker()


@pytest.fixture
def url(worker, tmp_path: Path):
    with running(worker, VoiceLibrary(tmp_path / "voices"), max_input_chars=20_000) as url:
        yield url


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A checkout's examples, and room for what is written."""
    shutil.copytree(ROOT / "examples", tmp_path / "work" / "examples")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def blocks(language: str, holding: str) -> list[str]:
    found = [body for name, body in BLOCKS if name == language and holding in body]
    assert found, f"docs/server.md has no {language} with {holding}"
    return found


def options(holding: str) -> dict[str, str]:
    """NAME=VALUE lines."""
    (block,) = blocks("ini", holding)
    return dict(line.split("=", 1) for line in block.splitlines())


@pytest.mark.parametrize("snippet", blocks("py", "import OpenAI\n"))
def test_python_runs(snippet: str, url: str, folder: Path):
    assert HERE in snippet
    subprocess.run([sys.executable, "-c", snippet.replace(HERE, url)], check=True)
    (written,) = [path for path in folder.iterdir() if path.is_file()]
    assert written.stat().st_size > 1000


def test_the_example_runs(url: str, folder: Path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setattr(sys, "argv", ["openai_client.py", "one", "two"])
    runpy.run_path(str(folder / "examples" / "openai_client.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "voice: en_man\n" in said
    assert "refused: There is no voice 'nobody'." in said
    assert (folder / "speech.wav").read_bytes()[:4] == b"RIFF"


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_curl_runs(url: str, folder: Path):
    (block,) = blocks("sh", "curl")
    for line in block.splitlines():
        assert line.startswith("curl "), line
        assert HERE in line
        told = line.replace("curl ", "curl -sS --fail-with-body ", 1).replace(HERE, url)
        subprocess.run(told, shell=True, check=True)
    for name in ("speech.mp3", "speech.pcm", "batch.json"):
        assert (folder / name).stat().st_size > 1000


def test_the_start_is_a_command_that_is_understood():
    (block,) = blocks("sh", "-m mlx_higgs.server")
    line = next(line for line in block.splitlines() if "-m mlx_higgs.server" in line)
    build_parser().parse_args(line.split()[3:])


def test_every_option_is_named():
    known = {name for action in build_parser()._actions for name in action.option_strings}
    known -= {"-h", "--help"}
    section = PAGE.split("## Options")[1]
    assert set(re.findall(r"`(--[\w-]+)`", section)) == {n for n in known if n.startswith("--")}


def test_the_defaults_are_the_parsers_and_the_server_s():
    rows = re.findall(r"^\| (`--[^|]*) \| ([^|]*) \|", PAGE, re.MULTILINE)
    chosen = build_parser().parse_args([])
    for names, values in rows:
        options = re.findall(r"`--([\w-]+)`", names)
        shown = [value.strip(" `") for value in values.split(",")]
        for option, value in zip(options, shown, strict=len(shown) > 1):
            default = getattr(chosen, option.replace("-", "_"))
            if default or value[:1].isdigit():
                assert str(default) == value, option


def test_every_route_is_in_the_table(url: str):
    table = set(re.findall(r"`(GET|POST|DELETE) (/[^`]+)`", PAGE))
    document = httpx.get(f"{url}/openapi.json").json()
    verbs = {"get", "post", "delete"}
    real = {
        (method.upper(), path)
        for path, item in document["paths"].items()
        for method in item.keys() & verbs
    }
    assert table == real
    assert f"up to {batch_api.MAX_ITEMS} texts" in PAGE


def test_every_field_is_in_the_table():
    section = PAGE.split("Of a speech request")[1].split("## Safety")[0]
    firsts = " ".join(re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", firsts)) == set(speech_schema(Settings())["properties"])


# -- what other programs send ---------------------------------------------------------------------


def test_open_webui(url: str, worker):
    """No response_format; any Bearer; what comes must be MP3, by its name too."""
    told = options("AUDIO_TTS_ENGINE")
    base = told["AUDIO_TTS_OPENAI_API_BASE_URL"].replace(HERE, url)
    voices = httpx.get(f"{base}/audio/voices").json()["voices"]
    assert all({"id", "name"} <= voice.keys() for voice in voices)
    assert voices
    models = httpx.get(f"{base}/audio/models").json()["models"]
    assert httpx.get(f"{base}/models").json()["data"][0]["id"] == models[0]["id"]
    for voice in (told["AUDIO_TTS_VOICE"], voices[0]["id"]):
        body = {"input": "Hello there.", "model": told["AUDIO_TTS_MODEL"], "voice": voice}
        key = {"Authorization": f"Bearer {told['AUDIO_TTS_OPENAI_API_KEY']}"}
        answer = httpx.post(f"{base}/audio/speech", json=body, headers=key)
        assert answer.headers["content-type"] == "audio/mpeg"
        assert answer.content[:2] in (b"ID", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")


def test_open_webui_reads_the_lists_of_a_server_with_a_key(worker, tmp_path: Path):
    """Without the key; --open-listings lets it."""
    library = VoiceLibrary(tmp_path / "voices")
    for is_open, status in ((False, 401), (True, 200)):
        with running(worker, library, api_key="secret", open_listings=is_open) as url:
            for path in ("audio/voices", "audio/models", "models"):
                assert httpx.get(f"{url}/v1/{path}").status_code == status
            assert httpx.post(f"{url}/v1/audio/speech", json={"input": "x"}).status_code == 401


def test_sillytavern(url: str):
    told = options("Provider Endpoint")
    endpoint, model, voices = told.values()
    assert tuple(voices.split(",")) == SIX
    for voice in SIX:
        body = {"model": model, "input": "Hello there.", "voice": voice}
        body |= {"response_format": "mp3", "speed": 1}
        answer = httpx.post(endpoint.replace(HERE, url), json=body)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/mpeg")


def test_pipecat(url: str):
    """Bare samples at 24 kHz, read as they come."""
    (snippet,) = blocks("py", "pipecat")
    compile(snippet, "docs/server.md", "exec")
    from openai import OpenAI

    base = re.findall(r'base_url="([^"]+)"', snippet)[0].replace(HERE, url)
    voice = re.findall(r'voice="([^"]+)"', snippet)[0]
    assert voice in SIX
    speech = OpenAI(base_url=base, api_key="none").audio.speech.with_streaming_response
    with speech.create(
        model="tts-1", voice=voice, input="Hello there.", response_format="pcm"
    ) as stream:
        assert stream.headers["x-sample-rate"] == "24000"
        samples = sum(len(chunk) for chunk in stream.iter_bytes(1024))
    assert samples == 2 * 36_000


def test_home_assistant(url: str, worker):
    """wyoming-openai sends a text in pieces and reads WAV as it comes, or the whole of it."""
    (command,) = blocks("sh", "wyoming_openai")
    base = re.findall(r"--tts-openai-url (\S+)", command)[0].replace(HERE, url)
    voices = re.findall(r"--tts-voices (.*)", command)[0].split()
    assert voices
    assert set(voices) <= set(SIX)
    from openai import OpenAI

    speech = OpenAI(base_url=base, api_key="none").audio.speech.with_streaming_response
    for voice in voices:
        with speech.create(
            model="tts-1", voice=voice, input="Hello the", response_format="wav", speed=1.0
        ) as stream:
            data = stream.read()
        assert (data[:4], data[8:12]) == (b"RIFF", b"WAVE")
        assert int.from_bytes(data[24:28], "little") == 24_000
