"""How long a listener waits for its clients: uvicorn's HTTP/1.1, which by itself waits for ever, and keeps every byte meanwhile.

A head comes whole within `HEAD` seconds, in `MOST_HEAD` bytes. Of a body something comes every `PAUSE` seconds, and `SLOWEST`
bytes a second over `OVER` seconds. Else the answer is 408, or 431, and the connection ends. Time in which we do not read does
not count: then it is we who are slow. Connections beyond `most_connections()` end with 503. What comes behind a body that is
sent in chunks (trailers) is dropped: uvicorn would put it among the headers, which have been looked at by then.

Looks at each connection once every `LOOK` seconds, so that a request costs nothing for it. Does not bound how large a body
is, nor how slowly a client reads its answer.
"""

from __future__ import annotations

import asyncio
import json
import resource
from functools import cache
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD, PAUSE, OVER, LOOK = 15.0, 30.0, 60.0, 3.0
"""Seconds."""
SLOWEST = 1024
"""Bytes a second."""
MOST_HEAD, MOST_HEADERS = 64 * 1024, 128
"""Bytes of a head, and headers in it."""
MOST_WAITING = 16
"""Requests of one connection that wait for the answer to the one before: uvicorn makes each of them ready at once."""
MOST = 8192
"""Connections at once, where the process may open three times as many files: each may need one more to what is behind."""


@cache
def most_connections() -> int:
    """Open connections of one listener. Raises this process's own limit of open files as far as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = 3 * MOST if hard == resource.RLIM_INFINITY else min(hard, 3 * MOST)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return files // 3


class Patience(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._look_again: asyncio.TimerHandle | None = None
        self._in_head = True
        self._began = 0.0
        """When the head, or the body, began that is waited for."""
        self._came = self._seen = 0
        """Bytes that came since, and how many of them at the last look that found new ones."""
        self._moved = 0.0
        """When that was."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "There are too many connections. Try again in a moment.")
            return
        self._begin()
        self._look_again = self.loop.call_later(LOOK, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look_again:
            self._look_again.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():  # what still comes after a refusal is for nobody
            self._came += len(data)
            super().data_received(data)
            if self._in_head and self._came > MOST_HEAD:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"A head has {MOST_HEAD} bytes at most.")

    def on_message_begin(self) -> None:
        self._in_head = True
        self._begin()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > MOST_HEADERS and not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"A head has {MOST_HEADERS} headers at most.")

    def on_headers_complete(self) -> None:
        if self.transport.is_closing():
            return
        if len(self.pipeline) >= MOST_WAITING:
            self.transport.close()
            return
        self._in_head = False
        self._begin()
        super().on_headers_complete()
        self.headers = []  # for trailers, and for nobody: the scope has the list of the head

    def _begin(self) -> None:
        self._began, self._came, self._seen = self.loop.time(), 0, 0
        self._moved = self._began

    def _look(self) -> None:
        """Whether the client has kept us waiting for too long."""
        self._look_again = self.loop.call_later(LOOK, self._look)
        now, cycle = self.loop.time(), self.cycle
        if self.timeout_keep_alive_task is not None or self.flow.read_paused:
            self._begin()  # it need not send anything now
        elif cycle is None or cycle.response_complete:
            if now - self._began > HEAD:
                self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The head of the request came too slowly.")
        elif cycle.more_body:
            if self._came != self._seen:
                self._seen, self._moved = self._came, now
            passed = now - self._began
            if now - self._moved > PAUSE or (passed > OVER and self._came < passed * SLOWEST):
                self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The body of the request came too slowly.")
        else:
            self._begin()

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
            code = status.phrase.lower().replace(" ", "_")
            error = {"message": message, "type": kind, "param": None, "code": code}
            body = json.dumps({"error": error}).encode()
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nretry-after: 5\r\n"
                b"connection: close\r\n\r\n%s" % (status, status.phrase.encode(), len(body), body)
            )
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the app writes nothing behind that
            self.cycle.message_event.set()
        self.transport.close()
