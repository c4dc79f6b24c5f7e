"""Reference clips in requests: every way in gives the same clip, and no way leads elsewhere."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("starlette", reason="needs mlx_higgs[server]")

from http_client import StubWorker, serving  # noqa: E402

from mlx_higgs.server.http import fetch, media  # noqa: E402
from mlx_higgs.server.http.errors import ApiError  # noqa: E402
from mlx_higgs.server.http.settings import Settings  # noqa: E402
from mlx_higgs.server.worker import Facts  # noqa: E402
from mlx_higgs.types import InputError  # noqa: E402
from mlx_higgs.voices import Reference  # noqa: E402
from mlx_higgs.voices.library import VoiceLibrary  # noqa: E402

RATE = 24_000


def recording(seed: int, seconds: float = 1.5, format: str = "WAV", rate: int = RATE) -> bytes:
    """Noise that swells and fades, as a file."""
    count = round(seconds * rate)
    wave = 0.2 * np.random.default_rng(seed).normal(size=count)
    wave *= np.sin(np.linspace(0, np.pi, count)) ** 2
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1, 1), rate, format=format)
    return buffer.getvalue()


def state(clones: bool = True, **settings) -> SimpleNamespace:
    worker = SimpleNamespace(defaults=Facts(clones=clones))
    return SimpleNamespace(settings=Settings(**settings), worker=worker)


def refusal(value, text="Words.", where=None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        media.resolve(value, text, where or state())
    assert caught.value.status == 400
    return caught.value


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


# -- the ways in ----------------------------------------------------------------------------------


def test_every_way_in_gives_the_same_clip(seed, tmp_path, monkeypatch):
    data = recording(seed)
    (tmp_path / "clip.wav").write_bytes(data)
    monkeypatch.setattr(media, "fetch", lambda url, **_: data)
    where = state(allowed_local_media_path=tmp_path, allow_urls=True)
    values = [
        f"data:audio/wav;base64,{encoded(data)}",
        encoded(data),
        base64.encodebytes(data).decode(),
        "clip.wav",
        str(tmp_path / "clip.wav"),
        f"file://{tmp_path}/clip.wav",
        "https://example.org/clip.wav",
    ]
    clips = [media.resolve(value, " These  words. ", where) for value in values]
    for clip in clips:
        assert isinstance(clip, Reference)
        assert clip.wave is not None
        assert clip.transcript == "These words."
        np.testing.assert_array_equal(clip.wave, clips[0].wave)
        assert not clip.wave.flags.writeable
    assert len({clip.path for clip in clips}) == 1


@pytest.mark.parametrize("format", ["WAV", "FLAC", "MP3", "OGG"])
def test_any_known_format_and_rate_becomes_mono_at_24_khz(seed, format):
    clip = media.resolve(encoded(recording(seed, 1.5, format, 32_000)), "Words.", state())
    assert clip.wave is not None
    assert clip.wave.ndim == 1
    assert clip.wave.dtype == np.float32
    assert 1.0 * RATE < len(clip.wave) < 2.2 * RATE


def test_two_clips_with_the_same_words_are_never_one(seed):
    one, other = (media.resolve(encoded(recording(s)), "Words.", state()) for s in (seed, seed + 1))
    assert one != other


def test_words_beside_a_local_clip_are_read(seed, tmp_path):
    (tmp_path / "clip.wav").write_bytes(recording(seed))
    (tmp_path / "clip.txt").write_text("What is said.\n")
    where = state(allowed_local_media_path=tmp_path)
    assert media.resolve("clip.wav", None, where).transcript == "What is said."
    assert media.resolve("clip.wav", "Others.", where).transcript == "Others."


def test_words_are_required_unless_the_checkpoint_takes_none(seed):
    value = encoded(recording(seed))
    assert refusal(value, None).param == "ref_text"
    assert refusal(value, "  ").param == "ref_text"
    assert refusal(value, 7).param == "ref_text"
    assert refusal(value, "x" * 5000).param == "ref_text"
    assert media.resolve(value, None, state(clones=False)).transcript == ""


def test_fields_of_a_body(seed):
    data = encoded(recording(seed))
    one = media.clips({"ref_audio": data, "ref_text": "Words."}, state())
    same = media.clips({"references": [{"audio_path": data, "text": "Words."}]}, state())
    assert one == same
    assert len(one) == 1
    assert media.clips({}, state()) == []
    wrong = [
        {"ref_audio": data, "ref_text": "Words.", "references": [{"audio_path": data}]},
        {"ref_text": "Words."},
        {"references": [{"audio_path": data, "text": "Words."}] * 5},
        {"references": ["clip"]},
        {"references": [{"audio_path": data, "text": "Words.", "more": 1}]},
        {"references": {"audio_path": data}},
        {"references": [{"text": "Words."}]},
        {"ref_audio": 7, "ref_text": "Words."},
        {"ref_audio": "", "ref_text": "Words."},
    ]
    for body in wrong:
        with pytest.raises(ApiError) as caught:
            media.clips(body, state())
        assert caught.value.status == 400
        assert caught.value.param


def test_a_request_with_a_clip_speaks_in_it(seed, tmp_path):
    worker, data = StubWorker(), recording(seed)
    body = {"input": "Hello.", "ref_audio": encoded(data), "ref_text": "Words."}
    with serving(worker, VoiceLibrary(tmp_path, others=[])) as client:
        assert client.post("/v1/audio/speech", json=body).status_code == 200
        (voice,) = worker.requests[0].voice
        np.testing.assert_array_equal(voice.wave, media.decoded(data, 30.0))
        assert not list(tmp_path.iterdir())
        for value in ("/etc/passwd", "http://127.0.0.1/x", "https://example.org/a.wav"):
            answer = client.post("/v1/audio/speech", json=body | {"ref_audio": value})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "ref_audio"


def test_the_engine_takes_a_decoded_clip_as_it_takes_a_file(seed, tmp_path, server):
    from mlx_higgs.audio import read_reference

    path = tmp_path / "clip.wav"
    path.write_bytes(recording(seed))
    read = server.known.encode(Reference(path, "Words."))
    given = server.known.encode(Reference(Path("none"), "Words.", wave=read_reference(path)))
    np.testing.assert_array_equal(np.array(read.codes), np.array(given.codes))


# -- hostile clips --------------------------------------------------------------------------------


def bomb(seconds: int) -> bytes:
    """A FLAC of silence: minutes of it in kilobytes."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", RATE, 1, format="FLAC", subtype="PCM_16") as file:
        for _ in range(seconds):
            file.write(np.zeros(RATE, np.float32))
    return buffer.getvalue()


