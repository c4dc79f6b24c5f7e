"""Many clients at once on the real server, some of which leave: ``python tests/soak.py``.

It starts ``python -m mlx_higgs.server`` on a free port of this machine and stops by itself. Every
finished answer must be what the same request gets alone; those who leave must cost nothing after;
refusals must be counted; the server's memory must be what it was; nothing may hang.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile

from mlx_higgs.server.encoders import MEDIA_TYPES, STREAMABLE

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("One.", "Two three.", "Four five six.", "Seven. Eight nine.")
LEAVE = 0.3  # of the clients, before they have all
SLOW = 0.1  # of the clients wait between two reads
UPLOADS = 0.05  # of what a client does is adding a voice, listing it, removing it
HANG = 180.0  # seconds without a byte
CALM = 60.0  # seconds after the last client in which the server must be idle
GROWTH = 0.05  # of the memory, at most
EXACT_BYTES = ("mp3", "wav", "pcm", "flac")  # Opus draws a number for every file


@dataclass(frozen=True)
class Case:
    """One request; ``form``: whole, audio or sse."""

    text: str
    seed: int
    format: str
    form: str

    @property
    def body(self) -> dict[str, Any]:
        body = {"input": self.text, "seed": self.seed, "response_format": self.format}
        return body | ({"stream": False} if self.form == "whole" else {"stream_format": self.form})


@dataclass
class Tally:
    """What came of it all; ``faults`` are reasons to fail."""

    counts: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, count: int = 1) -> None:
        with self.lock:
            self.counts[name] += count

    def fault(self, line: str) -> None:
        with self.lock:
            self.faults.append(line)

    def check(self, holds: bool, line: str) -> None:
        if not holds:
            self.fault(line)


class Server:
    """The server's process, and what it tells of itself."""

    def __init__(self, process: subprocess.Popen, address: str):
        self.process, self.address = process, address

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=HANG, trust_env=False)

    def memory(self) -> int:
        """Bytes resident."""
        shown = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(self.process.pid)],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(shown.stdout) * 1024

    def metric(self, name: str) -> float:
        with self.client() as client:
            text = client.get("/metrics").text
        found = re.search(rf"^mlx_higgs_{re.escape(name)} (.+)$", text, re.MULTILINE)
        assert found, f"/metrics lacks {name}"
        return float(found[1])

    def calm(self, seconds: float) -> bool:
        """Whether it has nothing to do, soon."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.metric("running") == self.metric("waiting") == 0:
                return True
            time.sleep(0.2)
        return False


@contextmanager
def serving(folder: Path, options: list[str]) -> Iterator[Server]:
    log = (folder / "log").open("w+")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mlx_higgs.server",
            "--port",
            "0",
            "--voices",
            str(folder),
            *options,
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    try:
        assert process.stdout is not None
        ready = re.search(r"http://[^ ]+", process.stdout.readline())
        assert ready, f"the server did not start:\n{(folder / 'log').read_text()}"
        yield Server(process, ready[0])
    finally:
        process.kill()
        process.wait()
        log.close()


# -- one client ---------------------------------------------------------------------------------


def ask(client: httpx.Client, case: Case, leave: int | None = None, pause: float = 0.0):
    """The answer's bytes, or its status if it is another than 200; None if we left.

    Args:
        leave: parts after which to leave; 0 before the first.
    """
    with client.stream("POST", "/v1/audio/speech", json=case.body) as response:
        if response.status_code != 200:
            response.read()
            return response
        if leave == 0:
            return None
        parts = []
        for part in response.iter_bytes():
            parts.append(part)
            if leave is not None and len(parts) >= leave:
                return None
            time.sleep(pause)
        return b"".join(parts)


def audio_of(case: Case, data: bytes) -> bytes:
    """What must be the same: the bytes, or an Opus file's samples."""
    if case.form == "sse":
        data = joined_events(data)
    if case.format in EXACT_BYTES:
        return data
    return soundfile.read(io.BytesIO(data), dtype="int16")[0].tobytes()


