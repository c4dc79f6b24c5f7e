"""The page at ``/``: its files, which are open to all, and MP3 of what it holds."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ... import encoders
from ..body import read_body
from ..errors import ApiError

if TYPE_CHECKING:
    from ...worker import Facts

FOLDER = Path(__file__).parent
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
INDEX = "index.html"
POLICY = "; ".join(  # what the page may load: its own files, and sounds made in it
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "media-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked again each time; unchanged costs no body
}
PCM = "audio/pcm"


@cache
def files() -> dict[str, tuple[bytes, str, str]]:
    """Path -> bytes, media type, ETag of every file of the page; nothing else is ever opened."""
    found = {}
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in MEDIA_TYPES:
            data = path.read_bytes()
            tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            at = "/" if path.name == INDEX else f"/page/{path.name}"
            found[at] = data, MEDIA_TYPES[path.suffix], tag
    return found


async def file(request: Request) -> Response:
    """A file of the page."""
    data, media_type, tag = files()[request.url.path]
    headers = HEADERS | {"ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type, headers=headers)


async def about(request: Request) -> Response:
    """What the page must know before it asks for anything: the model, its limits, a key or none."""
    state = request.app.state
    worker, settings = state.worker, state.settings
    told = {
        "model": settings.model_id,
        "state": "ready" if worker.ready else "failed" if worker.error else "loading",
        **(known(worker.defaults) if worker.ready else {}),
        "max_input_chars": settings.max_input_chars,
        "max_reference_seconds": settings.max_reference_seconds,
        "max_body_bytes": settings.max_body_bytes,
    }
    return JSONResponse(told)


def known(facts: Facts) -> dict[str, Any]:
    """What a person should know of the model before listening; the words are those it says best."""
    return {"clones": facts.clones, "notice": facts.notice, "words": facts.words}


async def as_mp3(request: Request) -> Response:
    """What the page holds as PCM (s16le, mono, the model's rate) as an MP3 file to keep.

    Raises:
        ApiError: 400, 408, 413, 415.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != PCM:
        message = f"Speech to be made an MP3 is sent as {PCM}."
        raise ApiError(415, message, code="unsupported_media_type")
    data = await read_body(request)
    if not data or len(data) % 2:
        raise ApiError(400, f"{len(data)} bytes are no 16-bit samples.")
    rate = request.app.state.worker.defaults.sample_rate
    mp3 = await run_in_threadpool(_mp3, data, rate)
    return Response(mp3, media_type=encoders.MEDIA_TYPES["mp3"])


def _mp3(data: bytes, rate: int) -> bytes:
    samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
    return encoders.whole("mp3", samples, rate)


# A path per file: these are open without a key to whoever only reads, and hold no secret.
ROUTES = [
    *(Route(path, file, methods=["GET"]) for path in files()),
    Route("/page/about", about, methods=["GET"]),
    Route("/page/mp3", as_mp3, methods=["POST"]),
]
