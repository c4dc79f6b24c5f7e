"""Waiting until a thread that used MLX is gone for good."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path

LONGEST = 5.0  # seconds for what takes milliseconds
TASKS = Path("/proc/self/task")


def join(thread: threading.Thread) -> None:
    """Join a thread, and wait for what it lets go of after its last line of Python.

    MLX keeps compiled functions per thread, Python objects among them, and frees them when the
    system's thread ends. Before Python 3.13 ``Thread.join`` returns earlier than that; an
    interpreter that ends meanwhile aborts ("terminate called without an active exception").
    """
    thread.join()
    end = time.monotonic() + LONGEST
    while _exists(thread) and time.monotonic() < end:
        time.sleep(0.001)


def _exists(thread: threading.Thread) -> bool:
    if TASKS.is_dir():
        return (TASKS / str(thread.native_id)).exists()
    if sys.platform == "darwin":  # elsewhere a thread that is gone must not be asked
        try:
            signal.pthread_kill(thread.ident or 0, 0)
            return True
        except ProcessLookupError:
            pass
    return False
