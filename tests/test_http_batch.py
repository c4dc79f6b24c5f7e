"""``/v1/audio/speech/batch``: each item as it sounds alone, and one bad item harms no other."""

from __future__ import annotations

import base64
import socket
import threading

import httpx
import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs mlx_higgs[server]")

from http_client import RATE, StubWorker, running, serving, tone, wait_until
from tiny_speaker import TinySpeaker

from mlx_higgs.server.encoders import samples
from mlx_higgs.server.http import batch_api
from mlx_higgs.server.ticket import Busy
from mlx_higgs.server.worker import Worker
from mlx_higgs.types import GenerationError
from mlx_higgs.voices.library import VoiceLibrary

PATH = "/v1/audio/speech/batch"


@pytest.fixture
def library(tmp_path) -> VoiceLibrary:
    return VoiceLibrary(tmp_path, others=[])


def audio(result: dict) -> bytes:
    assert result["status"] == "success"
    assert result["error"] is None
    return base64.b64decode(result["audio_data"])


def test_items_take_what_is_shared_and_their_own(library):
    worker = StubWorker()
    items = [{"input": "One."}, {"input": "Two.", "response_format": "wav", "seed": 9}]
    body = {"items": items, "seed": 4, "response_format": "pcm", "temperature": 0.5}
    with serving(worker, library) as client:
        answer = client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["total"], found["succeeded"], found["failed"]) == (2, 2, 0)
    assert isinstance(found["id"], str)
    assert [result["index"] for result in found["results"]] == [0, 1]
    assert [result["media_type"] for result in found["results"]] == ["audio/pcm", "audio/wav"]
    assert audio(found["results"][0]) == samples(tone(4))
    assert audio(found["results"][1])[:4] == b"RIFF"
    by_text = {request.target_text: request for request in worker.requests}
    assert (by_text["One."].seed, by_text["Two."].seed) == (4, 9)
    assert {request.temperature for request in worker.requests} == {0.5}


def test_each_sounds_as_it_does_alone(seed, library):
    worker = Worker(lambda: TinySpeaker(seed))
    with serving(worker, library) as client:
        assert worker.wait(60), worker.error
        client.timeout = 60
        items = [{"input": f"Text {n}.", "seed": n, "max_new_tokens": 4 + 3 * n} for n in range(5)]
        found = client.post(PATH, json={"items": items, "response_format": "pcm"}).json()
        assert found["succeeded"] == 5
        for item, result in zip(items, found["results"], strict=True):
            alone = client.post(
                "/v1/audio/speech", json={**item, "response_format": "pcm", "stream": False}
            )
            assert audio(result) == alone.content


def test_a_bad_item_harms_no_other(library):
    worker = StubWorker()
    items = [
        {"input": "One."},
        {"input": "..."},
        {"input": "Two.", "voice": "nobody"},
        {"input": "Three.", "speed": 2},
        {"input": "Four.", "ref_audio": "/etc/passwd", "ref_text": "x"},
        {"input": "Five.", "stream": True, "response_format": "flac"},
    ]
    with serving(worker, library) as client:
        found = client.post(PATH, json={"items": items}).json()
    statuses = [result["status"] for result in found["results"]]
    assert statuses == ["success", "error", "error", "error", "error", "success"]
    assert (found["total"], found["succeeded"], found["failed"]) == (6, 2, 4)
    for result in found["results"]:
        assert (result["audio_data"] is None) == (result["error"] is not None)
    assert "nobody" in found["results"][2]["error"]


def test_a_failure_of_the_model_is_that_items(library):
    worker = StubWorker(fails_after=1, failure=GenerationError("The model made no sound."))
    with serving(worker, library) as client:
        found = client.post(PATH, json={"items": [{"input": "One."}]}).json()
    assert found["results"][0]["error"] == "The model made no sound."
    assert found["failed"] == 1


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"items": []},
        {"items": [{"input": "x"}] * 33},
        {"items": {"input": "x"}},
        {"items": ["x"]},
        {"items": [{}]},
        {"items": [{"input": 7}]},
        {"items": [{"input": "x" * 400}] * 5},
        {"items": [{"input": "x"}], "temperature": "hot"},
        {"items": [{"input": "x"}, {"input": "x", "response_format": "aac"}]},
    ],
)
def test_bodies_that_are_none_begin_nothing(library, body):
    worker = StubWorker()
    with serving(worker, library, max_input_chars=499) as client:
        answer = client.post(PATH, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert not worker.tickets


def test_a_full_server_refuses_all_of_it(library):
    worker = StubWorker(refusal=Busy("No room.", 7))
    with serving(worker, library) as client:
        answer = client.post(PATH, json={"items": [{"input": "x"}] * 3})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "7"


def test_it_leaves_room_for_others(library):
    """A batch has few requests under way at once, and waits where the queue is full."""
    worker = StubWorker(held=threading.Event())
    with serving(worker, library) as client:
        found = {}

        def post() -> None:
            found["answer"] = client.post(PATH, json={"items": [{"input": "x"}] * 12}, timeout=30)

        thread = threading.Thread(target=post)
        thread.start()
        wait_until(lambda: len(worker.tickets) == batch_api.AT_ONCE)
        worker.refusal = Busy("No room.", 1)
        assert worker.held is not None
        worker.held.set()
        wait_until(lambda: all(ticket.outcome for ticket in worker.tickets))
        worker.refusal = None
        thread.join(30)
    assert found["answer"].json()["succeeded"] == 12


def test_when_the_client_leaves_all_is_cancelled(seed, library):
    speaker = TinySpeaker(seed)
    worker = Worker(lambda: speaker, max_batch=2)
    many = [{"input": f"Text {n}.", "max_new_tokens": 100_000, "seed": n} for n in range(6)]
    with running(worker, library) as url:
        assert worker.wait(60), worker.error
        body = httpx.Request("POST", f"{url}{PATH}", json={"items": many}).read()
        host, _, port = url.removeprefix("http://").partition(":")
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection((host, int(port))) as there:
            there.sendall(head.encode() + body)
            wait_until(lambda: sum(speaker.made.values()) > 3)
            assert worker.running
        wait_until(lambda: worker.running == worker.waiting == 0)


def test_what_a_client_hears_of_a_clip_is_no_path(library, tmp_path):
    tone_file = 0.3 * np.sin(np.arange(RATE) / 10)
    import io

    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, tone_file, RATE, format="WAV")
    voice = library.add("me", buffer.getvalue(), "Words.")
    failure = GenerationError(f"The reference {voice.clip} cannot be read.")
    worker = StubWorker(fails_after=0, failure=failure)
    with serving(worker, library) as client:
        found = client.post(PATH, json={"items": [{"input": "One.", "voice": "me"}]}).json()
    assert found["results"][0]["error"] == "The reference me.wav cannot be read."