def joined_events(data: bytes) -> bytes:
    """The audio in server-sent events, which must end with ``done``."""
    lines = [line[5:] for line in data.decode().splitlines() if line.startswith("data:")]
    events = [json.loads(line) for line in lines]
    assert events[-1]["type"] == "speech.audio.done", events[-1]
    deltas = [base64.b64decode(event["audio"]) for event in events[:-1]]
    return b"".join(deltas)


def go_away_at_once(server: Server, case: Case) -> None:
    """Leave without waiting for the status, as a closed tab does."""
    with server.client() as client:
        client.timeout = httpx.Timeout(HANG, read=random.uniform(0.01, 0.5))
        with suppress(httpx.ReadTimeout):
            ask(client, case, leave=0)


class Client(threading.Thread):
    """Asks one thing after the other until ``end``."""

    def __init__(self, server: Server, expected: dict[Case, bytes], tally: Tally, seed: int):
        super().__init__(daemon=True)
        self._server, self._expected, self._tally = server, expected, tally
        self._random = random.Random(seed)
        self.number, self.end = seed, 0.0

    def run(self) -> None:
        try:
            with self._server.client() as client:
                while time.monotonic() < self.end:
                    self._act(client)
        except Exception as error:
            self._tally.fault(f"client {self.number}: {type(error).__name__}: {error}")

    def _act(self, client: httpx.Client) -> None:
        draw, case = self._random.random(), self._random.choice(list(self._expected))
        if draw < UPLOADS:
            self._upload(client)
        elif draw < UPLOADS + LEAVE / 3:
            go_away_at_once(self._server, case)
            self._tally.add("left before the answer")
        elif draw < UPLOADS + LEAVE:
            self._take(case, ask(client, case, leave=self._random.randint(0, 3)))
        else:
            pause = 0.05 if draw > 1 - SLOW else 0.0
            self._take(case, ask(client, case, pause=pause))

    def _take(self, case: Case, answer: Any) -> None:
        if answer is None:
            self._tally.add("left in the middle")
        elif isinstance(answer, bytes):
            same = audio_of(case, answer) == self._expected[case]
            self._tally.check(same, f"{case} is not what it is alone")
            self._tally.add("finished")
        elif answer.status_code == 429:
            self._tally.add("refused")
            self._tally.check(int(answer.headers["Retry-After"]) >= 1, "a Retry-After below 1")
            time.sleep(self._random.uniform(0.1, 1.0))
        else:
            self._tally.fault(f"{case}: {answer.status_code} {answer.text[:200]}")

    def _upload(self, client: httpx.Client) -> None:
        name = f"soak_{self.number}"
        sample = {"audio_sample": ("clip.wav", clip(self.number), "audio/wav")}
        data = {"name": name, "ref_text": "A tone that nobody said.", "consent": "mine"}
        added = client.post("/v1/audio/voices", data=data, files=sample)
        listed = client.get("/v1/audio/voices").json()["voices"]
        removed = client.delete(f"/v1/audio/voices/{name}")
        self._tally.check(
            added.is_success and removed.is_success and name in [one["id"] for one in listed],
            f"the voice: {added.status_code} {added.text[:200]}, {removed.status_code}",
        )
        self._tally.add("voices")


def clip(number: int) -> bytes:
    """Four seconds of a tone that swells and fades."""
    t = np.arange(4 * 24_000) / 24_000
    wave = 0.3 * np.sin(2 * np.pi * (150 + number) * t) * np.sin(np.pi * t / 4)
    file = io.BytesIO()
    soundfile.write(file, wave, 24_000, format="WAV")
    return file.getvalue()


# -- all of them --------------------------------------------------------------------------------


