"""``POST /v1/audio/speech`` and its neighbours, as clients meet them."""

from __future__ import annotations

import base64
import io
import json
import threading

import httpx
import pytest
from http_client import RATE, StubWorker, error_of, running, serving, tone, wait_until

from mlx_higgs.server.encoders import samples
from mlx_higgs.server.ticket import Busy, Unavailable
from mlx_higgs.types import GenerationError, InputError
from mlx_higgs.voices.folders import BUNDLED
from mlx_higgs.voices.library import VoiceLibrary

SPEECH = "/v1/audio/speech"
MAGIC = {"wav": b"RIFF", "flac": b"fLaC", "opus": b"OggS", "mp3": b"\xff"}
TYPES = {"mp3": "audio/mpeg", "wav": "audio/wav", "flac": "audio/flac", "opus": "audio/ogg"}


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


def expected(seed: int, chunks: int = 3) -> bytes:
    return samples(tone(seed, chunks))


# -- the forms of an answer -----------------------------------------------------------------------


def test_mp3_is_what_comes_unasked(client):
    answer = client.post(SPEECH, json={"input": "Good morning."})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/mpeg"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["x-finish-reason"] == "stop"


@pytest.mark.parametrize("kind", MAGIC)
def test_a_whole_file_holds_all_samples(client, kind):
    import soundfile

    answer = client.post(SPEECH, json={"input": "Hi.", "response_format": kind, "seed": 9})
    assert answer.headers["content-type"] == TYPES[kind]
    assert answer.content.startswith(MAGIC[kind])
    wave, rate = soundfile.read(io.BytesIO(answer.content))
    assert rate == RATE
    assert abs(len(wave) - len(tone(9))) <= (0 if kind != "mp3" else 2400)
    assert float(answer.headers["x-audio-seconds"]) == len(tone(9)) / RATE


def test_one_seed_one_audio(client):
    body = {"input": "Hi.", "response_format": "pcm", "seed": 5}
    first, again = (client.post(SPEECH, json=body).content for _ in range(2))
    other = client.post(SPEECH, json={**body, "seed": 6}).content
    assert first == again != other
    assert first == expected(5)


def test_the_seed_that_was_drawn_is_told(client):
    body = {"input": "Hi.", "response_format": "pcm"}
    drawn = client.post(SPEECH, json=body)
    seed = int(drawn.headers["x-seed"])
    again = client.post(SPEECH, json={**body, "seed": seed})
    assert again.content == drawn.content
    assert again.headers["x-seed"] == str(seed)


@pytest.mark.parametrize(
    ("body", "streamed"),
    [
        ({}, False),
        ({"stream": False}, False),
        ({"stream": True}, True),
        ({"stream_format": "audio"}, True),
        ({"response_format": "pcm"}, True),  # no header whose sizes could be wrong
        ({"response_format": "pcm", "stream": False}, False),
        ({"response_format": "flac"}, False),
    ],
)
def test_what_streams(client, body, streamed):
    answer = client.post(SPEECH, json={"input": "Hi.", "response_format": "wav", **body})
    assert answer.status_code == 200
    assert ("content-length" not in answer.headers) == streamed
    assert ("x-audio-seconds" not in answer.headers) == streamed


@pytest.mark.parametrize("kind", ["wav", "pcm", "mp3", "opus"])
def test_a_stream_is_one_file(client, worker, kind):
    import soundfile

    worker.chunks = 60
    body = {"input": "Hi.", "response_format": kind, "stream": True, "seed": 0}
    answer = client.post(SPEECH, json=body)
    data = answer.content
    assert answer.headers["transfer-encoding"] == "chunked"
    if kind == "pcm":
        assert data == expected(0, 60)
    elif kind == "wav":
        assert data[4:8] == b"\xff" * 4  # a size that nobody knows yet
        assert data[44:] == expected(0, 60)
    else:
        assert abs(len(soundfile.read(io.BytesIO(data))[0]) - len(tone(0, 60))) < RATE


def test_chunks_are_sent_as_they_are_made(library):
    gate = threading.Semaphore(0)
    worker = StubWorker(chunks=2, held=gate)
    body = {"input": "Hi.", "response_format": "pcm", "seed": 3}
    with serving(worker, library) as client:
        threading.Timer(0.05, gate.release).start()
        with client.stream("POST", SPEECH, json=body) as answer:
            parts = answer.iter_raw()
            got = b""
            while len(got) < len(expected(3, 2)) // 2:  # and the rest is not even begun
                got += next(parts)
            gate.release()
            assert got + b"".join(parts) == expected(3, 2)


