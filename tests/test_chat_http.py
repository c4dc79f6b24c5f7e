"""``/v1/chat/completions`` as openai's client and others meet it."""

from __future__ import annotations

import base64
import io
import json
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from chatty import FIRST, write_chatty
from http_client import RATE, StubWorker, error_of, running, tone, wait_until

from mlx_higgs import HiggsAudioServer
from mlx_higgs.server.encoders import samples
from mlx_higgs.server.http import answers, chat_fields
from mlx_higgs.server.http.errors import ApiError
from mlx_higgs.server.http.schema import check
from mlx_higgs.server.http.settings import Settings
from mlx_higgs.server.messages import Message
from mlx_higgs.server.ticket import Busy
from mlx_higgs.server.worker import Facts, Worker
from mlx_higgs.types import GenerationError
from mlx_higgs.voices.folders import BUNDLED
from mlx_higgs.voices.library import VoiceLibrary

openai = pytest.importorskip("openai")

CHAT = "/v1/chat/completions"
ASK = [{"role": "user", "content": "Good morning."}]
BOTH = {"model": "tiny", "modalities": ["text", "audio"]}
ALLOY = {"voice": "alloy", "format": "pcm16"}


@pytest.fixture
def worker() -> StubWorker:
    return StubWorker()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> VoiceLibrary:
    return VoiceLibrary(tmp_path_factory.mktemp("voices"), others=[BUNDLED])


@pytest.fixture
def url(worker, library):
    with running(worker, library, max_input_chars=500) as url:
        yield url


@pytest.fixture
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def post(url: str, **body) -> httpx.Response:
    return httpx.post(url + CHAT, json={"messages": ASK, **body}, timeout=30)


def clip_of(wave: np.ndarray, rate: int, name: str | None = "wav") -> list[dict]:
    """A conversation of a WAV file that is said to be another."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format="WAV", subtype="PCM_16")
    data = base64.b64encode(buffer.getvalue()).decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": name}}
    return [{"role": "user", "content": [part]}]


# -- whole ----------------------------------------------------------------------------------------


def test_words_and_speech(client, worker):
    answer = client.chat.completions.create(messages=ASK, audio=ALLOY, seed=4, **BOTH)
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    message = choice.message
    assert (message.role, message.content) == ("assistant", None)
    assert message.audio.transcript == "Good day."
    assert base64.b64decode(message.audio.data) == samples(tone(4))
    assert message.audio.expires_at > answer.created
    assert answer.usage.prompt_tokens == 11
    assert answer.usage.completion_tokens_details.audio_tokens == 39
    assert answer.usage.total_tokens == 11 + 4 + 39
    assert worker.requests[0].seed == 4
    assert [voice.name for voice in worker.requests[0].voice] == ["en_woman"]


@pytest.mark.parametrize(("kind", "magic"), [("wav", b"RIFF"), ("flac", b"fLaC"), ("mp3", b"\xff")])
def test_formats(client, kind, magic):
    answer = client.chat.completions.create(
        messages=ASK, audio={"voice": "nova", "format": kind}, **BOTH
    )
    assert base64.b64decode(answer.choices[0].message.audio.data).startswith(magic)


def test_words_alone(client, worker):
    """What OpenAI's API gives where no modalities are named."""
    message = client.chat.completions.create(model="tiny", messages=ASK).choices[0].message
    assert (message.content, message.audio) == ("Good day.", None)
    assert worker.requests[0].speech is False
    assert worker.requests[0].voice is None


def test_an_answer_without_sound_is_content(client, worker):
    worker.chunks = 0
    message = client.chat.completions.create(messages=ASK, audio=ALLOY, **BOTH).choices[0].message
    assert (message.content, message.audio) == ("Good day.", None)


def test_a_clip_is_heard(client, worker):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(1), RATE, format="WAV", subtype="PCM_16")
    data = base64.b64encode(buffer.getvalue()).decode()
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
    ]
    told = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    client.chat.completions.create(model="tiny", messages=told)
    system, user = worker.requests[0].messages
    assert (system.role, system.parts) == ("system", ("Be brief.",))
    assert user.parts[0] == "What is this?"
    clip, rate = user.parts[1]
    assert rate == RATE
    assert np.allclose(clip, tone(1), atol=1e-3)


def test_a_clip_s_bytes_decide_whatever_it_is_called(url, worker):
    for name in (None, *chat_fields.HEARD):
        assert post(url, messages=clip_of(tone(1), RATE, name)).status_code == 200
    assert all(request.messages[0].parts[0][1] == RATE for request in worker.requests)
    answer = post(url, messages=clip_of(tone(1), RATE, "aac"))
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["param"] == "messages[0].content"
    assert all(name in error["message"] for name in chat_fields.HEARD)


