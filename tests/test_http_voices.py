"""``/v1/audio/voices``: the shapes clients read, hostile uploads, and a server that is killed."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from tempfile import SpooledTemporaryFile

import httpx
import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("starlette", reason="needs mlx_higgs[server]")

from http_client import StubWorker, running, serving  # noqa: E402

from mlx_higgs.voices.clip import read_clip  # noqa: E402
from mlx_higgs.voices.library import VoiceLibrary  # noqa: E402

PATH = "/v1/audio/voices"
RATE = 24_000
WORDS = "The quick brown fox."


def recording(seed: int, seconds: float = 1.5, format: str = "WAV") -> bytes:
    wave = 0.2 * np.random.default_rng(seed).normal(size=round(seconds * RATE))
    wave *= np.sin(np.linspace(0, np.pi, len(wave))) ** 2
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1, 1), RATE, format=format)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "voices"


@pytest.fixture
def library(folder, tmp_path, seed) -> VoiceLibrary:
    """One voice that came with it."""
    bundled = tmp_path / "bundled"
    VoiceLibrary(bundled, others=[]).add("bundled", recording(seed), WORDS)
    return VoiceLibrary(folder, others=[bundled], limit=3)


@pytest.fixture
def client(library):
    with serving(StubWorker(), library, max_body_bytes=300_000) as found:
        yield found


def upload(client, name: str, data: bytes, **fields) -> httpx.Response:
    form = {"name": name, "ref_text": WORDS, **fields}
    form = {key: value for key, value in form.items() if value is not None}
    return client.post(PATH, data=form, files={"audio_sample": ("clip.wav", data, "audio/wav")})


def told(answer: httpx.Response, status: int, param: str | None = None) -> dict:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert param is None or error["param"] == param
    return error


def stored(folder: Path) -> list[str]:
    """Files of voices, without the library's own."""
    return sorted(path.name for path in folder.glob("*") if path.is_file() and path.name[0] != ".")


# -- the shapes -----------------------------------------------------------------------------------


def test_a_voice_comes_and_goes(client, folder, seed):
    answer = upload(client, "me", recording(seed), consent="mine", speaker_description="calm")
    assert answer.status_code == 200, answer.text
    voice = answer.json()
    assert voice["id"] == voice["name"] == "me"
    assert voice["object"] == "audio.voice"
    assert voice["type"] == "audio_sample"
    assert abs(voice["created_at"] - time.time()) < 60
    assert voice["description"] == "calm"
    assert stored(folder) == ["me.json", "me.txt", "me.wav"]
    assert (folder / "me.txt").read_text().strip() == WORDS
    assert json.loads((folder / "me.json").read_text())["consent"] == "mine"

    listed = client.get(PATH).json()
    assert listed["object"] == "list"
    assert listed["voices"] == listed["data"]
    assert [one["id"] for one in listed["voices"]] == ["bundled", "me"]
    assert client.get(f"{PATH}/me").json() == voice
    assert client.get("/audio/voices").json() == listed

    sample = client.get(f"{PATH}/me/sample")
    assert sample.headers["content-type"] == "audio/wav"
    assert sample.content == (folder / "me.wav").read_bytes()

    gone = client.delete(f"{PATH}/me")
    assert gone.json() == {"id": "me", "object": "audio.voice.deleted", "deleted": True}
    assert stored(folder) == []
    told(client.delete(f"{PATH}/me"), 404, "voice_id")
    told(client.get(f"{PATH}/me"), 404, "voice_id")
    told(client.get(f"{PATH}/me/sample"), 404, "voice_id")


@pytest.mark.parametrize("format", ["WAV", "FLAC", "MP3", "OGG"])
def test_recordings_are_told_by_their_bytes(client, seed, format):
    form = {"name": "me", "ref_text": WORDS}
    files = {"audio_sample": ("anything.exe", recording(seed, 1.5, format), "text/html")}
    assert client.post(PATH, data=form, files=files).status_code == 200
    wave, rate = read_clip(client.get(f"{PATH}/me/sample").content)
    assert rate == RATE
    assert len(wave) >= RATE


def test_the_openai_client_adds_and_deletes(library, seed):
    openai = pytest.importorskip("openai")
    with running(StubWorker(), library) as url:
        client = openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0)
        sample = ("me.wav", recording(seed), "audio/wav")
        voice = client.audio.voices.create(
            name="me", audio_sample=sample, consent="cons_1", extra_body={"ref_text": WORDS}
        )
        assert (voice.id, voice.object, voice.type) == ("me", "audio.voice", "audio_sample")
        with pytest.raises(openai.ConflictError):
            client.audio.voices.create(
                name="me", audio_sample=sample, consent="cons_1", extra_body={"ref_text": WORDS}
            )
        with pytest.raises(openai.BadRequestError, match=r"exact words"):
            client.audio.voices.create(name="other", audio_sample=sample, consent="cons_1")
        assert client.audio.voices.delete("me").deleted
        with pytest.raises(openai.NotFoundError):
            client.audio.voices.delete("me")