def forged_wav(channels: int, rate: int, size: int) -> bytes:
    fmt = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2 % 2**32, 2, 16)
    head = b"RIFF" + struct.pack("<I", size) + b"WAVEfmt " + struct.pack("<I", 16) + fmt
    return head + b"data" + struct.pack("<I", size) + bytes(64_000)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello" * 100,
        b"\0" * 4096,
        b"RIFF" + b"\xff" * 4000,
        b"fLaC" + b"\xff" * 4000,
        b"OggS" + b"\0" * 4000,
        b"ID3" + b"\xff" * 4000,
        forged_wav(1, RATE, 0xFFFFFFFF),
        forged_wav(65535, RATE, 64_000),
        forged_wav(1, 1, 64_000),
        forged_wav(1, 0, 64_000),
        forged_wav(1, 2**31, 64_000),
        forged_wav(0, RATE, 64_000),
    ],
    ids=range(13),
)
def test_what_is_no_clip_is_refused(data):
    assert refusal(f"data:audio/wav;base64,{encoded(data)}").param == "ref_audio"


def test_long_clips_are_refused_before_they_fill_the_memory(seed):
    data = bomb(600)
    assert len(data) < 100_000
    assert "at most 30 s" in refusal(encoded(data)).message
    assert (
        "at most 1 s"
        in refusal(encoded(recording(seed)), where=state(max_reference_seconds=1.0)).message
    )


@pytest.mark.parametrize(
    "value",
    [
        "data:audio/wav,RIFF",
        "data:audio/wav;base64",
        "data:;base64,####",
        "data:audio/wav;base64,\u00e9",
        "data:" + "x" * 10_000,
        "A" * 256 + "!",
        "A" * 1000 + " " * 100_000 + "!",
        "ftp://example.org/a.wav",
        "gopher://127.0.0.1/",
        "\0",
    ],
)
def test_what_is_no_value_is_refused(value):
    assert refusal(value, where=state(allow_urls=True)).param == "ref_audio"


# -- paths ----------------------------------------------------------------------------------------


