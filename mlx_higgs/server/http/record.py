"""The outermost layer: every failure answers in one form, every answer is a line in the log."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..failures import described
from ..ticket import Unavailable
from .errors import ApiError, as_api_error
from .farewell import answer_and_close
from .guards import FRIEND
from .settings import Settings

if TYPE_CHECKING:
    from ..metrics import Metrics

log = logging.getLogger("mlx_higgs.server")
LONGEST_PATH = 120  # characters shown
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEBSOCKET")
HEADERS = [
    (b"server", b"mlx_higgs"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


EXPOSED = (
    b"X-Sample-Rate, X-Channels, X-Bit-Depth, X-Seed, X-Voice, X-Model, X-Finish-Reason, "
    b"X-Audio-Seconds, X-Ignored-Fields, Retry-After"
)
CORS = [(b"access-control-expose-headers", EXPOSED), (b"vary", b"Origin")]


class Record:
    """ASGI middleware: headers of every answer, the access log, and a net under all routes.

    Nothing of a request's text is logged: no query, no body, no message of an unforeseen error.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics):
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        answer = Answer(scope, send)
        started = time.perf_counter()
        try:
            await self._app(scope, receive, answer.send)
        except ClientDisconnect:
            answer.status = answer.status or 499
        except asyncio.CancelledError:  # the server stops: what is half said ends where it is
            await self._answer(Unavailable("The server is stopping."), scope, receive, answer)
            raise
        except Exception as error:
            await self._answer(error, scope, receive, answer)
        finally:
            self._note(scope, answer, 1000 * (time.perf_counter() - started))

    def _note(self, scope: Scope, answer: Answer, took: float) -> None:
        method, status = scope.get("method", "WEBSOCKET"), answer.status
        line = "%s %s %s %d bytes %.0f ms"
        log.info(line, shown(method, 16), shown_path(scope), status or "-", answer.size, took)
        route = getattr(scope.get("route"), "path", "other")  # a stranger's words are no labels
        self._metrics.response(method if method in METHODS else "other", route, status)

    async def _answer(
        self, error: Exception, scope: Scope, receive: Receive, answer: Answer
    ) -> None:
        told = as_api_error(error)
        if told.status == 500:
            log.error("%s", described(error, self._settings.log_text))
        if answer.status:  # too late for a status: uvicorn then cuts the connection
            return
        if scope["type"] == "websocket":
            return await refuse_socket(told, scope, receive, answer.send)
        if "Connection" in told.headers:
            return await answer_and_close(told.response(), scope, receive, answer.send)
        await told.response()(scope, receive, answer.send)


class Answer:
    """Passes an answer on and remembers its size."""

    def __init__(self, scope: Scope, send: Send):
        self._scope, self._send = scope, send
        self.status = self.size = 0

    async def send(self, message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            message = {**message, "headers": self._headers(message)}
        elif message["type"] == "websocket.accept":
            self.status = 101
        self.size += len(message.get("body") or message.get("bytes") or b"")
        await self._send(message)

    def _headers(self, message: Message) -> list[tuple[bytes, bytes]]:
        own = list(message.get("headers", []))
        named = {name.lower() for name, _ in own}
        if origin := self._scope.get(FRIEND):
            own += [(b"access-control-allow-origin", origin.encode("latin-1")), *CORS]
        return own + [pair for pair in HEADERS if pair[0] not in named]


async def refuse_socket(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Before it is accepted: as HTTP where the server can, as a closed door where not."""
    if "websocket.http.response" in scope.get("extensions", {}):
        await error.response()(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": error.message[:100]})


def shown_path(scope: Scope) -> str:
    """As it was sent, for a log of one line each."""
    raw = scope.get("raw_path") or scope["path"].encode("utf-8", "replace")
    return shown(raw.split(b"?")[0].decode("ascii", "backslashreplace"), LONGEST_PATH)


def shown(text: str, longest: int) -> str:
    safe = "".join(char if "!" <= char <= "~" else "?" for char in text[: longest + 1])
    return safe if len(safe) <= longest else safe[:longest] + "..."
