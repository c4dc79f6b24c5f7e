"""What a body of ``POST /v1/audio/speech`` may say, and which voice it means."""

from __future__ import annotations

import base64

import httpx
import numpy as np
import pytest
from http_client import RATE, StubWorker, error_of, serving

from mlx_higgs.audio import read_reference
from mlx_higgs.server.http import names
from mlx_higgs.server.http.fields import OTHER_NAMES, speech_schema
from mlx_higgs.server.http.settings import Settings
from mlx_higgs.server.request import references
from mlx_higgs.server.worker import Facts
from mlx_higgs.voices import Reference
from mlx_higgs.voices.folders import BUNDLED
from mlx_higgs.voices.library import VoiceLibrary

SPEECH = "/v1/audio/speech"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> VoiceLibrary:
    return VoiceLibrary(tmp_path_factory.mktemp("voices"), others=[BUNDLED])


@pytest.fixture(scope="module")
def standing(library):
    """One server for all tests that need no other."""
    worker = StubWorker()
    with serving(worker, library) as client:
        yield client, worker


@pytest.fixture
def client(standing, worker):
    return standing[0]


@pytest.fixture
def worker(standing) -> StubWorker:
    worker = standing[1]
    worker.__init__()
    return worker


# -- what a body may say --------------------------------------------------------------------------


def test_all_fields_reach_the_request(client, worker):
    body = {
        "input": "Say this.",
        "model": "tts-1",
        "voice": "en_woman",
        "instructions": "In a cathedral.",
        "response_format": "wav",
        "speed": 1.0,
        "stream_format": "audio",
        "seed": 12,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 30.0,
        "max_new_tokens": 400,
        "language": "en",
        "sample_rate": RATE,
        "initial_codec_chunk_frames": 3,
        "normalization_options": {"normalize": False},
        "word_timestamps": False,
        "return_timing": False,
        "allow_voice_tags": False,
    }
    answer = client.post(SPEECH, json=body)
    assert answer.status_code == 200
    (request,), (options,) = worker.requests, worker.options
    assert request.target_text == "Say this."
    assert request.scene == "In a cathedral."
    assert (request.seed, request.temperature, request.top_p, request.top_k) == (12, 0.5, 0.9, 30)
    assert (request.max_new_frames, request.normalize) == (400, False)
    assert options["delivery"].first == 3
    assert options["long"]
    assert [voice.name for voice in request.voice] == ["en_woman"]
    assert answer.headers["x-voice"] == "en_woman"


def test_null_is_as_good_as_nothing(client, worker):
    fields = dict.fromkeys(speech_schema(Settings())["properties"])
    assert client.post(SPEECH, json={**fields, "input": "Hi."}).status_code == 200
    assert worker.requests[0].temperature is None


@pytest.mark.parametrize(("other", "name"), OTHER_NAMES.items())
def test_other_spellings(client, worker, other, name):
    value = {"max_new_tokens": 40, "voice": "en_man"}.get(name, "en")
    assert client.post(SPEECH, json={"input": "Hi.", other: value}).status_code == 200
    both = {"input": "Hi.", other: value, name: value}
    assert client.post(SPEECH, json=both).status_code == 200
    answer = client.post(SPEECH, json=both | {name: 41 if value == 40 else "another"})
    assert (answer.status_code, error_of(answer)["param"]) == (400, other)


def test_unknown_fields_change_nothing_and_are_named(client):
    body = {"input": "Hi.", "exaggeration": 0.5, "temprature": 1, "language": "en", "a\r\nb": 1}
    answer = client.post(SPEECH, json=body)
    assert answer.status_code == 200
    assert answer.headers["x-ignored-fields"] == "exaggeration, language, temprature"


@pytest.mark.parametrize("model", ["tts-1", "tts-1-hd", "gpt-4o-mini-tts", "some/other"])
def test_every_model_name_is_the_model_that_is_loaded(client, model):
    answer = client.post(SPEECH, json={"input": "Hi.", "model": model})
    assert (answer.status_code, answer.headers["x-model"]) == (200, "tiny")


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("input", "", "at least"),
        ("input", " \n", "nothing"),
        ("input", "a" * 4097, "4096"),
        ("input", 7, "a text"),
        ("input", None, "it must be there"),
        ("input", "a\0b", "NUL"),
        ("response_format", "aac", "mp3"),
        ("response_format", "exe", "one of"),
        ("speed", 1.5, "1.0"),
        ("speed", True, "a number"),
        ("seed", -1, "at least"),
        ("seed", 2**64, "at most"),
        ("seed", 1.5, "a whole number"),
        ("temperature", "hot", "a number"),
        ("temperature", 101, "at most"),
        ("top_p", 0, "above"),
        ("top_k", -1, "at least"),
        ("max_new_tokens", 0, "at least"),
        ("stream", "yes", "true or false"),
        ("stream_format", "json", "one of"),
        ("voice", {"name": "en_man"}, "it must be"),
        ("voice", "nobody", "en_woman"),
        ("voice", {"id": "../../etc/passwd"}, "en_woman"),
        ("voice", "profile: ", "description"),
        ("sample_rate", 8000, "24000"),
        ("word_timestamps", True, "false"),
        ("initial_codec_chunk_frames", 0, "at least"),
        ("normalization_options", {"normalize": "no"}, "true or false"),
        ("voice_aliases", {"a": 1}, "a text"),
        ("ref_text", "no clip", "ref_audio"),
        ("references", [{}], "audio_path"),
    ],
)
def test_refused_with_a_sentence(client, worker, field, value, word):
    answer = client.post(SPEECH, json={"input": "Hi.", field: value})
    error = error_of(answer)
    assert answer.status_code == 400, error
    assert word in error["message"]
    assert error["param"] is None or error["param"].split(".")[0].split("[")[0] == field
    assert not worker.requests


