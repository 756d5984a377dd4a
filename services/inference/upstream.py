"""HTTP/1.1 to the servers behind the gateway: kept connections, bytes as they come, and nothing a proxy does not need.

A general client spends more time per request than all the rest of the gateway. Response bodies are read as they
are consumed, so a slow reader slows the server and not our memory. Does not follow redirects, decompress or retry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Self
from urllib.parse import urlsplit

import httptools

Headers = Sequence[tuple[bytes, bytes]]
READ = 256 * 1024
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


class Exchange:
    """One request and its response on one connection; made by `Upstream.send`."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, chunked: bool = False, kept: bool = False
    ) -> None:
        self.reader, self.writer = reader, writer
        self._chunked, self._kept = chunked, kept
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.started = False
        self._head_done = self._keep = False
        self._bodies: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    async def head(self) -> Self:
        """Wait for status and headers. Raises `Lost`."""
        while not self._head_done:
            await self._read()
        return self

    async def body(self) -> bytes:
        """The next piece of the body, empty at its end. Raises `Lost`."""
        while not self._bodies and not self.complete:
            await self._read()
        piece = self._bodies[0] if len(self._bodies) == 1 else b"".join(self._bodies)
        self._bodies.clear()
        return piece

    async def write(self, piece: bytes, last: bool = False) -> None:
        """Send more of the request's body, as fast as the server reads it. Raises `OSError`."""
        if self._chunked and (piece or last):
            piece = (b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b"") + (b"0\r\n\r\n" if last else b"")
        self.writer.write(piece)
        await self.writer.drain()

    def abort(self) -> None:
        """Drop the connection: the server stops working on the request."""
        transport = self.writer.transport
        if transport is not None:
            transport.abort()

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another request."""
        return self.complete and self._keep and not self.writer.is_closing()

    async def _read(self) -> None:
        try:
            data = await self.reader.read(READ)
            if data:
                self.started = True
                self._parser.feed_data(data)
                return
        except (OSError, httptools.HttpParserError) as error:
            raise Lost(str(error), self._kept and not self.started) from error
        raise Lost("connection closed", self._kept and not self.started)

    # Called by the parser:
    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._head_done = True

    def on_body(self, body: bytes) -> None:
        self._bodies.append(body)

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
        kept = self._take(url)
        reader, writer = kept or await _connect(url)
        writer.write(_head(url, start, headers, b"content-length: %d" % len(body)) + body)
        return Exchange(reader, writer, kept=kept is not None)

    async def open(self, url: str, start: bytes, headers: Headers, length: bytes | None) -> Exchange:
        """Send a request whose body is still to `write`, on a connection of its own, so that it is never sent twice. `length`: of
        the body; None: it goes in chunks. Raises `OSError`."""
        reader, writer = await _connect(url)
        framing = b"transfer-encoding: chunked" if length is None else b"content-length: " + length
        writer.write(_head(url, start, headers, framing + b"\r\nconnection: close"))
        return Exchange(reader, writer, chunked=length is None)

    def release(self, url: str, exchange: Exchange) -> None:
        """Keep the connection for another request, or drop it."""
        if exchange.reusable:
            self._idle.setdefault(url, []).append(exchange)
            return
        exchange.abort()
        if not exchange.started:  # the server is gone, and with it the others
            for other in self._idle.pop(url, []):
                other.abort()

    def _take(self, url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        kept = self._idle.get(url)
        while kept:
            exchange = kept.pop()
            if not exchange.reader.at_eof() and not exchange.writer.is_closing():
                return exchange.reader, exchange.writer
            exchange.abort()
        return None


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    try:
        return await asyncio.wait_for(
            asyncio.open_connection(parts.hostname, parts.port or 80, limit=READ), CONNECT_SECONDS
        )
    except TimeoutError as error:
        raise ConnectionError(f"{url} did not answer") from error


def _head(url: str, start: bytes, headers: Headers, framing: bytes) -> bytes:
    lines = [start + b" HTTP/1.1", b"host: " + url.split("//", 1)[1].rstrip("/").encode(), framing]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"