def test_paths_are_off_by_default(seed, tmp_path):
    (tmp_path / "clip.wav").write_bytes(recording(seed))
    there, missing = refusal(str(tmp_path / "clip.wav")), refusal(str(tmp_path / "none.wav"))
    assert there.message == missing.message


def test_nothing_is_told_of_files_elsewhere(seed, tmp_path):
    root, outside = tmp_path / "media", tmp_path / "secret.wav"
    (root / "folder").mkdir(parents=True)
    outside.write_bytes(recording(seed))
    (root / "link.wav").symlink_to(outside)
    (root / "up").symlink_to(tmp_path)
    (root / "circle").symlink_to("circle")
    os.mkfifo(root / "pipe.wav")
    where = state(allowed_local_media_path=root)
    values = [
        "none.wav",
        "../secret.wav",
        "../none.wav",
        "folder/../../secret.wav",
        str(outside),
        str(tmp_path / "none.wav"),
        f"file://{outside}",
        "link.wav",
        "up/secret.wav",
        "circle",
        "pipe.wav",
        "folder",
        ".",
        "/",
        "",
        "clip\0.wav",
        "x.wav" * 1000,
        "/etc/passwd",
        "/dev/zero",
        "/proc/self/environ",
    ]
    told = {refusal(value, where=where).message for value in values if value}
    assert told == {"There is no such clip under the folder of --allowed-local-media-path."}


def test_a_link_put_there_after_the_check_is_not_followed(seed, tmp_path):
    root, outside = tmp_path / "media", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "secret.wav").write_bytes(recording(seed))
    (root / "folder").symlink_to(outside)
    (root / "link.wav").symlink_to(outside / "secret.wav")
    for parts in (("folder", "secret.wav"), ("link.wav",)):
        with pytest.raises(OSError, match=r"directory|symbolic|link"):
            media._open_below(root, parts)


def test_files_are_read_no_further_than_the_limit(tmp_path):
    (tmp_path / "large.wav").write_bytes(bytes(1001))
    assert len(media.read_inside(tmp_path, "large.wav", 1001)) == 1001
    with pytest.raises(ValueError, match="too large"):
        media.read_inside(tmp_path, "large.wav", 1000)


