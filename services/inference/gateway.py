"""The one endpoint, as an ASGI layer in front of this service's own API.

Nothing gets further than `admission.py` lets it. Completions go to the engine that has the model, byte for byte both ways,
within bounds (`question.py`). Other families of OpenAI's API go to the service that has them. Everything else falls through to
the app behind. A request for an engine that is starting waits; it is sent again only where nobody can have begun to work on
it. What says who a client is goes no further than here. Starts no engine itself (`fleet.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Protocol

from fastapi.responses import Response

from services.inference.admission import Admission, Caller, Refused
from services.inference.asgi import Gone, Hangup, TooLarge, answer, feed, read
from services.inference.engine_errors import as_openai
from services.inference.meter import Family, Meter
from services.inference.question import Question, Wrong, asking_for_usage, question
from services.inference.upstream import HOP_BY_HOP, Exchange, Headers, Lost, Upstream
from services.inference.usage import Tap, Usage
from understudy.errors import NotFound, UnderstudyError
from understudy.service.doors import family, hot
from understudy.service.token import HEADER, KEY_ID, OWNER
from understudy.service.web import App, Receive, Scope, Send, error_response

COMPLETIONS = hot()
OURS = HOP_BY_HOP | {b"authorization", b"cookie", b"forwarded", b"x-request-id"}
"""Headers that say who somebody is, where from, or which request this is, or are about the client's own connection: those behind
believe only us."""
OUR_FAMILIES = (b"x-understudy-", b"x-forwarded-", b"proxy-")
FOR_OURSELVES = (b"cookie", b"content-length", b"transfer-encoding", b"host")
"""What the API and the pages of this service may see all the same."""
OWN = "own"
"""What the metrics call this service's own API."""
MOST_HELD = 512 * 1024**2
"""Bytes of requests of one listener that are under way, in sum."""
LOOK_AGAIN = 0.05
"""Seconds between two looks at an engine that is starting."""
LARGEST_ERROR = 1 << 20
"""Bytes that are read of an engine's error."""


class Routes(Protocol):
    """What the gateway needs of the fleet."""

    def route(self, model: str) -> str | None:
        """URL of the engine that serves `model` now."""

    def want(self, model: str) -> str | None:
        """Bring `model` up; why that fails, if it does. Raises `NotFound`."""