def test_clips_wait_at_no_more_than_the_codec_s_rate(url, worker):
    for rate in (2 * RATE, RATE // 3):
        assert post(url, messages=clip_of(tone(1), rate)).status_code == 200
    (more, less) = (request.messages[0].parts[0] for request in worker.requests)
    assert (more[1], less[1]) == (RATE, RATE // 3)
    assert len(more[0]) == len(tone(1)) // 2
    answer = post(url, messages=clip_of(np.tile(tone(1), 31), RATE))
    assert answer.status_code == 400
    assert "30 s" in error_of(answer)["message"]


def test_a_conversation_goes_on_by_the_id_of_its_audio(client, worker):
    first = client.chat.completions.create(messages=ASK, audio=ALLOY, **BOTH)
    kept = {"role": "assistant", "audio": {"id": first.choices[0].message.audio.id}}
    client.chat.completions.create(messages=[*ASK, kept, *ASK], audio=ALLOY, **BOTH)
    _, said, _ = worker.requests[1].messages
    before, codes, after = said.parts
    assert (before, after) == ("Good ", "day.")
    assert codes.shape == (5, 8)
    unknown = {"role": "assistant", "audio": {"id": "audio_0"}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=[*ASK, unknown])
    assert refused.value.code == "audio_not_found"


def test_answers_are_forgotten(monkeypatch):
    kept = answers.Answers(most=2, seconds=60)
    said = Message("assistant", ("a",))
    for name in "abc":
        kept.keep(name, said)
    assert [kept.find(name) for name in "abcd"] == [None, said, said, None]
    over = answers.Answers(seconds=0)
    over.keep("a", said)
    assert over.find("a") is None


def test_fields_reach_the_model(url, worker):
    body = {"temperature": 0.2, "top_p": 0.5, "top_k": 3, "max_completion_tokens": 7}
    answer = post(url, **body, seed=9, modalities=["audio"], preset="reference", user="me")
    assert answer.headers["x-seed"] == "9"
    assert answer.headers["x-finish-reason"] == "eos"
    assert answer.headers["x-ignored-fields"] == "user"
    request = worker.requests[0]
    assert (request.temperature, request.top_p, request.top_k) == (0.2, 0.5, 3)
    assert (request.max_new_tokens, request.speech, request.preset) == (7, True, "reference")


# -- while it is made -----------------------------------------------------------------------------


def test_a_stream(client, worker):
    chunks = list(
        client.chat.completions.create(
            messages=ASK,
            audio=ALLOY,
            seed=4,
            stream=True,
            stream_options={"include_usage": True},
            **BOTH,
        )
    )
    audio = [c.choices[0].delta.audio for c in chunks if c.choices and c.choices[0].delta.audio]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(part.transcript or "" for part in audio) == "Good day."
    data = b"".join(base64.b64decode(part.data or "") for part in audio)
    assert data == samples(tone(4))
    assert len({part.id for part in audio if part.id}) == 1
    assert audio[-1].expires_at
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.prompt_tokens == 11
    assert len({chunk.id for chunk in chunks}) == 1
    kept = {"role": "assistant", "audio": {"id": audio[0].id}}
    client.chat.completions.create(model="tiny", messages=[kept, *ASK])


def test_a_stream_of_words(client):
    stream = client.chat.completions.create(model="tiny", messages=ASK, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Good day."


def test_a_stream_without_sound_ends_with_its_words(client, worker):
    worker.chunks = 0
    stream = client.chat.completions.create(messages=ASK, audio=ALLOY, stream=True, **BOTH)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Good day."


def test_chunks_come_while_it_is_made(url, worker):
    worker.held = threading.Semaphore(1)
    body = {"messages": ASK, "stream": True}
    with httpx.stream("POST", url + CHAT, json=body) as answer:
        lines = answer.iter_lines()
        assert '"role": "assistant"' in next(lines)
        assert worker.tickets[0].outcome is None
        worker.held.release(9)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"


def test_a_failure_in_its_middle_is_told(client, worker):
    worker.fails_after = 1
    worker.failure = GenerationError("The decoded waveform is not a number.")
    with pytest.raises(openai.APIError, match="not a number"):
        list(client.chat.completions.create(model="tiny", messages=ASK, stream=True))


def test_who_leaves_stops_the_work(url, worker):
    worker.held = threading.Semaphore(1)
    with httpx.stream("POST", url + CHAT, json={"messages": ASK, "stream": True}) as answer:
        next(answer.iter_lines())
    wait_until(lambda: worker.tickets[0].outcome == "cancelled")


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x\0y"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 501}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x" * 500}] * 5}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages"),
        ({"messages": [{"role": "user", "audio": {"id": "a"}}]}, "messages"),
        ({"modalities": ["video"]}, "modalities[0]"),
        ({"modalities": []}, "modalities"),
        ({"audio": {"voice": "nobody"}, "modalities": ["audio"]}, "voice"),
        ({"audio": {"format": "aac"}}, "audio.format"),
        ({"audio": {"format": "flac"}, "stream": True}, "audio.format"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stop": ["x"]}, "stop"),
        ({"force_audio_gen": True}, None),
    ],
)
def test_what_cannot_be_met_is_400(url, worker, body, param):
    answer = post(url, **body)
    assert answer.status_code == 400
    error = error_of(answer)
    assert param is None or error["param"] == param, error
    assert not worker.requests


