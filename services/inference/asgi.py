"""The gateway's side of ASGI: read a request, notice a client that hangs up, pass a response on. Decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

from services.inference.upstream import HOP_BY_HOP, Exchange
from services.inference.usage import Tap
from understudy.service.web import Receive, Send

NOT_PASSED_ON = (HOP_BY_HOP | {b"date", b"server"}) - {b"content-length"}
"""Response headers that our own server writes. The length stays: without it ours would send chunks."""


MOMENT = 0.2
"""Seconds."""


class Gone(Exception):
    """The client hung up."""


class TooLarge(Exception):
    """The request body is longer than allowed."""


class Hangup:
    """Notices that the client hung up, and drops the exchange it was waiting for; `with Hangup(receive) as hangup:`.

    Looks for the first time after a moment, in which most requests are over: to wait for a client costs as much as a quarter of
    all else.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._exchange: Exchange | None = None
        self._task: asyncio.Future[Any] | None = None

    def __enter__(self) -> Self:
        self._start = asyncio.get_running_loop().call_later(MOMENT, self._look)
        return self

    def __exit__(self, *_: object) -> None:
        self._start.cancel()
        if self._task:
            self._task.cancel()

    def watch(self, exchange: Exchange) -> None:
        """Drop `exchange` when the client hangs up."""
        self._exchange = exchange
        if not self.still_there():
            exchange.abort()

    def still_there(self) -> bool:
        """Whether the client waits for an answer, as far as that is known."""
        return self._task is None or not self._task.done()

    def _look(self) -> None:
        self._task = asyncio.ensure_future(self._receive())
        self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Future[Any]) -> None:
        if not task.cancelled() and self._exchange:
            self._exchange.abort()


async def feed(exchange: Exchange, receive: Receive) -> None:
    """Send the client's body on; afterwards, wait for the client to hang up and then drop the exchange."""
    try:
        async for piece in pieces(receive):
            await exchange.write(piece)
        await exchange.write(b"", last=True)
        await receive()
    except Gone:
        pass
    except OSError:  # the server reads no further: its answer says why
        return
    exchange.abort()


async def read(receive: Receive, limit: int, hold: Callable[[int], None]) -> bytes:
    """The whole request body; `hold` hears of each piece how long it is, and may raise. Raises `TooLarge` and `Gone`."""
    body, size = [], 0
    async for piece in pieces(receive):
        hold(len(piece))
        body.append(piece)
        size += len(piece)
        if size > limit:
            raise TooLarge
    return body[0] if len(body) == 1 else b"".join(body)


async def pieces(receive: Receive) -> AsyncIterator[bytes]:
    """The request body as it comes; how slowly it may is for the listener to say. Raises `Gone`."""
    while True:
        event = await receive()
        if event["type"] != "http.request":
            raise Gone
        yield event.get("body", b"")
        if not event.get("more_body"):
            return


async def answer(exchange: Exchange, send: Send, bodyless: bool = False, tap: Tap | None = None) -> None:
    """Pass the response on, piece by piece; `tap` reads along."""
    headers = [header for header in exchange.headers if header[0] not in NOT_PASSED_ON]
    await send({"type": "http.response.start", "status": exchange.status, "headers": headers})
    more = not bodyless
    while more:
        piece = await exchange.body()
        more = not exchange.complete
        if tap:
            piece = tap.feed(piece) if more else tap.feed(piece) + tap.end()
            if not piece and more:
                continue
        await send({"type": "http.response.body", "body": piece, "more_body": more})
    if bodyless:
        await send({"type": "http.response.body", "body": b""})
