"""The WebSocket: text in any pieces, audio as it sounds elsewhere, and nothing after the end."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs mlx_higgs[server]")
pytest.importorskip("websockets", reason="needs mlx_higgs[server]")

from http_client import StubWorker, running, tone, wait_until
from tiny_speaker import TinySpeaker
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from mlx_higgs.pieces import piece_seed
from mlx_higgs.server.encoders import samples
from mlx_higgs.server.http import incoming, socket_api
from mlx_higgs.server.http.incoming import Incoming
from mlx_higgs.server.ticket import Busy, Unavailable
from mlx_higgs.server.worker import Worker
from mlx_higgs.text import is_blank
from mlx_higgs.types import GenerationError
from mlx_higgs.voices.library import VoiceLibrary

PATH = "/v1/audio/speech/stream"
PCM = {"response_format": "pcm", "stream_audio": True}


# -- splitting ------------------------------------------------------------------------------------

TEXTS = [
    "Hello there. How are you? I am fine!",
    "Oh no. No. 5 is gone, no. 7 too. No. It is not.",
    "Dr. Smith met J. R. Jones at No. 5, e.g. at 3.14 p.m. in the U.S. They left.",
    "Wait... what? Really?! Yes. and then no.",
    'She said "Stop." He did not. (It was late.) Then it ended.',
    "今天天气很好。我们去公园吧！好不好？「好。」他说。",
    "नमस्ते। आप कैसे हैं? मैं ठीक हूँ।",
    "مرحبا. كيف حالك؟ أنا بخير۔ شكرا.",
    "One line\nand the next\n\nAnother paragraph without an end\n \nand a third.",
    "1. First, we go. 2. Then we stay, for a while; or longer, as it may be.",
    "word " * 500,
    "x" * 2000,
    "... !!! ??? \n\n ...",
    "",
    "No mark at all",
    "a. " + " " * 1000 + "b. C.",
]


def units(pieces: list[str], granularity: str) -> list[str]:
    found = Incoming(granularity)
    return [unit for piece in pieces for unit in found.feed(piece)] + found.flush()


@pytest.mark.parametrize("granularity", ["none", "sentence", "clause"])
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_how_a_text_is_cut_changes_nothing(text, granularity, seed):
    whole = units([text], granularity)
    assert units(list(text), granularity) == whole
    rng = np.random.default_rng(seed)
    for _ in range(5):
        cuts = sorted(rng.integers(0, len(text) + 1, 8))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert units(pieces, granularity) == whole


@pytest.mark.parametrize("granularity", ["none", "sentence", "clause"])
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_no_letter_is_lost_and_no_unit_is_blank(text, granularity):
    found = units([text], granularity)
    letters = [char for char in text if char.isalnum()]
    assert [char for unit in found for char in unit if char.isalnum()] == letters
    assert not any(map(is_blank, found))
    if granularity != "none":
        assert all(len(unit) <= incoming.LONGEST + 1 for unit in found)


def test_sentences():
    assert units([TEXTS[0]], "sentence") == ["Hello there.", "How are you?", "I am fine!"]
    assert units([TEXTS[1]], "sentence") == [
        "Oh no.",
        "No. 5 is gone, no. 7 too.",
        "No.",
        "It is not.",
    ]
    assert units([TEXTS[2]], "sentence") == [
        "Dr. Smith met J. R. Jones at No. 5, e.g. at 3.14 p.m. in the U.S. They left."
    ]
    assert units([TEXTS[3]], "sentence") == ["Wait... what?", "Really?!", "Yes. and then no."]
    assert units([TEXTS[5]], "sentence") == [
        "今天天气很好。",
        "我们去公园吧！",
        "好不好？",
        "「好。」",
        "他说。",
    ]
    assert len(units([TEXTS[6]], "sentence")) == 3
    assert len(units([TEXTS[8]], "sentence")) == 3
    clauses = units(["When it rains and the wind blows, we stay at home; no. Well, yes."], "clause")
    assert clauses == ["When it rains and the wind blows,", "we stay at home; no.", "Well, yes."]


def test_a_sentence_is_there_as_soon_as_the_next_begins():
    found = Incoming("sentence")
    assert found.feed("Hello the") == []
    assert found.feed("re.") == []
    assert found.feed(" ") == []
    assert found.feed("H") == ["Hello there."]


# -- the protocol ---------------------------------------------------------------------------------


class Client:
    """One connection; ``heard`` is all of an utterance."""

    def __init__(self, socket: ClientConnection):
        self.socket = socket

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def next(self, seconds: float = 20) -> dict | bytes:
        message = self.socket.recv(seconds)
        return message if isinstance(message, bytes) else json.loads(message)

    def heard(self) -> list[dict | bytes]:
        """Up to the end of the utterance."""
        found = []
        while not (found and isinstance(found[-1], dict) and found[-1]["type"] == "session.done"):
            found.append(self.next())
        return found

    def error(self) -> dict:
        message = self.next()
        assert isinstance(message, dict)
        assert message["type"] == "error", message
        return message

    def ended(self) -> int:
        """How the server closed."""
        try:
            while True:
                self.next()
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 0

    def say(self, text: str) -> list[dict | bytes]:
        self.send("input.text", text=text)
        self.send("input.done")
        return self.heard()


def sound(messages: list[dict | bytes]) -> bytes:
    return b"".join(message for message in messages if isinstance(message, bytes))


def kinds(messages: list[dict | bytes]) -> list[str]:
    return [m["type"] if isinstance(m, dict) else "audio" for m in messages]


@pytest.fixture
def library(tmp_path) -> VoiceLibrary:
    return VoiceLibrary(tmp_path, others=[])


@contextmanager
def talking(worker, library, config: dict | None = None, **settings) -> Iterator[Client]:
    with running(worker, library, **settings) as url:
        if isinstance(worker, Worker):
            assert worker.wait(60), worker.error
        with connect(url.replace("http", "ws") + PATH) as socket:
            client = Client(socket)
            if config is not None:
                client.send("session.config", **config)
            yield client


def test_an_utterance_is_one_unit_by_default(library):
    worker = StubWorker()
    with talking(worker, library, {"seed": 3}) as client:
        messages = client.say("Hello there. How are you?")
        assert kinds(messages) == ["audio.start", "audio", "audio.done", "session.done"]
        start, audio, done, last = messages
        place = {"utterance_index": 0, "sentence_index": 0}
        assert start == {
            "type": "audio.start",
            **place,
            "sentence_text": "Hello there. How are you?",
            "format": "wav",
            "sample_rate": 24000,
            "channels": 1,
        }
        assert audio[:4] == b"RIFF"
        assert struct.unpack("<I", audio[40:44])[0] == len(audio) - 44  # its true size
        assert audio[44:] == samples(tone(3))
        assert done["total_bytes"] == len(audio)
        assert done["error"] is False
        assert (done["seed"], done["finish_reason"]) == (3, "stop")
        assert last == {"type": "session.done", "utterance_index": 0, "total_sentences": 1}
        again = client.say("Hello there. How are you?")
        assert sound(again) == audio  # an utterance does not depend on those before
        assert again[-1]["utterance_index"] == 1
        client.send("session.close")
        assert client.ended() == 1000


def test_sentences_are_spoken_before_the_text_ends(library):
    worker = StubWorker()
    config = {**PCM, "split_granularity": "sentence", "seed": 3, "voice": "alloy"}
    with talking(worker, library, config) as client:
        client.send("input.text", text="Hello th")
        client.send("input.text", text="ere. H")
        messages = [client.next() for _ in range(5)]
        assert kinds(messages) == ["audio.start", "audio", "audio", "audio", "audio.done"]
        assert messages[0]["sentence_text"] == "Hello there."
        client.send("input.text", text="ow are you?")
        client.send("input.done")
        rest = client.heard()
        assert rest[0]["sentence_text"] == "How are you?"
        assert rest[0]["sentence_index"] == 1
        assert rest[-1]["total_sentences"] == 2
    assert [request.seed for request in worker.requests] == [3, piece_seed(3, 0, 1, 0)]
    assert sound(messages) == samples(tone(3))


@pytest.mark.parametrize("format", ["mp3", "wav", "opus", "pcm"])
def test_streams_are_one_container_a_unit(library, format):
    config = {"response_format": format, "stream_audio": True}
    with talking(StubWorker(chunks=8), library, config) as client:
        data = sound(client.say("Hello."))
    if format == "pcm":
        assert len(data) == 8 * 12_000 * 2
        return
    import io

    import soundfile

    if format == "wav":
        assert data[40:44] == b"\xff" * 4
        data = data[:40] + struct.pack("<I", len(data) - 44) + data[44:]
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        assert file.samplerate in (24_000, 48_000)


def test_it_sounds_as_over_http(seed, library):
    """Whole or streamed, at once or letter by letter: the samples of the same seed."""
    worker = Worker(lambda: TinySpeaker(seed))
    body = {"seed": seed % 1000, "max_new_tokens": 12, "response_format": "pcm"}
    text = "Hello there, whoever you are."
    with running(worker, library) as url:
        assert worker.wait(60), worker.error
        for streaming in (False, True):
            asked = {**body, "input": text, "stream": streaming}
            alone = httpx.post(f"{url}/v1/audio/speech", json=asked, timeout=60).content
            with connect(url.replace("http", "ws") + PATH) as socket:
                client = Client(socket)
                client.send("session.config", **body, stream_audio=streaming)
                assert sound(client.say(text)) == alone
                for letter in text:
                    client.send("input.text", text=letter)
                client.send("input.done")
                assert sound(client.heard()) == alone


def test_the_config_holds_until_the_next(library):
    with talking(StubWorker(), library, {**PCM, "seed": 1}) as client:
        assert sound(client.say("One.")) == samples(tone(1))
        client.send("session.config", **PCM, seed=2)
        client.send("input.text", text="Tw")
        client.send("session.config", **PCM, seed=3)
        assert "under way" in client.error()["message"]
        assert sound(client.say("o.")) == samples(tone(2))
        client.send("session.config", voice="nobody")
        assert client.error()["param"] == "voice"
        assert sound(client.say("Two.")) == samples(tone(2))


def test_an_empty_utterance_is_done_at_once(library):
    worker = StubWorker()
    with talking(worker, library, {}) as client:
        client.send("input.done")
        assert client.next()["total_sentences"] == 0
        assert kinds(client.say("... !")) == ["session.done"]
    assert not worker.tickets


# -- failures -------------------------------------------------------------------------------------


def test_a_failure_is_told_and_the_session_goes_on(library):
    worker = StubWorker(fails_after=1, failure=GenerationError("The model made no sound."))
    with talking(worker, library, PCM) as client:
        messages = client.say("One.")
        assert kinds(messages) == ["audio.start", "audio", "error", "audio.done", "session.done"]
        assert messages[2]["message"] == "The model made no sound."
        assert messages[2]["partial_audio"] is True
        assert messages[3]["error"] is True
        worker.fails_after = None
        assert kinds(client.say("Two.")).count("audio") == 3


def test_a_full_queue_is_waited_for(library):
    worker = StubWorker(refusal=Busy("No room.", 1))
    with talking(worker, library, PCM) as client:
        client.send("input.text", text="One.")
        client.send("input.done")
        assert client.next()["type"] == "audio.start"
        worker.refusal = None
        assert kinds(client.heard())[-2:] == ["audio.done", "session.done"]


def test_what_nobody_foresaw_ends_the_session_visibly(library, monkeypatch):
    monkeypatch.setattr(socket_api, "finish_reason", lambda _: 1 / 0)
    with talking(StubWorker(), library, PCM) as client:
        client.send("input.text", text="One.")
        client.send("input.done")
        messages = [client.next() for _ in range(5)]
        assert kinds(messages)[-1] == "error"
        assert messages[-1]["code"] == "internal"
        assert "division" not in str(messages[-1])
        assert client.ended() == socket_api.INTERNAL


def test_a_worker_that_is_gone_is_told(library):
    worker = StubWorker(refusal=Unavailable("The server is shutting down."))
    with talking(worker, library, PCM) as client:
        assert "error" in kinds(client.say("One."))


FIRST = [
    {"type": "input.text", "text": "Hello"},
    {"type": "session.config", "split_granularity": "word"},
    {"type": "session.config", "split_granularity": ["none"]},
    {"type": "session.config", "stream_audio": "yes"},
    {"type": "session.config", "response_format": "aac"},
    {"type": "session.config", "response_format": "flac", "stream_audio": True},
    {"type": "session.config", "word_timestamps": True},
    {"type": "session.config", "voice": "nobody"},
    {"type": "session.config", "voice": "../../etc/passwd"},
    {"type": "session.config", "ref_audio": "/etc/passwd", "ref_text": "x"},
    {"type": "session.config", "ref_audio": "https://example.org/a.wav", "ref_text": "x"},
    {"type": "session.config", "temperature": "hot"},
    {"type": "nonsense"},
    {"type": ["session.config"]},
    {"type": None},
    {},
]


@pytest.mark.parametrize("message", FIRST, ids=range(len(FIRST)))
def test_a_session_that_begins_wrongly_is_ended(library, message):
    with talking(StubWorker(), library) as client:
        client.socket.send(json.dumps(message))
        assert client.error()["message"]
        assert client.ended() == socket_api.POLICY


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "nonsense",
        "[]",
        "7",
        "null",
        '{"type": "input.text", "text": NaN}',
        "[" * 100_000,
        '{"a":' * 50_000,
        '{"type": ' + "9" * 5000 + "}",
        b"\x00\x01",
        '{"type": "input.text"}',
        '{"type": "input.text", "text": 7}',
        '{"type": "input.text", "text": "a\\u0000b"}',
        '{"type": "input.text", "text": "\\ud800"}',
        '{"type": "input.text", "type": "input.done"}',
        '{"type": "input.text", "text": "' + "x" * 140_000 + '"}',
    ],
    ids=range(16),
)
def test_hostile_messages_are_refused_and_harm_nothing(library, raw):
    worker = StubWorker()
    with talking(worker, library, PCM) as client:
        client.socket.send(raw)
        assert client.error()["message"]
        assert sound(client.say("One.")) == samples(tone(worker.requests[0].seed))


def test_who_says_nothing_is_not_waited_for(library, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(socket_api, "CONFIG_SECONDS", 0.2)
        with talking(StubWorker(), library) as client:
            assert client.error()["code"] == "timeout"
            assert client.ended() == socket_api.POLICY
    monkeypatch.setattr(socket_api, "IDLE_SECONDS", 0.6)
    with talking(StubWorker(), library, {}) as client:
        assert client.error()["code"] == "timeout"
        assert client.ended() == socket_api.POLICY
    go = threading.Event()
    with talking(StubWorker(held=go), library, PCM) as client:
        client.send("input.text", text="One.")
        client.send("input.done")
        time.sleep(1.0)  # nobody is idle while something is being said
        go.set()
        assert kinds(client.heard())[-1] == "session.done"


def test_limits(library, monkeypatch):
    monkeypatch.setattr(socket_api, "MAX_WAITING", 1000)
    with talking(StubWorker(), library, {}) as client:
        client.send("input.text", text="x" * 1001)
        assert client.error()["code"] == "too_large"
        assert client.ended() == socket_api.TOO_BIG
    with talking(StubWorker(), library, {}, max_input_chars=20) as client:
        messages = client.say("This is more than twenty characters.")
        assert kinds(messages) == ["audio.start", "error", "audio.done", "session.done"]


def test_messages_larger_than_a_clip_are_not_read(library):
    with talking(StubWorker(), library) as client:
        client.socket.send("x" * (socket_api.MAX_CONFIG + 1))
        assert client.ended() == socket_api.TOO_BIG


# -- leaving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "cut"])
def test_when_the_client_leaves_the_work_stops(seed, library, how):
    speaker = TinySpeaker(seed)
    worker = Worker(lambda: speaker)
    config = {**PCM, "max_new_tokens": 100_000, "split_granularity": "sentence"}
    with talking(worker, library, config) as client:
        client.send("input.text", text="One. Two. Three. ")
        while not isinstance(client.next(), bytes):
            pass
        assert worker.running
        if how == "close":
            client.socket.close()
        else:
            client.socket.socket.close()
        wait_until(lambda: worker.running == worker.waiting == 0)
        made = dict(speaker.made)
        assert list(made) == ["One."]  # nothing new is begun
        time.sleep(0.05)
        assert speaker.made == made


def test_while_it_waits_for_a_place_it_can_leave(library):
    worker = StubWorker(refusal=Busy("No room.", 60))
    with talking(worker, library, PCM) as client:
        client.send("input.text", text="One.")
        client.send("input.done")
        assert client.next()["type"] == "audio.start"
        client.socket.close()
    assert not worker.tickets


# -- who may come in ------------------------------------------------------------------------------


def opened(url: str, **headers: str) -> int:
    try:
        with connect(url.replace("http", "ws") + PATH, additional_headers=headers) as socket:
            client = Client(socket)
            client.send("session.config")
            client.send("input.done")
            assert client.next()["type"] == "session.done"
            return 101
    except InvalidStatus as refused:
        answer = refused.response
    assert json.loads(answer.body or b"").keys() == {"error"}
    return answer.status_code


def test_pages_of_others_and_strangers_stay_outside(library):
    with running(StubWorker(), library, allowed_origins=("https://mine.example",)) as url:
        assert opened(url) == 101
        assert opened(url, Origin=url) == 101
        assert opened(url, Origin="https://mine.example") == 101
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "file://", "x"):
            assert opened(url, Origin=origin) == 403
    with running(StubWorker(), library, api_key="secret") as url:
        assert opened(url) == 401
        assert opened(url, Authorization="Bearer wrong") == 401
        assert opened(url, Authorization="Bearer secret") == 101
        from websockets.typing import Subprotocol

        offered = [Subprotocol("realtime"), Subprotocol("openai-insecure-api-key.secret")]
        with connect(url.replace("http", "ws") + PATH, subprotocols=offered) as socket:
            assert socket.subprotocol == "realtime"


def test_other_host_names_are_refused(library):
    with running(StubWorker(), library) as url:
        port = url.rpartition(":")[2]
        import socket

        with socket.create_connection(("127.0.0.1", int(port))) as there:
            there.sendall(
                f"GET {PATH} HTTP/1.1\r\nHost: evil.example:{port}\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                "Sec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            assert there.recv(100).split()[1] == b"403"


def test_a_server_that_is_not_ready_says_so(library):
    with running(StubWorker(ready=False, error=None), library) as url:
        assert opened(url) == 503