# -- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_public_addresses(address):
    assert fetch.is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.1.1.1",
        "255.255.255.255",
        "240.0.0.1",
        "::",
        "::1",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::7f00:1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:db8::1",
        "nonsense",
        "",
    ],
)
def test_addresses_that_are_not_public(address):
    assert not fetch.is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.wav",
        "https://user@example.org/a.wav",
        "https://user:word@example.org/a.wav",
        "https://example.org:8443/a.wav",
        "https://example.org:x/a.wav",
        "https:///a.wav",
        "https://[::1/a.wav",
        "https://example.org/a b.wav",
        "https://example.org/a\r\nHost: x",
        "https://" + "a" * 3000,
        "file:///etc/passwd",
    ],
)
def test_addresses_of_another_form_are_refused(url, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", never)
    with pytest.raises(InputError):
        fetch.fetch(url, max_bytes=1000, seconds=5)


def never(*_, **__):
    raise AssertionError("it was asked")


def answers(*addresses: str):
    return lambda *_, **__: [(2, 1, 6, "", (address, 443)) for address in addresses]


@pytest.mark.parametrize("found", [(), ("127.0.0.1",), ("8.8.8.8", "10.0.0.1"), ("8.8.8.8", "::1")])
def test_every_answer_of_the_name_service_must_be_public(found, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", answers(*found))
    monkeypatch.setattr(socket, "create_connection", never)
    with pytest.raises(InputError) as caught:
        fetch.fetch("https://example.org/a.wav", max_bytes=1000, seconds=5)
    assert str(caught.value) == "The host 'example.org' is unknown, or not on the public internet."


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1", "localhost", "[::1]"])
def test_other_spellings_of_this_machine_are_refused(host, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", never)
    with pytest.raises(InputError):
        fetch.fetch(f"https://{host}/a.wav", max_bytes=1000, seconds=5)


class Site:
    """An https server on this machine that answers with ``reply`` and counts who comes."""

    def __init__(self, folder: Path, monkeypatch):
        self.reply, self.heard, self.looked_up = b"", [], 0
        self._monkeypatch = monkeypatch
        certificate, key = folder / "cert.pem", folder / "key.pem"
        made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
        named = "-subj /CN=example.org -addext subjectAltName=DNS:example.org"
        files = ["-keyout", str(key), "-out", str(certificate)]
        subprocess.run(
            [*made.split(), *named.split(), *files],
            check=True,
            capture_output=True,
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        monkeypatch.setattr(fetch, "PORT", self._listener.getsockname()[1])
        monkeypatch.setattr(fetch, "split", lambda url: fetch.urlsplit(url))
        monkeypatch.setattr(fetch, "public_address", self._look_up)
        trusting = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr(fetch, "context", lambda: trusting)
        threading.Thread(target=self._serve, daemon=True).start()

    def _look_up(self, host: str) -> str:
        self.looked_up += 1
        return "127.0.0.1"

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(plain,), daemon=True).start()

    def _answer(self, plain: socket.socket) -> None:
        try:
            with self._context.wrap_socket(plain, server_side=True) as secure:
                self.heard.append(secure.recv(65_536))
                for part in self.reply if isinstance(self.reply, list) else [self.reply]:
                    secure.sendall(part)
                    if isinstance(self.reply, list):
                        threading.Event().wait(0.05)
        except OSError:
            pass

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def site(tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    found = Site(tmp_path, monkeypatch)
    yield found
    found.close()


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(host: str = "example.org", *, max_bytes: int = 10_000, seconds: float = 5) -> bytes:
    return fetch.fetch(f"https://{host}/a.wav?x=1", max_bytes=max_bytes, seconds=seconds)


def test_a_file_comes_from_the_checked_address(site):
    site.reply = ok(b"sound")
    assert get() == b"sound"
    assert site.looked_up == 1  # a second look-up could answer otherwise
    assert site.heard[0].startswith(b"GET /a.wav?x=1 HTTP/1.1\r\nHost: example.org")


def test_the_certificate_must_be_the_hosts(site):
    site.reply = ok(b"sound")
    with pytest.raises(InputError, match="cannot be read"):
        get("other.example.org")
    assert not any(site.heard)


def test_bodies_are_bounded_while_they_are_read(site):
    site.reply = ok(bytes(10_000))
    assert len(get()) == 10_000
    for reply in (ok(bytes(10_001)), b"HTTP/1.1 200 OK\r\n\r\n" + bytes(10_001)):
        site.reply = reply
        with pytest.raises(InputError, match="larger than 10000 bytes"):
            get()


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"",
        b"HTTP/1.1 302 Found\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: https://example.org/again\r\n\r\n",
    ],
)
def test_answers_that_are_no_file_are_refused(site, reply):
    site.reply = reply
    with pytest.raises(InputError):
        get()
    assert len(site.heard) <= 1 + fetch.MAX_REDIRECTS


def test_a_server_that_keeps_sending_is_cut_off(site):
    site.reply = [b"HTTP/1.1 200 OK\r\n\r\n", *[b"x"] * 1000]
    with pytest.raises(InputError, match="longer than 1 s"):
        get(seconds=1.0)
    site.reply = [b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 1000]
    with pytest.raises(InputError, match="longer than 1 s"):
        get(seconds=1.0)


def test_where_a_redirect_leads_is_checked_anew(monkeypatch):
    asked = []

    def found(parts, address, *_):
        asked.append(address)
        return "https://inside.example.org/a.wav"

    private = {"example.org": "8.8.8.8", "inside.example.org": "10.0.0.1"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: answers(private[host])())
    monkeypatch.setattr(fetch, "_get", found)
    with pytest.raises(InputError, match="not on the public internet"):
        get()
    assert asked == ["8.8.8.8"]
    monkeypatch.setattr(fetch, "_get", lambda *_: "http://example.org/a.wav")
    with pytest.raises(InputError, match="must be https"):
        get()


def test_what_waits_for_a_thread_is_bounded(monkeypatch):
    monkeypatch.setattr(media, "MAX_WAITING", 2)
    go = threading.Event()

    async def crowd() -> list:
        waiting = [asyncio.create_task(media.off_loop(go.wait)) for _ in range(media.THREADS + 2)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as caught:
            await media.off_loop(go.wait)
        assert caught.value.status == 429
        assert "Retry-After" in caught.value.headers
        go.set()
        return await asyncio.gather(*waiting)

    assert all(asyncio.run(crowd()))
    assert media._inside == 0