def test_a_clip_that_is_none_is_400(url):
    for data in ("*", base64.b64encode(b"x" * 400).decode()):
        part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        answer = post(url, messages=[{"role": "user", "content": [part]}])
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "messages"


def test_a_model_without_a_text_head_says_so(url, worker, client):
    worker.defaults = Facts(no_chat="This checkpoint has no text head: load another.")
    with pytest.raises(openai.BadRequestError, match="no text head") as refused:
        client.chat.completions.create(messages=ASK, audio=ALLOY, **BOTH)
    assert refused.value.code == "chat_not_available"
    assert not worker.requests


def test_the_other_refusals(url, worker, library):
    worker.refusal = Busy("All places are taken.", 3)
    assert post(url).status_code == 429
    assert post(url).headers["retry-after"] == "3"
    answer = httpx.post(url + CHAT, content=b"x", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    with running(StubWorker(ready=False), library) as loading:
        assert post(loading).status_code == 503
    with running(StubWorker(), library, api_key="secret") as guarded:
        assert post(guarded).status_code == 401


def test_the_schema_is_checked_as_json_schema_says(seed):
    jsonschema_rs = pytest.importorskip("jsonschema_rs")
    rng = np.random.default_rng(seed)
    schema = chat_fields.chat_schema(Settings(max_input_chars=20))
    oracle = jsonschema_rs.Draft202012Validator(schema)
    contents = ["x", "x" * 21, None, 5, [], [{"type": "text", "text": "x"}], [{"type": "a"}], [{}]]
    contents += [[{"type": "input_audio", "input_audio": {}}], {"a": 1}]
    values = [None, True, 0, 1, -1, 2**31, 0.5, "", "a", [], ["text"], ["a"], {}, {"voice": "a"}]
    values += [{"format": "wav"}, {"format": "x"}, {"voice": {"id": "a"}}, {"include_usage": 1}]
    verdicts = []
    for _ in range(400):
        role = rng.choice(["user", "system", "assistant", "tool"])
        message = {"role": str(role), "content": contents[rng.integers(len(contents))]}
        name = list(schema["properties"])[rng.integers(len(schema["properties"]))]
        body = {"messages": [message], name: values[rng.integers(len(values))]}
        try:
            check(body, schema)
            ours = True
        except ApiError:
            ours = False
        assert ours == oracle.is_valid(body), json.dumps(body)
        verdicts.append(ours)
    assert len(set(verdicts)) == 2


# -- the whole of it ------------------------------------------------------------------------------


def test_a_real_conversation_and_the_demo(tmp_path: Path, library):
    """A worker of its own, with a head that writes; the demo beside it refuses."""
    folder = write_chatty(tmp_path / "chatty")
    worker = Worker(lambda: HiggsAudioServer.from_pretrained(folder, text_head=True))
    with running(worker, library) as url:
        assert worker.wait(60)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        asked = {"messages": ASK, "audio": {"voice": "alloy", "format": "wav"}, "seed": 1}
        options = {"max_completion_tokens": 60, "temperature": 0.3}
        answer = client.chat.completions.create(**asked, **options, **BOTH)
        message = answer.choices[0].message
        said = message.audio.transcript if message.audio else message.content
        assert said.split()[0] in (*FIRST.split(), "good")
        assert 0 < answer.usage.completion_tokens <= 64
    demo = Worker(HiggsAudioServer.from_pretrained)
    with running(demo, library) as url:
        assert demo.wait(60)
        answer = post(url)
        assert answer.status_code == 400
        assert "no text head" in error_of(answer)["message"]
