"""The openai package as it is installed, pointed at our address: nothing else is changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from http_client import StubWorker, running, tone

from mlx_higgs.server.encoders import samples
from mlx_higgs.voices.library import VoiceLibrary

openai = pytest.importorskip("openai")

MAGIC = {"mp3": b"\xff", "wav": b"RIFF", "flac": b"fLaC", "opus": b"OggS", "pcm": b"\0\0"}
KEY = "a-key"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory):
    library = VoiceLibrary(tmp_path_factory.mktemp("voices"))
    with running(StubWorker(), library, api_key=KEY) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


@pytest.mark.parametrize("kind", MAGIC)
def test_create_in_five_formats(client, kind):
    answer = client.audio.speech.create(
        model="tts-1", voice="alloy", input="Good morning.", response_format=kind
    )
    assert answer.content.startswith(MAGIC[kind])
    assert len(answer.content) > 1000


def test_all_arguments_of_create(client):
    answer = client.audio.speech.create(
        model="gpt-4o-mini-tts",
        voice={"id": "en_woman"},
        input="Good morning.",
        instructions="Cheerfully.",
        response_format="pcm",
        speed=1.0,
        stream_format="audio",
        extra_body={"seed": 4},
    )
    assert answer.content == samples(tone(4))


def test_streaming_to_a_file(client, tmp_path: Path):
    path = tmp_path / "speech.wav"
    with client.audio.speech.with_streaming_response.create(
        model="tts-1",
        voice="nova",
        input="Good morning.",
        response_format="wav",
        extra_body={"stream": True, "seed": 8},
    ) as answer:
        answer.stream_to_file(path)
    assert path.read_bytes()[44:] == samples(tone(8))


def test_errors_are_its_own(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.audio.speech.create(model="tts-1", voice="nobody", input="Good morning.")
    assert refused.value.param == "voice"
    assert refused.value.code == "voice_not_found"
    assert refused.value.type == "invalid_request_error"
    assert "en_woman" in refused.value.message
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("tts-1")


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"
