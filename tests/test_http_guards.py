"""Who may use the server, and how much it reads of those who may."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from http_client import StubWorker, running, serving

from mlx_higgs.server.http import farewell
from mlx_higgs.server.http.body import parse_object
from mlx_higgs.server.http.errors import ApiError
from mlx_higgs.server.http.guards import KEY_PROTOCOL
from mlx_higgs.server.http.settings import Settings
from mlx_higgs.types import InputError
from mlx_higgs.voices.library import VoiceLibrary

SPEECH = "/v1/audio/speech"
KEY = "a-key-of-ours"
HI = {"input": "Hi."}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> VoiceLibrary:
    return VoiceLibrary(tmp_path_factory.mktemp("voices"))


@pytest.fixture(scope="module")
def client(library) -> Iterator[httpx.Client]:
    with serving(StubWorker(), library, max_body_bytes=4000) as client:
        yield client


@pytest.fixture(scope="module")
def locked(library) -> Iterator[httpx.Client]:
    origins = ("https://friend.example",)
    with serving(StubWorker(), library, api_key=KEY, allowed_origins=origins) as client:
        yield client


def code(answer: httpx.Response) -> str:
    return answer.json()["error"]["code"]


# -- the key --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [None, "", KEY, f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer ключ"]
)
def test_without_the_key_nothing(locked, given):
    headers = {} if given is None else {"Authorization": given.encode()}
    for path in ("/v1/models", "/v1/audio/voices", "/openapi.json", "/nowhere"):
        answer = locked.get(path, headers=headers)
        assert (answer.status_code, code(answer)) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert locked.post(SPEECH, json=HI, headers=headers).status_code == 401


def test_with_the_key_all(locked):
    headers = {"Authorization": f"bearer {KEY}"}
    assert locked.get("/v1/models", headers=headers).status_code == 200
    assert locked.post(SPEECH, json=HI, headers=headers).status_code == 200


def test_what_needs_no_key(locked):
    for path in ("/health", "/ready", "/metrics", "/"):
        assert locked.get(path).status_code == 200
    assert locked.post("/health").status_code == 401


def test_open_listings(library):
    with serving(StubWorker(), library, api_key=KEY, open_listings=True) as client:
        for path in ("/v1/models", "/v1/audio/models", "/v1/audio/voices", "/audio/voices"):
            assert client.get(path).status_code == 200
        assert client.get("/v1/audio/voices/en_man").status_code == 401
        assert client.post("/v1/audio/voices").status_code == 401
        assert client.post(SPEECH, json=HI).status_code == 401


def test_metrics_need_the_key_where_strangers_are(library):
    with running(StubWorker(), library, host="0.0.0.0", api_key=KEY) as url:
        assert httpx.get(f"{url}/metrics").status_code == 401
        good = {"Authorization": f"Bearer {KEY}"}
        assert httpx.get(f"{url}/metrics", headers=good).status_code == 200


def test_the_key_is_not_shown():
    assert KEY not in repr(Settings(api_key=KEY))


# -- choices that do not go together --------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_other_machines_need_a_key(host):
    with pytest.raises(InputError, match="--api-key"):
        Settings(host=host)
    assert not Settings(host=host, api_key=KEY).loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_needs_none(host):
    assert Settings(host=host).loopback


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 65536},
        {"api_key": ""},
        {"api_key": "two words"},
        {"api_key": "ключ"},
        {"allowed_origins": ("*",)},
        {"allowed_origins": ("example.org",)},
        {"allowed_origins": ("https://example.org/path",)},
        {"max_body_bytes": 0},
        {"request_timeout": float("nan")},
        {"allowed_local_media_path": "nowhere/at/all"},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(InputError):
        Settings(**wrong)


# -- Host and Origin ------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example"])
def test_another_host_name_is_refused(client, host):
    for path in ("/", "/health", "/v1/models"):
        answer = client.get(path, headers={"Host": host})
        assert (answer.status_code, code(answer)) == (403, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8000", "[::1]"])
def test_our_host_names(client, host):
    assert client.get("/health", headers={"Host": host}).status_code == 200


def test_allowed_hosts(library):
    with serving(StubWorker(), library, allowed_hosts=("speech.lan",)) as client:
        assert client.get("/health", headers={"Host": "speech.lan:80"}).status_code == 200
        assert client.get("/health", headers={"Host": "other.lan"}).status_code == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "x"])
def test_pages_of_others_cannot_act(client, origin):
    headers = {"Origin": origin}
    for answer in (
        client.post(SPEECH, json=HI, headers=headers),
        client.post("/v1/audio/voices", files={"audio_sample": b"x"}, headers=headers),
        client.delete("/v1/audio/voices/en_man", headers=headers),
    ):
        assert (answer.status_code, code(answer)) == (403, "origin_not_allowed")
    answer = client.get("/v1/models", headers=headers)  # sent, but shown to no page
    assert "access-control-allow-origin" not in answer.headers
    asked = {**headers, "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.options(SPEECH, headers=asked).headers


def test_our_own_page_may(client):
    origin = str(client.base_url).rstrip("/")
    assert client.post(SPEECH, json=HI, headers={"Origin": origin}).status_code == 200


def test_friends_may_and_are_told_so(locked):
    headers = {"Origin": "https://friend.example"}
    asked = {**headers, "Access-Control-Request-Method": "POST"}
    answer = locked.options(SPEECH, headers=asked)  # browsers send no key with this one
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    assert "Authorization" in answer.headers["access-control-allow-headers"]
    answer = locked.post(SPEECH, json=HI, headers={**headers, "Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    assert "access-control-allow-credentials" not in answer.headers
    assert "origin" in answer.headers["vary"].lower()
    # a page can read why it was refused
    assert "access-control-allow-origin" in locked.post(SPEECH, json=HI, headers=headers).headers


@pytest.mark.parametrize(
    ("headers", "subprotocols", "status"),
    [
        ({}, None, 401),
        ({"Authorization": f"Bearer {KEY}"}, None, 101),
        ({}, [f"{KEY_PROTOCOL}{KEY}"], 101),
        ({}, [f"{KEY_PROTOCOL}wrong"], 401),
        ({"Authorization": f"Bearer {KEY}", "Origin": "https://evil.example"}, None, 403),
    ],
)
def test_sockets_are_guarded_as_well(locked, headers, subprotocols, status):
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    url = f"ws://{urlsplit(str(locked.base_url)).netloc}/v1/audio/speech/stream"
    if status == 101:
        with connect(url, additional_headers=headers, subprotocols=subprotocols):
            return
    with pytest.raises(InvalidStatus) as refused:
        connect(url, additional_headers=headers, subprotocols=subprotocols)
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body)["error"]["message"]


# -- bodies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin1",
    ],
)
def test_json_alone(client, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    answer = client.post(SPEECH, content=json.dumps(HI), headers=headers)
    assert answer.status_code == 415


@pytest.mark.parametrize(
    "kind", ["application/json;charset=UTF-8", 'Application/JSON; charset="utf-8"']
)
def test_json_by_its_other_names(client, kind):
    answer = client.post(
        SPEECH, content=b"\xef\xbb\xbf" + json.dumps(HI).encode(), headers={"Content-Type": kind}
    )
    assert answer.status_code == 200


BAD = {
    "nothing": b"",
    "no object": b"[1]",
    "a text": b'"input"',
    "cut": b'{"input": "a',
    "NaN": b'{"input": "a", "seed": NaN}',
    "infinite": b'{"input": "a", "seed": -Infinity}',
    "too large a number": b'{"input": "a", "temperature": 1e999}',
    "too long a number": b'{"input": "a", "seed": ' + b"9" * 2000 + b"}",
    "twice": b'{"input": "a", "input": "b"}',
    "twice within": b'{"input": "a", "x": {"y": 1, "y": 1}}',
    "nested": b'{"input": ' + b"[" * 1500 + b"]" * 1500 + b"}",
    "half a character": b'{"input": "a \\ud800 b"}',
    "half a character as a name": b'{"input": "a", "\\udfff": 1}',
    "not UTF-8": b'{"input": "\xff\xfe"}',
    "UTF-16": json.dumps(HI).encode("utf-16"),
    "comments": b'{"input": "a" /* b */}',
}


def test_a_body_of_too_many_values_is_not_built():
    body = b'{"x": [' + b"[]," * 300_000 + b"1]}"
    with pytest.raises(ApiError, match="too many values"):
        parse_object(body)
    assert parse_object(b'{"x": "' + b"a" * 900_000 + b'"}')


@pytest.mark.parametrize("name", BAD)
def test_json_with_traps(client, name):
    answer = client.post(SPEECH, content=BAD[name], headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_a_body_is_counted_while_it_comes(client):
    with knocking(client) as slow:
        slow.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(5):
            slow.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")
        assert b" 413 " in first_line(slow)  # although it goes on


@pytest.fixture
def patient(monkeypatch):
    """On a busy machine it can be long until a client sends on."""
    monkeypatch.setattr(farewell, "SILENCE", 30.0)
    monkeypatch.setattr(farewell, "LONGEST", 30.0)


@pytest.mark.usefixtures("patient")
def test_who_sends_on_is_told_all_the_same(client):
    headers = {"Content-Type": "application/json"}
    answer = client.post(SPEECH, content=b" " * 5_000_000, headers=headers)
    assert (answer.status_code, code(answer)) == (413, "too_large")


@pytest.mark.usefixtures("patient")
def test_who_reads_only_after_all_is_sent_is_told_too(client):
    with knocking(client) as slow:
        slow.sendall(b"Content-Length: 6000000\r\n\r\n")
        for _ in range(60):
            slow.sendall(b" " * 100_000)
            time.sleep(0.005)  # the answer has long been sent
        answer = told(slow)
        assert b" 413 " in answer
        assert b"too_large" in answer


def first_line(opened: socket.socket) -> bytes:
    answer = b""
    while b"\r\n" not in answer and (more := opened.recv(4096)):
        answer += more
    return answer.partition(b"\r\n")[0]


def told(opened: socket.socket) -> bytes:
    """All that comes until the server hangs up."""
    answer = b""
    while more := opened.recv(4096):
        answer += more
    return answer


@contextmanager
def knocking(client: httpx.Client) -> Iterator[socket.socket]:
    """A connection on which a request has begun; its headers are not at their end."""
    parts = urlsplit(str(client.base_url))
    with socket.create_connection((parts.hostname, parts.port), 60) as opened:
        opened.sendall(
            b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\n"
        )
        yield opened


def test_a_body_that_is_announced_too_long_is_not_waited_for(client):
    with knocking(client) as asking:
        asking.sendall(b"Content-Length: 1000000000000\r\n\r\n")
        assert b" 413 " in first_line(asking)


def test_a_body_that_does_not_come(library):
    with serving(StubWorker(), library, body_timeout=0.3) as client, knocking(client) as slow:
        slow.sendall(b"Content-Length: 100\r\n\r\n{")
        answer = told(slow)
        assert b" 408 " in answer
        assert b"connection: close" in answer.lower()
