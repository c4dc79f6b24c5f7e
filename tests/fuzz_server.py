"""``python tests/fuzz_server.py --count 10000``: the real server, and requests that mean it harm.

Some are drawn by schemathesis from the server's own OpenAPI document, most by ``hostile.py``.
Nothing may be answered with a 5xx but 503, every refusal has the one form, no file may appear
outside the voices' folder, and in the end the same process must be there and speak.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from hostile import CUT, SPEECH, VOICES, Attack, attack, clips

ROOT = Path(__file__).parent.parent
COMMAND = (sys.executable, "-m", "mlx_higgs.server")
PATIENCE = 2.0  # seconds; who waits longer leaves, which the server must bear as well
OPTIONS = ("--timeout", "30", "--max-input-chars", "80", "--max-batch", "2", "--queue", "2")
OPTIONS += ("--max-body-mb", "4", "--max-voices", "50", "--default-voice", "en_man")
STARTING = 120.0  # seconds
TURNS = 8  # threads of hostile requests: more than there are places
SHOWN = 20  # complaints
DOCUMENTED = 0.3  # of the requests
ERROR = {"message", "type", "param", "code"}


@dataclass
class Tally:
    """What was answered how often, and what must not have been."""

    statuses: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)

    def answer(self, what: str, response: httpx.Response) -> None:
        """Count an answer, and complain of one that should not be."""
        status = response.status_code
        self.statuses[str(status)] += 1
        if status >= 500 and status != 503:
            self.complain(what, f"answered {status}: {response.text[:300]}")
        if status >= 400 and response.request.method != "HEAD" and not formed(response):
            self.complain(what, f"answered {status} in another form: {response.text[:300]}")

    def complain(self, what: str, why: str) -> None:
        self.complaints.append(f"{what[:600]}\n    {why}")

    @property
    def total(self) -> int:
        return sum(self.statuses.values())


def formed(response: httpx.Response) -> bool:
    """Whether a refusal is ``{"error": {...}}``, or the status of ``/ready``."""
    try:
        told = response.json()
    except ValueError:
        return False
    if response.url.path == "/ready":
        return "status" in told
    return told.keys() == {"error"} and told["error"].keys() == ERROR


@contextmanager
def server(folder: Path, model: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server as a process of its own, with its voices in ``folder``, and its address."""
    log = (folder.parent / "server.log").open("w")
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", "--model", model, "--voices", str(folder), *OPTIONS],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Ready: "), (folder.parent / "server.log").read_text()
        yield process, line.split()[1]
        process.terminate()
        assert process.wait(60) == 0, f"it ended with {process.returncode}"
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
        log.close()


# -- hostile requests -----------------------------------------------------------------------------


def send_hostile(url: str, count: int, seed: int, tally: Tally) -> None:
    rng = random.Random(seed)
    with httpx.Client(base_url=url, timeout=PATIENCE) as client:
        for _ in range(count):
            one = attack(rng)
            if one.raw is not None:
                send_raw(url, one.raw, tally)
            else:
                send(client, one, tally)


def send(client: httpx.Client, one: Attack, tally: Tally) -> None:
    what = f"{one.method} {one.path} {one.headers} {one.content[:300]!r}"
    try:
        sent = client.request(one.method, one.path, headers=one.headers, content=one.content)
        tally.answer(what, sent)
    except httpx.TimeoutException:
        tally.statuses["left"] += 1
    except (httpx.RemoteProtocolError, httpx.WriteError, httpx.ReadError):
        tally.statuses["cut"] += 1  # a stream that failed, or a door closed on a long body
    except (httpx.InvalidURL, UnicodeError, ValueError):
        tally.statuses["unsendable"] += 1


def send_raw(url: str, data: bytes, tally: Tally) -> None:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), PATIENCE) as opened:
        opened.settimeout(0.5)  # of a request without an end, nothing comes
        try:
            opened.sendall(data)
            first = opened.recv(4096)
        except TimeoutError:
            first = b""
        except OSError:
            first = b"reset"
    status = first.split()[1].decode() if first.startswith(b"HTTP/1.1 ") else "no answer"
    tally.statuses[status] += 1
    if status.startswith("5") and status != "503":
        tally.complain(repr(data[:300]), f"answered {first[:300]!r}")


# -- what the document says ------------------------------------------------------------------------