def test_a_voice_added_is_spoken_in(seed, library):
    worker = StubWorker()
    with serving(worker, library) as client:
        assert upload(client, "me", recording(seed)).status_code == 200
        body = {"input": "Hello.", "voice": "me"}
        assert client.post("/v1/audio/speech", json=body).headers["x-voice"] == "me"
    assert worker.requests[0].voice[0].transcript == WORDS


# -- refusals -------------------------------------------------------------------------------------


def test_what_is_there_stays(client, folder, seed):
    assert upload(client, "me", recording(seed)).status_code == 200
    before = {name: (folder / name).read_bytes() for name in stored(folder)}
    for name in ("me", "ME", "bundled"):
        error = told(upload(client, name, recording(seed + 1)), 409, "name")
        assert error["code"] == "voice_exists"
    assert before == {name: (folder / name).read_bytes() for name in stored(folder)}
    assert told(client.delete(f"{PATH}/bundled"), 403)["code"] == "voice_kept"
    assert client.get(f"{PATH}/bundled").status_code == 200


def test_the_number_of_voices_is_limited(client, seed):
    for name in ("a", "b", "c"):
        assert upload(client, name, recording(seed)).status_code == 200
    assert told(upload(client, "d", recording(seed)), 409)["code"] == "library_full"
    assert client.delete(f"{PATH}/a").status_code == 200
    assert upload(client, "d", recording(seed)).status_code == 200


NAMES = ["", ".", "..", ".hidden", "../me", "a/b", "a\\b", "/etc/passwd", "a b", "a\0b", "é"]
NAMES += ["x" * 65, "a\nb", "me\r\nX: y", "%2e%2e%2fme", "${HOME}", "config", "*", "me;rm", "~"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_none(client, folder, tmp_path, seed, name):
    before = sorted(tmp_path.rglob("*"))
    told(upload(client, name, recording(seed)), 400, "name")
    assert sorted(tmp_path.rglob("*")) == before
    assert stored(folder) == []


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "%2e%2e%2fbundled", "..%2f..%2fetc%2fpasswd", "a%00b", "%00", "%ff"]
)
def test_names_in_addresses_lead_nowhere(client, name):
    for answer in (client.get(f"{PATH}/{name}"), client.delete(f"{PATH}/{name}")):
        assert answer.status_code in (404, 405)
    assert client.get(f"{PATH}/{name}/sample").status_code == 404


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"ref_text": None}, "ref_text"),
        ({"ref_text": " "}, "ref_text"),
        ({"ref_text": "..."}, "ref_text"),
        ({"ref_text": "x" * 2001}, "ref_text"),
        ({"ref_text": "a\0b"}, "ref_text"),
        ({"consent": "x" * 2049}, "consent"),
        ({"consent": "\0"}, "consent"),
        ({"type": "prompt"}, "type"),
        ({"name": None}, "name"),
    ],
)
def test_fields_that_cannot_be_used(client, folder, seed, fields, param):
    told(upload(client, **{"name": "me", "data": recording(seed), **fields}), 400, param)
    assert stored(folder) == []


def test_recordings_that_cannot_be_used(client, folder, seed):
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(600 * RATE, np.int16), RATE, format="FLAC")
    wrong = [b"", b"hello", recording(seed, 31, "FLAC")[:200], recording(seed)[:60]]
    wrong += [silence.getvalue(), b"\xff\xfb" + b"\0" * 500, b"RIFF\xff\xff\xff\xffWAVE" * 9]
    assert len(silence.getvalue()) < 300_000  # minutes pass the body's limit
    for data in wrong:
        told(upload(client, "me", data), 400, "audio_sample")
    told(client.post(PATH, data={"name": "me", "ref_text": WORDS, "audio_sample": "x"}), 415)
    files = {"other": ("a.wav", recording(seed))}
    told(client.post(PATH, data={"name": "me", "ref_text": WORDS}, files=files), 400)
    assert stored(folder) == []


BOUNDARY = "----x"


def part(head: str, body: bytes = b"x") -> bytes:
    return f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + body + b"\r\n"


def field(name: str, body: bytes = b"x") -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"', body)


END = f"--{BOUNDARY}--\r\n".encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        END,
        b"nonsense",
        field("name"),  # cut off
        part("X: y") + END,
        part("Content-Disposition: form-data") + END,
        part('Content-Disposition: form-data; name="name"\r\nX: ' + "y" * 100_000) + END,
        part('Content-Disposition: form-data; name="name"' + "\r\nX: y" * 1000) + END,
        field("name", b"x" * 100_000) + END,
        b"".join(field(f"f{index}") for index in range(1000)) + END,
        part('Content-Disposition: form-data; name="a"; filename="../../x"') * 3 + END,
        field("name", b"\xff\xfe\x00") + END,
        part('Content-Disposition: form-data; name="audio_sample"; filename="\0"', b"RIFF") + END,
    ],
    ids=range(13),
)
def test_forms_that_are_none(client, folder, body):
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    told(client.post(PATH, content=body, headers=headers), 400)
    assert stored(folder) == []


