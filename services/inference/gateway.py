"""The one endpoint, as an ASGI layer in front of this service's own API.

Completions go to the engine that has the model, byte for byte both ways: only `model` is read from the body. Other
families of OpenAI's API go to the service that has them. Everything else falls through to the app behind. A request
for an engine that is starting waits; it is sent again only when no byte of an answer had come. Does not know what is
in a completion, and starts no engine itself (`fleet.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Protocol

import orjson
from fastapi.responses import JSONResponse

from services.inference.asgi import App, Gone, Hangup, Receive, Scope, Send, TooLarge, answer, feed, read
from services.inference.meter import Family, Meter
from services.inference.upstream import Exchange, Headers, Lost, Upstream
from understudy.errors import NotFound, UnderstudyError
from understudy.service.doors import hot
from understudy.service.token import HEADER, OWNER
from understudy.service.web import error_response

COMPLETIONS = hot()
OWN = "own"
"""What the metrics call this service's own API."""
LOOK_AGAIN = 0.05
"""Seconds between two looks at an engine that is starting."""
SENDS = 3
"""Times one request is given to an engine that ends the connection on it."""


class Routes(Protocol):
    """What the gateway needs of the fleet."""

    def route(self, model: str) -> str | None:
        """URL of the engine that serves `model` now."""

    def want(self, model: str) -> str | None:
        """Bring `model` up; why that fails, if it does. Raises `NotFound`."""


class Answered(Exception):
    """The request is answered by us, with this error."""

    def __init__(self, response: JSONResponse) -> None:
        self.response = response


class Gateway:
    """ASGI application; `families` maps a path prefix to the URL of the service that has it."""

    def __init__(
        self,
        app: App,
        routes: Routes,
        families: Mapping[str, tuple[str, str]],
        token: str,
        *,
        max_body: int,
        hold_seconds: float,
    ) -> None:
        self._app, self._routes, self._families = app, routes, families
        self._max_body, self._hold = max_body, hold_seconds
        self._token = (HEADER, token.encode())
        self._upstream = Upstream()
        self._metrics = {name: Family(name) for name in (*COMPLETIONS, *families, OWN)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] in COMPLETIONS and scope["method"] == "POST":
            with Meter(self._metrics[scope["path"]], send) as meter:
                await self._complete(scope, receive, meter.send)
        elif (prefix := "/".join(scope["path"].split("/", 3)[:3])) in self._families:
            with Meter(self._metrics[prefix], send) as meter:
                await self._pass_on(*self._families[prefix], scope, receive, meter.send)
        else:
            with Meter(self._metrics[OWN], send) as meter:
                await self._app(scope, receive, meter.send)

    async def _complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read(receive, self._max_body)
            model = _model_of(body)
            async with Hangup(receive) as hangup:
                url, exchange = await self._ask(model, scope, body, hangup)
                try:
                    await answer(exchange, send)
                finally:
                    self._upstream.release(url, exchange)
        except Answered as early:
            await early.response(scope, receive, send)
        except TooLarge:
            message = f"The request body is larger than {self._max_body} bytes. Send fewer or shorter messages."
            await error_response(413, message, code="request_too_large")(scope, receive, send)
        except (Gone, Lost):  # nobody to tell, or too late: the missing end of the body says that the answer broke off
            pass

    async def _ask(self, model: str, scope: Scope, body: bytes, hangup: Hangup) -> tuple[str, Exchange]:
        """Send the request to the engine of `model` until an answer begins."""
        give_up, losses, reason = time.monotonic() + self._hold, 0, "it is starting"
        start = b"POST " + scope["raw_path"]
        while True:
            url = self._routes.route(model)
            if url is None:
                try:
                    reason = self._routes.want(model) or reason
                except NotFound as error:
                    raise Answered(error_response(404, str(error), param="model", code="model_not_found")) from None
                except UnderstudyError as error:
                    reason, give_up = str(error), 0.0
                url = self._routes.route(model)
            if url is not None:
                try:
                    return url, await self._send(url, start, scope["headers"], body, hangup)
                except OSError as error:
                    reason = f"it ended the connection ({error})"
                    if isinstance(error, Lost):
                        losses += 1
                        if error.started or losses >= SENDS:
                            give_up = 0.0
                        elif losses == 1 and hangup.still_there():  # a kept connection that had timed out: at once
                            continue
            if not hangup.still_there():
                raise Gone
            if time.monotonic() >= give_up:
                message = f"The engine of `{model}` is not ready: {reason}. Try again in a moment."
                raise Answered(_unavailable(message, "engine_not_ready"))
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

    async def _pass_on(self, name: str, url: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Reverse proxy to another service; the body is sent on while it comes, and never twice."""
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        start = scope["method"].encode() + b" " + target
        began = False
        try:
            headers = [header for header in scope["headers"] if header[0] not in (HEADER, OWNER)]
            exchange = await self._upstream.open(url, start, [*headers, self._token])
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
                message = (
                    f"The service that has {scope['path']} ({name}) does not answer: {error}. Try again in a moment."
                )
                await _unavailable(message, "service_unavailable")(scope, receive, send)


def _model_of(body: bytes) -> str:
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Answered(error_response(400, f"The request body is not valid JSON: {error}")) from None
    model = request.get("model") if isinstance(request, dict) else None
    if not isinstance(model, str) or not model:
        raise Answered(
            error_response(400, "You must provide a `model`, as text. GET /v1/models lists them.", param="model")
        )
    return model


def _unavailable(message: str, code: str) -> JSONResponse:
    response = error_response(503, message, code=code)
    response.headers["retry-after"] = "5"
    return response
