"""HTTP/1.1 to the servers behind the gateway: kept connections, bytes as they come, and nothing a proxy does not need.

A general client spends more time per request than all the rest of the gateway. Response bodies are read as they
are consumed, so a slow reader slows the server and not our memory. Does not follow redirects, decompress or retry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Self, cast
from urllib.parse import urlsplit

import httptools

Headers = Sequence[tuple[bytes, bytes]]
READ = 256 * 1024
"""Bytes of a response that are read ahead."""
CONNECT_SECONDS = 5.0
HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer", b"upgrade")
) | {b"transfer-encoding", b"content-length", b"host", b"expect"}
"""Headers about one connection, which nobody passes on; those on length are written afresh."""


class Lost(ConnectionError):
    """The server ended the connection before its response was complete."""

    def __init__(self, reason: str, idle: bool) -> None:
        super().__init__(reason)
        self.idle = idle
        """Whether the connection was one that had been kept, and no byte of a response came: it had most likely ended before."""


class Exchange(asyncio.Protocol):
    """A connection, and the request and its response that are on it now; made by `Upstream`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._lost: str | None = None
        """Why the connection has ended."""
        self._read_waits: asyncio.Future[None] | None = None
        self._write_waits: asyncio.Future[None] | None = None
        self._full = False
        self.begin(kept=False)

    def begin(self, *, kept: bool, chunked: bool = False) -> None:
        """The next request. `kept`: there was one before on this connection; `chunked`: how the body is sent that is still to write."""
        self._chunked, self._kept = chunked, kept
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.started = False
        self._head_done = self._keep = self._paused = False
        self._bodies: list[bytes] = []
        self._unread = 0
        self._parser = httptools.HttpResponseParser(self)

    async def head(self) -> Self:
        """Wait for status and headers. Raises `Lost`."""
        while not self._head_done:
            await self._more()
        return self

    async def body(self) -> bytes:
        """The next piece of the body, empty at its end. Raises `Lost`."""
        while not self._bodies and not self.complete:
            await self._more()
        piece = self._bodies[0] if len(self._bodies) == 1 else b"".join(self._bodies)
        self._bodies.clear()
        self._unread = 0
        if self._paused and self._transport:
            self._paused = False
            self._transport.resume_reading()
        return piece

    async def write(self, piece: bytes, last: bool = False) -> None:
        """Send more of the request, as fast as the server reads it. Raises `OSError`."""
        if self._chunked and (piece or last):
            piece = (b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b"") + (b"0\r\n\r\n" if last else b"")
        self.put(piece)
        if self._full and self._lost is None:
            self._write_waits = self._loop.create_future()
            await self._write_waits

    def put(self, piece: bytes) -> None:
        """Send bytes of the request, without waiting. Raises `OSError`."""
        if self._lost is not None or self._transport is None:
            raise ConnectionError(self._lost)
        self._transport.write(piece)

    def abort(self) -> None:
        """Drop the connection: the server stops working on the request."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def open(self) -> bool:
        """Whether the connection is there."""
        return self._lost is None and self._transport is not None and not self._transport.is_closing()

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another request."""
        return self.complete and self._keep and self.open

    async def _more(self) -> None:
        if self._lost is not None:
            raise Lost(self._lost, self._kept and not self.started)
        self._read_waits = self._loop.create_future()
        await self._read_waits

    # Called by the connection:
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.complete:  # nobody asked for that
            self.abort()
            return
        self.started = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._lost = str(error)
            self.abort()
        if self._unread > READ and not self._paused and self._transport:
            self._paused = True
            self._transport.pause_reading()
        _wake(self._read_waits)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lost is None:
            self._lost = str(exc) if exc else "connection closed"
        _wake(self._read_waits)
        _wake(self._write_waits)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        _wake(self._write_waits)

    # Called by the parser:
    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._head_done = True

    def on_body(self, body: bytes) -> None:
        self._bodies.append(body)
        self._unread += len(body)

    def on_message_complete(self) -> None:
        self.complete = True
        self._keep = self._parser.should_keep_alive()  # afterwards the parser thinks of the next message


class Upstream:
    """Sends requests over kept connections; for one event loop. Headers are those to be sent, none of them `HOP_BY_HOP`."""

    def __init__(self) -> None:
        self._idle: dict[str, list[Exchange]] = {}

    async def send(self, url: str, start: bytes, headers: Headers, body: bytes) -> Exchange:
        """Send a request (`start` is `METHOD target`); the response's head is still to come. Raises `OSError`.

        A kept connection may turn out dead: then `head` raises `Lost`, `idle`.
        """
        exchange = self._take(url)
        if exchange is None:
            self._forget_the_dead()
            exchange = await _connect(url)
        else:
            exchange.begin(kept=True)
        exchange.put(_head(url, start, headers, b"content-length: %d" % len(body)) + body)
        return exchange

    async def open(self, url: str, start: bytes, headers: Headers, length: bytes | None) -> Exchange:
        """Send a request whose body is still to `write`, on a connection of its own, so that it is never sent twice. `length`: of
        the body; None: it goes in chunks. Raises `OSError`."""
        exchange = await _connect(url)
        exchange.begin(kept=False, chunked=length is None)
        framing = b"transfer-encoding: chunked" if length is None else b"content-length: " + length
        exchange.put(_head(url, start, headers, framing + b"\r\nconnection: close"))
        return exchange

    def release(self, url: str, exchange: Exchange) -> None:
        """Keep the connection for another request, or drop it."""
        if exchange.reusable:
            self._idle.setdefault(url, []).append(exchange)
            return
        exchange.abort()
        if not exchange.started:  # the server is gone, and with it the others
            for other in self._idle.pop(url, []):
                other.abort()

    def _forget_the_dead(self) -> None:
        """Connections that their server ended: an engine that is started again has another address."""
        for url, kept in list(self._idle.items()):
            self._idle[url] = [exchange for exchange in kept if exchange.open]
            if not self._idle[url]:
                del self._idle[url]

    def _take(self, url: str) -> Exchange | None:
        kept = self._idle.get(url)
        while kept:
            exchange = kept.pop()
            if exchange.open:
                return exchange
        return None


async def _connect(url: str) -> Exchange:
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, exchange = await asyncio.get_running_loop().create_connection(
                Exchange, parts.hostname or "", parts.port or 80
            )
    except TimeoutError as error:
        raise ConnectionError(f"{url} did not answer") from error
    return exchange


def _wake(waits: asyncio.Future[None] | None) -> None:
    if waits is not None and not waits.done():
        waits.set_result(None)


def _head(url: str, start: bytes, headers: Headers, framing: bytes) -> bytes:
    lines = [start + b" HTTP/1.1", b"host: " + url.split("//", 1)[1].rstrip("/").encode(), framing]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"