class Gateway:
    """ASGI application; `families` maps a path prefix to the service that has it and its URL, `token` is the installation's."""

    def __init__(
        self,
        app: App,
        routes: Routes,
        families: Mapping[str, tuple[str, str]],
        token: str,
        admission: Admission,
        usage: Usage,
        *,
        max_body: int,
        hold_seconds: float,
    ) -> None:
        self._app, self._routes, self._families = app, routes, families
        self._admission, self._usage = admission, usage
        self._max_body, self._hold = max_body, hold_seconds
        self._token = (HEADER, token.encode())
        self._bearer = (b"authorization", b"Bearer " + token.encode())
        self._upstream = Upstream()
        self._held = 0
        """Bytes of completion requests that are under way."""
        self._metrics = {name: Family(name) for name in (*COMPLETIONS, *families, OWN)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        name = family(scope["path"])
        with Meter(self._metrics.get(name) or self._metrics[OWN], send) as meter:
            try:
                caller = self._admission.admit(scope)
                with self._admission.counted(caller):
                    if name in COMPLETIONS and scope["method"] == "POST":
                        await self._complete(caller, scope, receive, meter.send)
                    elif name in self._families:
                        await self._pass_on(*self._families[name], caller, scope, receive, meter.send)
                    else:
                        kept = [header for header in scope["headers"] if header[0] in FOR_OURSELVES]
                        headers = [*_anonymous(scope["headers"]), *_on_behalf_of(caller), *kept]
                        await self._app({**scope, "headers": headers}, receive, meter.send)
            except Refused as refused:
                await refused.response(scope, receive, meter.send)

    async def _complete(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            held, self._held = held + size, self._held + size
            if self._held > MOST_HELD:
                raise Refused(_unavailable("Too much waits to be answered. Try again in a moment.", "overloaded"))

        try:
            body = await read(receive, self._max_body, hold)
            asked = question(body, bounded=not caller.insider)
            hide = caller.key is not None and asked.stream is True and not asked.wants_usage
            if hide:
                body = asking_for_usage(body, asked)
            tap = Tap(stream=asked.stream is True, hide=hide) if caller.key or asked.stream else None
            with Hangup(receive) as hangup:
                try:
                    url, exchange = await self._ask(asked, scope, body, hangup)
                except Gone:
                    if caller.key:
                        self._usage.add(caller.key, asked.model, (0, 0))
                    raise
                try:
                    if exchange.status >= 400:
                        await as_openai(exchange.status, await _whole(exchange))(scope, receive, send)
                    else:
                        await answer(exchange, send, tap=tap)
                finally:
                    self._upstream.release(url, exchange)
                    if caller.key and tap:
                        self._usage.add(caller.key, asked.model, tap.tokens)
        except Wrong as wrong:
            raise Refused(error_response(400, str(wrong), param=wrong.param)) from None
        except TooLarge:
            message = f"The request body is larger than {self._max_body} bytes. Send fewer or shorter messages."
            raise Refused(error_response(413, message, code="request_too_large")) from None
        except (Gone, Lost):  # nobody to tell, or too late: the missing end of the body says that the answer broke off
            pass
        finally:
            self._held -= held

    async def _ask(self, asked: Question, scope: Scope, body: bytes, hangup: Hangup) -> tuple[str, Exchange]:
        """Send the request to the engine of its model until an answer begins."""
        model, give_up, reason, again = asked.model, time.monotonic() + self._hold, "it is starting", True
        start = b"POST " + scope["raw_path"]
        headers = [*_anonymous(scope["headers"]), self._bearer]
        while True:
            url = self._routes.route(model)
            if url is None:
                try:
                    reason = self._routes.want(model) or reason
                except NotFound as error:
                    raise Refused(error_response(404, str(error), param="model", code="model_not_found")) from None
                except UnderstudyError as error:
                    reason, give_up = str(error), 0.0
                url = self._routes.route(model)
            if url is not None:
                try:
                    return url, await self._send(url, start, headers, body, hangup)
                except OSError as error:
                    reason = f"it ended the connection ({error})"
                    if isinstance(error, Lost):
                        if again and error.idle and hangup.still_there():
                            again = False  # the kept connection had timed out, so nobody has seen the request
                            continue
                        give_up = 0.0  # the request may be what ended the engine: another shall not have it
            if not hangup.still_there():
                raise Gone
            if time.monotonic() >= give_up:
                message = f"The engine of `{model}` is not ready: {reason}. Try again in a moment."
                raise Refused(_unavailable(message, "engine_not_ready"))
            await asyncio.sleep(LOOK_AGAIN)

    async def _send(self, url: str, start: bytes, headers: Headers, body: bytes, hangup: Hangup) -> Exchange:
        """One attempt: the exchange with its head read. Raises `Lost`, or another `OSError` when nothing was sent."""
        exchange = await self._upstream.send(url, start, headers, body)
        hangup.watch(exchange)
        try:
            return await exchange.head()
        except BaseException:
            self._upstream.release(url, exchange)
            raise

    async def _pass_on(self, name: str, url: str, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        """Reverse proxy to another service; the body is sent on while it comes, and never twice."""
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        start = scope["method"].encode() + b" " + target
        began = False
        headers = [*_anonymous(scope["headers"]), self._token, *_on_behalf_of(caller)]
        try:
            exchange = await self._upstream.open(url, start, headers, _length(scope["headers"]))
            feeder = asyncio.ensure_future(feed(exchange, receive))
            try:
                await exchange.head()
                began = True
                await answer(exchange, send, bodyless=scope["method"] == "HEAD")
            finally:
                feeder.cancel()
                exchange.abort()
        except OSError as error:
            if not began:  # else the missing end of the body says that the answer broke off
                message = f"The service that has {scope['path'][:200]} ({name}) does not answer: {error}. Try again in a moment."
                raise Refused(_unavailable(message, "service_unavailable")) from None


def _anonymous(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Without what says who the client is, and without what is about its own connection."""
    kept, named = [], b""
    for header in headers:
        name = header[0]
        if name not in OURS and not name.startswith(OUR_FAMILIES):
            kept.append(header)
        elif name == b"connection":
            named += b"," + header[1].lower()
    if named and (listed := {each.strip() for each in named.split(b",")}):
        return [header for header in kept if header[0] not in listed]
    return kept


def _length(headers: Headers) -> bytes | None:
    """Of a body, as its client says; None: it comes in chunks."""
    said = dict(headers)
    return None if b"transfer-encoding" in said else said.get(b"content-length", b"0")


def _on_behalf_of(caller: Caller) -> list[tuple[bytes, bytes]]:
    return [(OWNER, caller.name.encode()), (KEY_ID, caller.key.id.encode())] if caller.key else []


async def _whole(exchange: Exchange) -> bytes:
    """The body of an engine's error, as far as it comes and is not too large."""
    body, more = b"", True
    try:
        while more:  # a body that has come with its head may be complete, and not read yet
            body += await exchange.body()
            more = not exchange.complete and len(body) <= LARGEST_ERROR
    except Lost:
        pass
    return body


def _unavailable(message: str, code: str) -> Response:
    response = error_response(503, message, code=code)
    response.headers["retry-after"] = "5"
    return response