def test_events_carry_the_same_audio(client):
    body = {"input": "Good day.", "stream_format": "sse", "response_format": "pcm", "seed": 2}
    answer = client.post(SPEECH, json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = list(sse(answer.text))
    audio = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert audio == expected(2)
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"}
    assert events[-1]["type"] == "speech.audio.done"
    assert events[-1]["usage"] == {"input_tokens": 9, "output_tokens": 39, "total_tokens": 48}


def sse(text: str):
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        yield event


# -- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_before_the_first_sample_has_a_status(library, stream):
    worker = StubWorker(fails_after=0, failure=InputError("The text cannot fit."))
    with serving(worker, library) as client:
        answer = client.post(SPEECH, json={"input": "Hi.", "stream": stream})
        assert (answer.status_code, error_of(answer)["message"]) == (400, "The text cannot fit.")
        worker.failure = GenerationError("The model made no sound.")
        answer = client.post(SPEECH, json={"input": "Hi.", "stream": stream})
        assert (answer.status_code, error_of(answer)["code"]) == (503, "generation_failed")


def test_a_failure_after_the_first_sample_cuts_the_stream(library):
    worker = StubWorker(fails_after=2, failure=GenerationError("The waveform is not a number."))
    with (
        serving(worker, library) as client,
        pytest.raises(httpx.RemoteProtocolError, match=r"incomplete|closed"),
    ):
        client.post(SPEECH, json={"input": "Hi.", "response_format": "wav", "stream": True})


def test_a_failure_among_events_is_an_event(library):
    worker = StubWorker(fails_after=2, failure=GenerationError("The waveform is not a number."))
    with serving(worker, library) as client:
        answer = client.post(SPEECH, json={"input": "Hi.", "stream_format": "sse"})
    *_, last = sse(answer.text)
    assert last["type"] == "speech.audio.error"
    assert last["error"]["message"] == "The waveform is not a number."


def test_half_a_speech_is_no_answer(library):
    worker = StubWorker(fails_after=2, failure=GenerationError("The waveform is not a number."))
    with serving(worker, library) as client:
        assert client.post(SPEECH, json={"input": "Hi."}).status_code == 503


def test_paths_of_this_machine_stay_here(library):
    clip = library.get("en_man").clip
    worker = StubWorker(fails_after=0, failure=InputError(f"The reference {clip} is broken."))
    with serving(worker, library) as client:
        answer = client.post(SPEECH, json={"input": "Hi.", "voice": "en_man"})
    assert error_of(answer)["message"] == f"The reference {clip.name} is broken."


def test_a_full_queue_says_when_to_come_again(library):
    worker = StubWorker(refusal=Busy("All places are taken.", 7))
    with serving(worker, library) as client:
        answer = client.post(SPEECH, json={"input": "Hi."})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert error_of(answer)["type"] == "rate_limit_error"


def test_nothing_is_said_before_the_model_is_there(library):
    worker = StubWorker(ready=False)
    with serving(worker, library) as client:
        answer = client.post(SPEECH, json={"input": "Hi."})
        assert (answer.status_code, error_of(answer)["code"]) == (503, "loading")
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 503
        worker.ready = True
        assert client.get("/ready").json()["status"] == "ready"
        worker.refusal = Unavailable("It is being closed.")
        assert client.post(SPEECH, json={"input": "Hi."}).status_code == 503


def test_what_nobody_foresaw_says_nothing_and_logs_no_text(library, caplog):
    worker = StubWorker()
    worker.submit = lambda request, **_: {}[request.target_text]
    with serving(worker, library) as client:
        answer = client.post(SPEECH, json={"input": "a secret"})
    assert (answer.status_code, error_of(answer)["code"]) == (500, "internal")
    assert "KeyError" in caplog.text
    assert "a secret" not in caplog.text + answer.text


def test_it_may_not_take_forever(library):
    worker = StubWorker(held=threading.Event())
    with serving(worker, library, request_timeout=0.05) as client:
        answer = client.post(SPEECH, json={"input": "Hi."})
    assert (answer.status_code, error_of(answer)["code"]) == (503, "timeout")
    assert worker.tickets[0].outcome == "cancelled"


# -- clients that leave ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", [{}, {"stream": True}, {"stream_format": "sse"}])
def test_work_stops_when_the_client_leaves_before_the_first_byte(library, form):
    worker = StubWorker(held=threading.Event())
    with serving(worker, library) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(SPEECH, json={"input": "Hi.", **form}, timeout=0.2)
        wait_until(lambda: worker.tickets[0].outcome)
    assert worker.tickets[0].outcome == "cancelled"


@pytest.mark.parametrize("form", [{"response_format": "opus"}, {"stream_format": "sse"}])
def test_work_stops_when_the_client_leaves_in_between(library, form):
    gate = threading.Semaphore(1)
    worker = StubWorker(chunks=4, held=gate)
    body = {"input": "Hi.", "stream": True, **form}
    with serving(worker, library) as client:
        with client.stream("POST", SPEECH, json=body) as answer:
            assert answer.status_code == 200
        wait_until(lambda: worker.tickets[0].outcome)
    assert worker.tickets[0].outcome == "cancelled"


# -- the other routes -----------------------------------------------------------------------------


def test_models_in_all_shapes(client):
    answer = client.get("/v1/models").json()
    assert answer["data"][0].keys() == {"id", "object", "created", "owned_by"}
    assert client.get("/v1/audio/models").json()["models"][0]["id"] == "tiny"
    assert client.get("/v1/models/tiny").json() == answer["data"][0]
    assert client.get("/v1/models/tts-1").status_code == 404


def test_addresses_without_the_version(client):
    assert client.get("/models").json() == client.get("/v1/models").json()
    assert client.post("/audio/speech", json={"input": "Hi."}).status_code == 200


def test_methods(client):
    assert client.head("/v1/models").content == b""
    assert client.head("/v1/models").status_code == 200
    answer = client.get(SPEECH)
    assert (answer.status_code, answer.headers["allow"]) == (405, "OPTIONS, POST")
    assert error_of(answer)["code"] == "method_not_allowed"
    answer = client.options("/v1/audio/voices")
    assert (answer.status_code, answer.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")
    for path in ("/nowhere", "/v1/audio/speech/", "/v1/%2e%2e/etc/passwd"):
        assert error_of(client.get(path))["code"] == "not_found"


def test_metrics_count_routes_and_no_words(client):
    client.post(SPEECH, json={"input": "Unspeakable"})
    client.get("/nowhere/Unspeakable")
    client.request("BREW", "/v1/models")
    text = client.get("/metrics").text
    assert 'mlx_higgs_responses_total{method="POST",route="/v1/audio/speech",status="200"}' in text
    assert 'route="other",status="404"' in text
    assert 'method="other"' in text
    assert "Unspeakable" not in text
    assert "BREW" not in text


def test_every_answer_has_our_headers(client):
    for answer in (client.get("/health"), client.get("/nowhere"), client.get("/openapi.json")):
        assert answer.headers["server"] == "mlx_higgs"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in answer.headers


def test_the_log_holds_no_words(client, caplog):
    caplog.set_level("INFO", "mlx_higgs.server")
    client.post(f"{SPEECH}?api_key=hush", json={"input": "Unspeakable"})
    client.get("/a%0d%0ab")
    assert f"POST {SPEECH} 200" in caplog.text
    assert "/a%0d%0ab 404" in caplog.text
    assert "hush" not in caplog.text
    assert "Unspeakable" not in caplog.text


def test_the_end_waits_for_what_is_said(library):
    gate = threading.Event()
    worker = StubWorker(chunks=4, held=gate)
    got: list[bytes] = []
    with running(worker, library) as url:
        body = {"input": "Hi.", "response_format": "pcm", "seed": 1}
        asking = threading.Thread(
            target=lambda: got.append(httpx.post(url + SPEECH, json=body).content)
        )
        asking.start()
        wait_until(lambda: worker.tickets)
        threading.Timer(0.3, gate.set).start()
    asking.join()
    assert got == [expected(1, 4)]
    assert worker.closed


def test_what_takes_too_long_is_told_that_the_server_stops(library):
    worker = StubWorker(held=threading.Event())
    got: list[httpx.Response] = []
    with running(worker, library, drain_seconds=1) as url:
        asking = threading.Thread(
            target=lambda: got.append(httpx.post(url + SPEECH, json={"input": "Hi."}))
        )
        asking.start()
        wait_until(lambda: worker.tickets)
    asking.join()
    assert (got[0].status_code, error_of(got[0])["code"]) == (503, "unavailable")
    assert worker.tickets[0].outcome == "cancelled"
