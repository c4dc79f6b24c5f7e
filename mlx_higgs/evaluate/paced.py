"""A loop that only ends by itself, made to go on as many frames as it is told."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import mlx.core as mx


def paced(loop: Callable[[Callable[[], None]], None]) -> Callable[[int], None]:
    """Work that goes on with ``loop`` where its last call left it.

    The loop runs on a thread of its own, which ends with the work; while the one runs, the other
    waits, so that processor time is that of the loop.

    Args:
        loop: gets a function to call before every frame.
    """
    turns = _Turns(loop)

    def work(frames: int) -> None:
        turns.run(frames)

    # at the end of the program it may sleep on: MLX ends with a thread only while Python runs
    weakref.finalize(work, turns.close).atexit = False
    return work


class _Turns:
    def __init__(self, loop: Callable[[Callable[[], None]], None]):
        self._loop = loop
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._left, self._closed = 0, False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def run(self, frames: int) -> None:
        """Raises whatever ended the loop."""
        self._left = frames
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._paused.acquire()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        if self._thread.is_alive():
            self._closed = True
            self._go.release()
            self._thread.join()

    def _run(self) -> None:
        try:
            self._loop(self._pause)
            self._error = RuntimeError("The loop ended.")
        except BaseException as error:
            self._error = error
        self._paused.release()

    def _pause(self) -> None:
        if not self._left:
            mx.synchronize()
            self._paused.release()
            self._go.acquire()
        if self._closed:
            raise SystemExit
        self._left -= 1