def send_documented(url: str, count: int, seed: int, tally: Tally) -> None:
    """Requests that the document allows, and such as it forbids."""
    import schemathesis
    from schemathesis import GenerationMode

    document = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in document.get_all_operations()]
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    rounds = [(one, mode) for one in operations for mode in modes if draws(one, mode)]
    weights = [8 if one.method == "post" else 1 for one, _ in rounds]
    for (operation, mode), weight in zip(rounds, weights, strict=True):
        share = max(1, count * weight // sum(weights))
        run_cases(operation, mode, share, seed, lambda case: send_case(url, case, tally))


def draws(operation, mode) -> bool:
    """Whether there is anything to draw: a request without parameters has no wrong form."""
    return mode.is_positive or operation.method == "post"


def run_cases(operation, mode, count: int, seed: int, each: Callable) -> None:
    import hypothesis

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def run(case):
        each(case)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()


def send_case(url: str, case, tally: Tally) -> None:
    from requests import RequestException, Timeout
    from schemathesis.checks import load_all_checks
    from schemathesis.core.failures import FailureGroup
    from schemathesis.specs.openapi import checks

    load_all_checks()
    shorten(case.body)
    kept = (
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
        checks.negative_data_rejection,
    )
    try:
        response = case.call(base_url=url, timeout=PATIENCE)
    except Timeout:
        tally.statuses["left"] += 1
        return
    except (RequestException, UnicodeError, ValueError):  # cut, or nothing that HTTP can hold
        tally.statuses["cut"] += 1
        return
    seen = httpx.Response(
        response.status_code,
        content=response.content,
        request=httpx.Request(case.method, response.request.url or url),
    )
    what = f"{case.method} {case.formatted_path} {str(case.body)[:300]}"
    tally.answer(what, seen)
    try:
        case.validate_response(response, checks=kept)
    except FailureGroup as failures:
        for failure in failures.exceptions:
            tally.complain(what, str(failure))


def shorten(body: object) -> None:
    """What is really said may be short; what was wrong stays wrong."""
    for one in [body, *(body.get("items") or [] if isinstance(body, dict) else [])]:
        if not isinstance(one, dict):
            continue
        for name in ("max_new_tokens", "max_tokens"):
            if type(one.get(name)) is int and CUT < one[name] < 2**31:
                one[name] = CUT
        if "input" in one and "max_tokens" not in one:
            one.setdefault("max_new_tokens", CUT)


# -- the whole ------------------------------------------------------------------------------------


def fuzz(count: int, seed: int, model: str = "demo", *, documented: float = DOCUMENTED) -> Tally:
    """Send so many requests to a fresh server; ``documented`` of them from its document."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as scratch:
        voices = Path(scratch) / "inner" / "voices"
        voices.mkdir(parents=True)
        (Path(scratch) / "canary.txt").write_text("canary")
        before = outside(Path(scratch), voices)
        with server(voices, model) as (process, url):
            send_all(url, count, seed, tally, documented)
            check_alive(process, url, tally)
        check_files(Path(scratch), voices, before, tally)
        log = (voices.parent / "server.log").read_text()
    for word in ("Traceback", "--log-text shows"):
        if word in log:
            tally.complain("the log", log[max(0, log.index(word) - 200) :][:1500])
    return tally


def send_all(url: str, count: int, seed: int, tally: Tally, documented: float) -> None:
    clips()  # made once, before the threads ask for them
    by_document = round(count * documented)
    each = -(-(count - by_document) // TURNS)
    jobs = [(send_hostile, each, seed + turn) for turn in range(TURNS)]
    jobs += [(send_documented, by_document, seed)] if by_document else []
    threads = [
        threading.Thread(target=told, args=(tally, job, url, size, start, tally))
        for job, size, start in jobs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if (missing := count - tally.total) > 0:  # a request without parameters is drawn but once
        told(tally, send_hostile, url, missing, seed + TURNS, tally)


def told(tally: Tally, job: Callable, *arguments) -> None:
    """A failure of ours is a complaint, too: it hides what was not sent."""
    try:
        job(*arguments)
    except BaseException as error:
        tally.complain(job.__name__, f"{type(error).__name__}: {error}"[:1500])


def check_alive(process: subprocess.Popen[str], url: str, tally: Tally) -> None:
    """The same process, ready, and it speaks once those before it are done."""
    if process.poll() is not None:
        tally.complain("the process", f"ended with {process.returncode}")
        return
    body = {"input": "one", "max_new_tokens": 40, "response_format": "wav", "seed": 1}
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline:
        answer = httpx.post(url + SPEECH, json=body, timeout=STARTING)
        if answer.status_code == 200:
            break
        time.sleep(1)
    else:
        tally.complain("a request like any other", f"answered {answer.text[:300]}")
    if httpx.get(f"{url}/ready").status_code != 200:
        tally.complain("/ready", "it is not")


def outside(scratch: Path, voices: Path) -> set[Path]:
    return {path for path in scratch.rglob("*") if not path.is_relative_to(voices)}


def check_files(scratch: Path, voices: Path, before: set[Path], tally: Tally) -> None:
    strange = outside(scratch, voices) - before - {voices.parent / "server.log"}
    for path in strange:
        tally.complain(VOICES, f"made {path}")
    for path in voices.rglob("*"):
        if path.parent != voices or not re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", path.name):
            tally.complain(VOICES, f"made {path}")
    if (scratch / "canary.txt").read_text() != "canary":
        tally.complain(VOICES, "changed a file that is not its own")


def main() -> int:
    parser = argparse.ArgumentParser(description="Requests that mean a server harm.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn and printed")
    parser.add_argument("--model", default="demo")
    arguments = parser.parse_args()
    seed = random.randrange(2**31) if arguments.seed is None else arguments.seed
    started = time.monotonic()
    tally = fuzz(arguments.count, seed, arguments.model)
    print(f"{tally.total} requests, seed {seed}, {time.monotonic() - started:.0f} s")
    print(json.dumps(dict(tally.statuses.most_common())))
    for complaint in tally.complaints[:SHOWN]:
        print(complaint)
    print(f"{len(tally.complaints)} complaints")
    return 1 if tally.complaints else 0


if __name__ == "__main__":
    raise SystemExit(main())
