"""Who may use the server: the Host, the Origin and the key are checked before anything is read."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import ApiError
from .settings import Settings

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
READING = ("GET", "HEAD", "OPTIONS")
OPEN = ("/health", "/ready")
LISTINGS = ("/v1/models", "/v1/audio/models", "/v1/audio/voices")
KEY_PROTOCOL = "openai-insecure-api-key."  # browsers cannot send headers with a WebSocket
FRIEND = "mlx_higgs.friend"  # in the scope: the foreign origin whose pages may read the answer


class Guard:
    """ASGI middleware that lets through who may come in.

    Args:
        public: routes that need no key, as that of the page at ``/``, where one is asked for it.
    """

    def __init__(self, app: ASGIApp, settings: Settings, public: Iterable[BaseRoute] = ()):
        self._app, self._settings, self._public = app, settings, list(public)
        self._hosts = _host_names(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        connection = HTTPConnection(scope)
        origin = self._checked_origin(connection)
        if origin:
            scope[FRIEND] = origin
            if _is_preflight(connection):
                return await _preflight()(scope, receive, send)
        if not self._is_open(connection):
            self._check_key(connection)
        await self._app(scope, receive, send)

    def _checked_origin(self, connection: HTTPConnection) -> str | None:
        """The foreign origin that may read the answer, if there is one.

        Raises:
            ApiError: 403, a host or an origin that is not ours.
        """
        hosts = connection.headers.getlist("host")
        if self._hosts and (len(hosts) != 1 or _without_port(hosts[0]) not in self._hosts):
            raise ApiError(
                403,
                "This server is not called by that Host name: see --allowed-hosts.",
                code="host_not_allowed",
            )
        origin = connection.headers.get("origin")
        if origin is None or _netloc(origin) == (hosts[0].lower() if hosts else ""):
            return None
        allowed = self._settings.allowed_origins
        if origin in allowed or "*" in allowed:
            return origin
        # Reading is left to the browser: it shows no page an answer that lacks our consent. What
        # acts, and sockets, which browsers ask nobody about, is refused.
        if connection.scope["type"] == "websocket" or connection.scope["method"] not in READING:
            raise ApiError(
                403,
                "Pages of that Origin may not use this server: see --allowed-origins.",
                code="origin_not_allowed",
            )
        return None

    def _is_open(self, connection: HTTPConnection) -> bool:
        scope = connection.scope
        path, method = scope["path"], scope.get("method", "")
        public = path in OPEN or any(
            route.matches(scope)[0] is not Match.NONE for route in self._public
        )
        if public and method in READING:
            return True
        if path == "/metrics" and self._settings.loopback:
            return True
        listing = path in LISTINGS or f"/v1{path}" in LISTINGS
        return self._settings.open_listings and listing and method in READING

    def _check_key(self, connection: HTTPConnection) -> None:
        wanted = self._settings.api_key
        if wanted is None or _same(_key(connection.headers), wanted):
            return
        raise ApiError(
            401,
            "The API key is missing or wrong: send it as Authorization: Bearer KEY.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def protocol(connection: HTTPConnection) -> str | None:
    """The subprotocol a WebSocket should accept: the first that is no key."""
    offered = _offered(connection.headers)
    return next((one for one in offered if not one.startswith(KEY_PROTOCOL)), None)


def _host_names(settings: Settings) -> set[str]:
    """Empty: any. A key keeps strangers out; without one, a page could rename itself to us."""
    named = {name.lower() for name in settings.allowed_hosts}
    return named | {*LOOPBACK} if named or settings.loopback else set()


def _without_port(host: str) -> str:
    name, _, port = host.lower().rpartition(":")
    return name if name and port.isdigit() and not name.endswith(":") else host.lower()


def _netloc(origin: str) -> str:
    scheme, _, host = origin.lower().partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme, "")
    return host.removesuffix(default) if default else ""


def _key(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    keys = [one for one in _offered(headers) if one.startswith(KEY_PROTOCOL)]
    return keys[0].removeprefix(KEY_PROTOCOL) if keys else ""


def _offered(headers: Headers) -> list[str]:
    joined = ",".join(headers.getlist("sec-websocket-protocol"))
    return [one.strip() for one in joined.split(",") if one.strip()]


def _same(given: str, wanted: str) -> bool:
    """In a time that does not tell how much of it is right."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def _is_preflight(connection: HTTPConnection) -> bool:
    asked = "access-control-request-method" in connection.headers
    return connection.scope.get("method") == "OPTIONS" and asked


def _preflight() -> Response:
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": "GET, POST, DELETE",
            "Access-Control-Allow-Headers": "Authorization, Content-Type",
            "Access-Control-Max-Age": "600",
        },
    )