def alone(server: Server, seed: int) -> dict[Case, bytes]:
    """Every kind of request, one after the other."""
    cases = [
        Case(TEXTS[number % len(TEXTS)], seed + number, format, form)
        for number, (format, form) in enumerate(
            (format, form)
            for format in MEDIA_TYPES
            for form in ("whole", "audio", "sse")
            if form == "whole" or format in STREAMABLE
        )
    ]
    with server.client() as client:
        answers = {case: ask(client, case) for case in cases}
    for case, answer in answers.items():
        assert isinstance(answer, bytes), f"{case}: {answer and answer.text}"
    return {case: audio_of(case, answer) for case, answer in answers.items()}


def crowd(server: Server, expected: dict[Case, bytes], tally: Tally, count: int, seconds: float):
    """``count`` clients for so long."""
    clients = [Client(server, expected, tally, number) for number in range(count)]
    for client in clients:
        client.end = time.monotonic() + seconds
        client.start()
    end = time.monotonic() + seconds + HANG
    for client in clients:
        client.join(max(0.0, end - time.monotonic()))
        tally.check(not client.is_alive(), f"client {client.number} hangs")


def soak(server: Server, arguments: argparse.Namespace) -> Tally:
    expected = alone(server, arguments.seed)
    say(f"{len(expected)} kinds of requests answered alone")
    crowd(server, expected, Tally(), arguments.clients, arguments.warm_up)
    tally = Tally()
    tally.check(server.calm(CALM), "not idle after the warm-up")
    before, refused = server.memory(), server.metric("refused_total")
    crowd(server, expected, tally, arguments.clients, arguments.seconds)
    tally.check(server.calm(CALM), "not idle after the last client")
    after = server.memory()
    told = server.metric("refused_total") - refused
    growth = after / before - 1
    tally.check(growth <= GROWTH, f"memory grew by {growth:.1%}: {before} to {after} bytes")
    tally.check(
        told >= tally.counts["refused"], f"{told} refusals counted of {tally.counts['refused']}"
    )
    tally.check(tally.counts["finished"] > 0, "nothing was finished")
    say(f"memory {before / 2**20:.0f} MiB before, {after / 2**20:.0f} MiB after ({growth:+.1%})")
    say(f"refusals: {tally.counts['refused']} seen by clients that waited, {told:.0f} counted")
    return tally


def stop_under_load(server: Server, tally: Tally) -> None:
    """SIGTERM with requests under way: a clean end, soon."""
    case = Case("One two three four five six.", 1, "pcm", "audio")
    for _ in range(4):
        threading.Thread(target=suppressed, args=(server, case), daemon=True).start()
    time.sleep(1.0)
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    try:
        code = server.process.wait(CALM)
        say(f"SIGTERM under load: exit code {code} after {time.monotonic() - started:.1f} s")
        tally.check(code == 0, f"exit code {code}")
    except subprocess.TimeoutExpired:
        tally.fault("SIGTERM did not end it")


def suppressed(server: Server, case: Case) -> None:
    with suppress(httpx.HTTPError), server.client() as client:
        ask(client, case)


def say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of load (%(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="at once (%(default)s)")
    parser.add_argument("--warm-up", type=float, default=20.0, help="seconds before (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**31), help="of all requests")
    parser.add_argument("--max-batch", default="6", help="of the server (%(default)s)")
    parser.add_argument("--queue", default="6", help="of the server (%(default)s)")
    arguments = parser.parse_args()
    say(f"seed {arguments.seed}, {arguments.clients} clients, {arguments.seconds:.0f} s")
    options = ["--quiet", "--max-batch", arguments.max_batch, "--queue", arguments.queue]
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), options) as server:
        tally = soak(server, arguments)
        stop_under_load(server, tally)
        errors = (Path(folder) / "log").read_text()
    tally.check("terminate called" not in errors, "the process aborted")
    for word in ("Traceback", "--log-text shows"):
        tally.check(word not in errors, f"the server's log:\n{errors[-3000:]}")
    say(", ".join(f"{count} {name}" for name, count in sorted(tally.counts.items())))
    for fault in tally.faults:
        say(f"FAULT {fault}")
    say("FAILED" if tally.faults else "PASSED")
    return bool(tally.faults)


if __name__ == "__main__":
    raise SystemExit(main())
