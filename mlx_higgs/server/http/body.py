"""Reading a request's body: counted while it comes, and JSON without its traps."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from .errors import ApiError
from .settings import Settings

MAX_DEPTH = 64  # of objects and lists in each other
MAX_MARKS = 200_000  # commas and brackets: 16 MB of nothing else would become 400 MB of objects


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object a request holds.

    Raises:
        ApiError: 415 not JSON by its Content-Type, 413 too large, 408 too slow, 400 not usable.
        ClientDisconnect: nobody is there any more.
    """
    check_content_type(request)
    return parse_object(await read_body(request))


def check_content_type(request: Request) -> None:
    """JSON alone: a web page may send anything else to a stranger without asking first."""
    kind, _, rest = request.headers.get("content-type", "").partition(";")
    charset = rest.replace(" ", "").replace('"', "").lower()
    if kind.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        raise ApiError(
            415, "Content-Type must be application/json, in UTF-8.", code="unsupported_media_type"
        )


async def read_body(request: Request) -> bytes:
    """The body, refused as soon as it is too long.

    Raises:
        ApiError: 413 or 408. ClientDisconnect.
    """
    settings: Settings = request.app.state.settings
    limit = settings.max_body_bytes
    if _announced(request) > limit:
        raise too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout):
            async for block in request.stream():
                body += block
                if len(body) > limit:
                    raise too_large(limit)
    except TimeoutError:
        seconds = f"{settings.body_timeout:g} s"
        raise ApiError(
            408,
            f"The body did not come within {seconds}.",
            code="slow",
            headers={"Connection": "close"},  # or it could be waited for without end
        ) from None
    return bytes(body)


def too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"The body is too long: at most {limit} bytes are read.",
        code="too_large",
        headers={"Connection": "close"},  # or uvicorn reads the rest, to throw it away
    )


def parse_object(data: bytes | str) -> dict[str, Any]:
    """A JSON object; duplicate fields, NaN, half characters and endless nesting are refused.

    Raises:
        ApiError: 400.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        if sum(map(text.count, ",[{")) > MAX_MARKS:
            raise ValueError("it holds too many values")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
        _check(value, MAX_DEPTH)
    except RecursionError:
        raise _unusable("it is nested too deeply") from None
    except UnicodeError:  # half a pair of surrogates, too
        raise _unusable("it is not UTF-8") from None
    except ValueError as error:  # a number of thousands of digits, too
        raise _unusable(str(error)) from None
    if not isinstance(value, dict):
        raise _unusable("it must be an object")
    return value


def _announced(request: Request) -> int:
    length = request.headers.get("content-length", "0")
    return int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field is given twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _check(value: Any, depth: int) -> None:
    """Raises ValueError for what no field can hold; UnicodeError for half a character."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, float):
        if value in (float("inf"), float("-inf")):  # 1e999
            raise ValueError("a number is too large")
    elif isinstance(value, (dict, list)):
        if not depth:
            raise RecursionError
        for member in value.values() if isinstance(value, dict) else value:
            _check(member, depth - 1)
        for key in value if isinstance(value, dict) else ():
            key.encode()


def _unusable(why: str) -> ApiError:
    return ApiError(400, f"The body cannot be read as JSON: {why}.", code="invalid_json")


__all__ = ["ClientDisconnect", "check_content_type", "parse_object", "read_body", "read_json"]
