"""The application: routes and guards around one worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route, WebSocketRoute

from . import batch_api, chat_api, models, page, socket_api, speech, voices_api
from .answers import Answers
from .errors import as_api_error
from .guards import Guard
from .openapi import document
from .record import Record
from .settings import Settings

if TYPE_CHECKING:
    from ...voices.library import VoiceLibrary
    from ..metrics import Metrics
    from ..worker import Worker

API = (speech, models, voices_api, batch_api, socket_api, chat_api)
VERSION = "/v1"


def create_app(
    worker: Worker, library: VoiceLibrary, settings: Settings, metrics: Metrics
) -> Starlette:
    """The server as an ASGI application; its life starts the worker and ends it."""
    routes = [route for part in API for route in part.ROUTES]
    app = Starlette(
        routes=[*routes, *unversioned(routes), *page.ROUTES],
        middleware=[
            Middleware(Record, settings=settings, metrics=metrics),
            Middleware(Guard, settings=settings, public=page.ROUTES),
        ],
        exception_handlers={HTTPException: _told},
        lifespan=_lifespan,
    )
    app.router.redirect_slashes = False
    app.state.worker, app.state.library = worker, library
    app.state.settings, app.state.metrics = settings, metrics
    app.state.answers = Answers()
    app.state.openapi = describe(settings)
    return app


def describe(settings: Settings) -> dict[str, Any]:
    """The OpenAPI document; it knows no WebSockets."""
    parts = (speech, batch_api, chat_api, voices_api, models)
    return document(settings, [part.docs(settings) for part in parts])


def unversioned(routes: Iterable[BaseRoute]) -> list[BaseRoute]:
    """The same at ``/audio/speech`` as at ``/v1/audio/speech``: some leave the version out."""
    out: list[BaseRoute] = []
    for route in routes:
        if isinstance(route, Route) and route.path.startswith(VERSION):
            path = route.path.removeprefix(VERSION)
            out.append(Route(path, route.endpoint, methods=list(route.methods or ())))
        elif isinstance(route, WebSocketRoute) and route.path.startswith(VERSION):
            out.append(WebSocketRoute(route.path.removeprefix(VERSION), route.endpoint))
    return out


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    worker = app.state.worker
    worker.start()
    try:
        yield
    finally:
        await run_in_threadpool(worker.close)


async def _told(request: Request, error: Exception) -> Response:
    """Starlette's own refusals in our form; OPTIONS says what an address knows."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = {"Allow": ", ".join(allowed_methods(request))}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=allowed)
        error = HTTPException(405, headers=allowed)
    return as_api_error(error).response()


def allowed_methods(request: Request) -> list[str]:
    """Of all routes with this path, not only of the first."""
    found = {"OPTIONS"}
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted(found)
