"""Every failure in one form: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ...types import CheckpointError, GenerationError, HiggsError, InputError
from ..ticket import Busy, TimedOut, Unavailable

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
AGAIN = 5  # seconds after which a request may be tried again, where nothing better is known


class ApiError(Exception):
    """What a client is told instead of an answer.

    Args:
        status: of HTTP, 400 to 599.
        message: a sentence that says the value and the way out.
        type: OpenAI's class of it; None takes the one of the status.
        param: the field it is about.
        code: a word that programs can compare.
        headers: more of them, ``Retry-After`` for one.
    """

    def __init__(
        self,
        status: int,
        message: str,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.type = type or TYPES.get(
            status, "server_error" if status >= 500 else "invalid_request_error"
        )
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON of it; a text that UTF-8 cannot hold is shown escaped."""
        message = " ".join(self.message.split()).encode("utf-8", "backslashreplace").decode()
        error = {"message": message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def as_api_error(error: BaseException) -> ApiError:
    """Whatever went wrong, as a client may see it: what nobody foresaw says nothing of itself."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(
            error.status_code,
            _sentence(error),
            code=CODES.get(error.status_code),
            headers=error.headers,
        )
    if isinstance(error, Busy):
        return ApiError(429, str(error), code="server_busy", headers=_again(error.retry_after))
    if isinstance(error, Unavailable):
        return ApiError(
            503, str(error), code="unavailable", headers=_again(error.retry_after or AGAIN)
        )
    if isinstance(error, (TimeoutError, TimedOut)):
        return ApiError(503, "It took longer than this server allows.", code="timeout")
    if isinstance(error, GenerationError):  # the model's failure; another seed may do
        return ApiError(503, str(error), code="generation_failed")
    if isinstance(error, CheckpointError):  # the server's files, not the client's
        return ApiError(503, "The model cannot be used: see the server's log.", code="model_failed")
    if isinstance(error, InputError):
        return ApiError(400, str(error))
    if isinstance(error, HiggsError):
        return ApiError(503, str(error), code="unavailable", headers=_again(AGAIN))
    return ApiError(500, "The server failed in a way nobody foresaw: see its log.", code="internal")


def _again(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def _sentence(error: HTTPException) -> str:
    if error.status_code == 404:
        return "There is nothing at this address: /openapi.json lists what there is."
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return f"This address does not know the method: {allowed or 'another one'} would do."
    return str(error.detail)