@pytest.mark.parametrize(
    "kind",
    ["", "application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/mixed"],
)
def test_other_content_types_are_refused(client, kind):
    told(client.post(PATH, content=b"name=me", headers={"Content-Type": kind}), 415)


@pytest.mark.parametrize(
    "rest", ["", "; boundary=", "; boundary=" + "x" * 10_000, "; charset=nonsense; boundary=x"]
)
def test_boundaries_that_are_none(client, rest):
    headers = {"Content-Type": f"multipart/form-data{rest}"}
    told(client.post(PATH, content=END, headers=headers), 400)


def test_bodies_are_counted_while_they_come(library, folder, seed, monkeypatch):
    monkeypatch.setattr(SpooledTemporaryFile, "rollover", lambda _: 1 / 0)  # never onto a disk
    head = part('Content-Disposition: form-data; name="audio_sample"; filename="a"', b"")
    sent = 0

    def endless():
        nonlocal sent
        yield head
        for _ in range(10_000):
            sent += 65_536
            yield bytes(65_536)

    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    with serving(StubWorker(), library, max_body_bytes=2_000_000) as client:
        with suppress(httpx.TransportError):  # it was still sending when the answer came
            told(client.post(PATH, content=endless(), headers=headers), 413, "audio_sample")
        assert sent < 100_000_000
        assert upload(client, "me", recording(seed, 20)).status_code == 200  # 960 kB
    assert "me.wav" in stored(folder)


def test_an_upload_that_breaks_off_leaves_nothing(library, folder, seed):
    with running(StubWorker(), library) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        form = field("name", b"me") + field("ref_text", WORDS.encode())
        form += part('Content-Disposition: form-data; name="audio_sample"; filename="a"', b"")
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 1000000\r\n"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
        ).encode()
        with socket.create_connection((host, int(port))) as there:
            there.sendall(head + form + recording(seed))
        with httpx.Client(base_url=url) as client:
            assert [one["id"] for one in client.get(PATH).json()["data"]] == ["bundled"]
    assert stored(folder) == []


def test_pages_of_others_cannot_add_or_delete(library, seed):
    with serving(StubWorker(), library) as client:
        client.headers["Origin"] = "https://evil.example"
        told(upload(client, "me", recording(seed)), 403)
        told(client.delete(f"{PATH}/bundled"), 403)


def test_a_key_is_asked_for(library, seed):
    with serving(StubWorker(), library, api_key="secret") as client:
        for answer in (
            client.get(PATH),
            upload(client, "me", recording(seed)),
            client.delete(f"{PATH}/bundled"),
            client.get(f"{PATH}/bundled/sample"),
        ):
            told(answer, 401)


# -- killed while it works ------------------------------------------------------------------------

SERVER = """
import sys
from contextlib import suppress
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from http_client import StubWorker, running
from mlx_higgs.voices.library import VoiceLibrary
with running(StubWorker(), VoiceLibrary(Path(sys.argv[1]), others=[])) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


def keep_adding(url: str, worker: int, seed: int, added: list[str]) -> None:
    with httpx.Client(base_url=url, timeout=10) as client:
        for index in range(10_000):
            name = f"v{worker}-{index}"
            try:
                answer = upload(client, name, recording(seed + index % 7))
            except httpx.TransportError:
                return
            assert answer.status_code == 200, answer.text
            added.append(name)


def test_kill_9_during_uploads_leaves_whole_voices(tmp_path, seed):
    rng = np.random.default_rng(seed)
    added: list[str] = []
    for round_ in range(3):
        tests = str(Path(__file__).parent)
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(tmp_path), tests],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        threads = [
            threading.Thread(target=keep_adding, args=(url, 10 * round_ + i, seed, added))
            for i in range(3)
        ]
        for thread in threads:
            thread.start()
        time.sleep(rng.uniform(0.2, 0.8))
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        for thread in threads:
            thread.join()
        library = VoiceLibrary(tmp_path, others=[])
        names = library.names()
        assert set(added) <= set(names), "an upload that was answered is gone"
        for name in names:
            voice = library.get(name)
            wave, rate = read_clip(voice.clip)
            assert rate == RATE
            assert len(wave) >= RATE
            assert voice.transcript == WORDS
            assert voice.about["sha256"]
        assert len(stored(tmp_path)) == 3 * len(names), "parts of a voice are left"
    assert added