def test_flac_is_not_streamed(client):
    body = {"input": "Hi.", "response_format": "flac", "stream": True}
    assert error_of(client.post(SPEECH, json=body))["param"] == "response_format"


# -- voices ---------------------------------------------------------------------------------------


def voice_of(client: httpx.Client, **body) -> str:
    answer = client.post(SPEECH, json={"input": "Hi.", **body})
    assert answer.status_code == 200, answer.text
    return answer.headers["x-voice"]


def test_openai_names_stand_for_voices(client):
    stands_for = {alias: voice_of(client, voice=alias) for alias in names.OPENAI}
    assert stands_for == names.OPENAI
    assert voice_of(client, voice={"id": "Alloy"}) == names.OPENAI["alloy"]
    assert voice_of(client) == voice_of(client, voice="default") == names.OPENAI[names.FIRST]


def test_names_mean_what_they_did_when_a_voice_is_added(seed):
    rng = np.random.default_rng(seed)
    known = [f"voice{rng.integers(1e9)}" for _ in range(5)]
    before = {alias: names.stand_in(alias, known) for alias in names.OPENAI}
    after = {alias: names.stand_in(alias, [*known, "new"]) for alias in names.OPENAI}
    assert all(after[alias] in (before[alias], "new") for alias in names.OPENAI)
    assert names.stand_in("alloy", []) is None


def test_a_server_and_a_request_may_name_voices_anew(library):
    settings = {"voice_aliases": {"alloy": "en_man_deep"}, "default_voice": "en_man"}
    with serving(StubWorker(), library, **settings) as client:
        assert voice_of(client, voice="alloy") == "en_man_deep"
        assert voice_of(client) == "en_man"
        aliases = {"narrator": "en_woman"}
        assert voice_of(client, voice="narrator", voice_aliases=aliases) == "en_woman"


def test_a_voice_in_words(client, worker):
    assert voice_of(client, voice="profile: Male, calm.") == "profile"
    assert list(worker.requests[0].voice) == ["profile: Male, calm."]


def test_a_model_that_cannot_clone_has_its_own_voice(library):
    worker = StubWorker(defaults=Facts(clones=False))
    with serving(worker, library) as client:
        assert voice_of(client) == "model"
        assert voice_of(client, voice="en_man") == "en_man"
    assert worker.requests[0].voice is None


def test_a_request_keeps_the_voice_as_it_was_when_it_came(library, tmp_path):
    """Replaced and then removed while the request waits for its turn."""
    own, worker = VoiceLibrary(tmp_path, others=[]), StubWorker()
    clips = [library.get(name).clip for name in ("en_man", "en_woman")]
    own.add("me", clips[0], "The first.")
    expected = read_reference(own.get("me").clip)
    with serving(worker, own) as client:
        assert voice_of(client, voice="me") == "me"
    own.add("me", clips[1], "The second.", replace=True)
    own.remove("me")
    (voice,) = references(worker.requests[0])
    assert isinstance(voice, Reference)
    assert voice.transcript == "The first."
    assert voice.wave is not None
    assert np.array_equal(voice.wave, expected)


def test_a_voice_whose_clip_is_broken_is_refused(tmp_path):
    (tmp_path / "me.wav").write_bytes(b"no audio")
    (tmp_path / "me.txt").write_text("Words.")
    with serving(StubWorker(), VoiceLibrary(tmp_path, others=[])) as client:
        answer = client.post(SPEECH, json={"input": "Hi.", "voice": "me"})
    assert answer.status_code == 400
    assert "me.wav" in answer.json()["error"]["message"]
    assert str(tmp_path) not in answer.text


def test_a_clip_comes_before_a_name(client, worker, library):
    data = base64.b64encode(library.get("en_man").clip.read_bytes()).decode()
    voice_of(client, voice="custom", ref_audio=data, ref_text="What it says.")
    (clip,) = worker.requests[0].voice
    assert isinstance(clip, Reference)
    assert clip.transcript == "What it says."
