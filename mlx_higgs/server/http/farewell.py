"""An answer before the whole request is read, and the end of the connection after it."""

from __future__ import annotations

import asyncio

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

SILENCE = 0.5  # seconds without a byte after which nobody is sending any more
LONGEST = 5.0  # seconds in all
LARGEST = 64 * 1024 * 1024  # bytes in all


async def answer_and_close(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an answer that closes its connection, so that it arrives.

    A socket that is closed over unread bytes resets the connection, and a client that still sends
    then loses the answer (RFC 9112, 9.6). What comes after the answer is thrown away for a while.
    """

    async def unfinished(message: Message) -> None:
        await send({**message, "more_body": True} if "body" in message else message)

    await response(scope, receive, unfinished)
    await _throw_away(receive)
    await send({"type": "http.response.body", "body": b""})


async def _throw_away(receive: Receive) -> None:
    """Until the request is at its end, its client is gone or silent, or it is enough."""
    count = 0
    try:
        async with asyncio.timeout(LONGEST):
            while count < LARGEST:
                message = await asyncio.wait_for(receive(), SILENCE)
                count += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return
    except TimeoutError:
        return
