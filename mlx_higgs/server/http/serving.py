"""uvicorn around the application: the socket, the log, the end."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from starlette.applications import Starlette

from ...cli import note
from ...types import CheckpointError, InputError
from .settings import Settings

KEEP_ALIVE = 15  # seconds a connection may be idle between requests
MAX_MESSAGE = 4 * 1024 * 1024  # bytes of a WebSocket message
BACKLOG = 128
CONNECTIONS = 512  # more are told to come again
LOOK = 0.05  # seconds between two looks at whether the model is loaded


class Server(uvicorn.Server):
    """A uvicorn server that says when the model is ready, and stops if it never will be.

    Args:
        on_ready: called once the worker is. ``failed`` says why it will not be.
    """

    def __init__(
        self, app: Starlette, settings: Settings, on_ready: Callable[[], None] = lambda: None
    ):
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # anybody can write X-Forwarded-For
                lifespan="on",
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
                limit_concurrency=CONNECTIONS,
                ws_max_size=MAX_MESSAGE,
                backlog=BACKLOG,
            )
        )
        self._worker, self._on_ready = app.state.worker, on_ready
        self.failed: str | None = None

    async def main_loop(self) -> None:
        watching = asyncio.ensure_future(self._watch())
        try:
            await super().main_loop()
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        while not self._worker.ready and not self._worker.error:
            await asyncio.sleep(LOOK)
        if self._worker.ready:
            self._on_ready()
        else:
            self.failed, self.should_exit = self._worker.error, True


def serve_until_stopped(
    app: Starlette, settings: Settings, opened: socket.socket, *, quiet: bool = False
) -> None:
    """Serve on an open socket until SIGINT or SIGTERM, which is no failure.

    Raises:
        CheckpointError: the model could not be loaded.
    """
    _log(quiet)

    def ready() -> None:
        if app.state.worker.defaults.notice:
            note(app.state.worker.defaults.notice)
        print(f"Ready: {url(opened)} (API: {url(opened)}/v1)", flush=True)

    server = Server(app, settings, ready)
    with suppress(KeyboardInterrupt):  # uvicorn has finished, and passes the signal on
        server.run([opened])
    if server.failed:
        raise CheckpointError(server.failed)


def _log(quiet: bool) -> None:
    """Our log tells of every request; uvicorn's would show tracebacks with what requests held."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)
    logging.getLogger("mlx_higgs.server").setLevel(logging.WARNING if quiet else logging.INFO)


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: the port is taken or not ours, the host is none of this machine's.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind)
    except (OSError, UnicodeError) as error:
        raise InputError(f"The host {host!r} cannot be listened on ({error}).") from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(BACKLOG)
    except OSError as error:
        opened.close()
        raise InputError(_why(host, port, error)) from error
    return opened


def url(opened: socket.socket) -> str:
    """Where a person points the browser to."""
    host, port = opened.getsockname()[:2]
    with suppress(KeyError):
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}[host]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _why(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} of {host} is in use: stop what uses it, or choose another --port."
    if error.errno == errno.EACCES:
        return f"Port {port} needs more rights than you have: choose a --port above 1023."
    return f"{host} port {port} cannot be listened on ({error.strerror})."
