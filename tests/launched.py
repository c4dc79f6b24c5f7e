"""Processes that work together over MLX's ring, started as ``mlx.launch`` starts them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import pytest

ROOT = Path(__file__).parent.parent
LIMIT = 120.0  # seconds: whoever waits longer waits for ever


@dataclass
class Ended:
    """How one rank ended."""

    code: int
    out: str
    err: str


def ports(count: int) -> list[int]:
    """Ports of this machine that nobody uses; the test skips where there are none."""
    if not mx.distributed.is_available("ring"):
        pytest.skip("this MLX has no ring backend")
    with contextlib.ExitStack() as held:
        found = []
        for _ in range(count):
            try:
                listener = held.enter_context(socket.socket())
                listener.bind(("127.0.0.1", 0))
            except OSError as error:
                pytest.skip(f"no port can be opened here: {error}")
            found.append(listener.getsockname()[1])
        return found


@contextmanager
def started(count: int, *words: object, **environ: str) -> Iterator[list[subprocess.Popen]]:
    """The ranks of ``python WORDS``, each in a session of its own; what is left at the end ends."""
    hosts = [[f"127.0.0.1:{port}"] for port in ports(count)]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(json.dumps(hosts))
        file.flush()
        common = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **environ}
        ranks = [
            subprocess.Popen(
                [sys.executable, *map(str, words)],
                env={**common, "MLX_RANK": str(rank), "MLX_HOSTFILE": file.name},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            for rank in range(count)
        ]
        try:
            yield ranks
        finally:
            kill(ranks)


def kill(ranks: Sequence[subprocess.Popen]) -> None:
    """``kill -9`` of all that still run."""
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(signal.SIGKILL)
    for rank in ranks:
        rank.wait()


def ended(ranks: Sequence[subprocess.Popen]) -> list[Ended]:
    """How they end by themselves; nobody waits for ever."""
    deadline, found = time.monotonic() + LIMIT, []
    for rank in ranks:
        out, err = rank.communicate(timeout=max(1.0, deadline - time.monotonic()))
        found.append(Ended(rank.returncode, out, err))
    return found


def launch(count: int, *words: object, **environ: str) -> list[Ended]:
    """Run ``python WORDS`` as so many ranks to their end."""
    with started(count, *words, **environ) as ranks:
        return ended(ranks)
