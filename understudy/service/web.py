"""What every service's HTTP API has: /healthz, /readyz, /metrics, errors and lists in OpenAI's shape, and a guard that lets in
only what the gateway passes on."""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from understudy.errors import Invalid, NotFound, Transient, UnderstudyError
from understudy.service.doors import INTERNAL
from understudy.service.token import HEADER, KEY_ID, OWNER
from understudy.terms import Station

log = logging.getLogger(__name__)
_PLACE = re.compile(r"(?<![\w.:/])(file:/*)?/(?!v1/)[^\s'\"`,;:()]+")
"""A path of this machine in a sentence, and no part of a URL."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Limit = Annotated[int, Query(ge=1, le=10_000)]
Order = Literal["asc", "desc"]


def error_response(status: int, message: str, *, param: str | None = None, code: str | None = None) -> JSONResponse:
    """OpenAI's error object."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    message = message.encode(errors="replace").decode()  # JSON can spell half a surrogate pair, and nothing can send it
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status_code=status)


def page(items: Sequence[Any], has_more: bool) -> dict[str, Any]:
    """OpenAI's list object, of models or plain objects that have an `id`."""
    ids = [item["id"] if isinstance(item, dict) else item.id for item in items]
    return {
        "object": "list",
        "data": items,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": has_more,
    }


def page_of(newest_first: Sequence[Any], after: str | None, limit: int, order: Order = "desc") -> dict[str, Any]:
    """The page with at most `limit` items behind the one whose id is `after`; raises `NotFound` when there is none such."""
    items = newest_first if order == "desc" else newest_first[::-1]
    start = 0
    if after is not None:
        found = (n for n, item in enumerate(items) if (item["id"] if isinstance(item, dict) else item.id) == after)
        start = next(found, -1) + 1
        if not start:
            raise no_such_place(after)
    return page(items[start : start + limit], len(items) > start + limit)


def no_such_place(after: str) -> NotFound:
    """The error for an `after` that names nothing."""
    return NotFound(f"after: there is nothing with the id `{after}`", "Use the `last_id` of the page before.")


def add_errors(app: FastAPI) -> None:
    """Every error leaves as OpenAI's error object: Invalid 400, NotFound 404, Transient 503, others 500.

    Those that are not about the request have the whole story in the log; who asks, perhaps a stranger, hears no path of this machine.
    """

    async def expected(_: Request, error: Exception) -> JSONResponse:
        status = (
            404
            if isinstance(error, NotFound)
            else 400
            if isinstance(error, Invalid)
            else 503
            if isinstance(error, Transient)
            else 500
        )
        if status >= 500:
            log.warning("%s", error)
        said = str(error) if status < 500 else _PLACE.sub("(a place of the service)", str(error))
        return error_response(status, said, code="not_found" if status == 404 else None)

    async def malformed(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return error_response(400, f"{place}: {first['msg']}" if place else str(first["msg"]), param=place or None)

    async def routing(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return error_response(error.status_code, str(error.detail))

    app.add_exception_handler(UnderstudyError, expected)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(RequestValidationError, malformed)


def add_health(app: FastAPI, station: Station, ready: Callable[[], str | None]) -> None:
    """/healthz: this process answers. /readyz: it can work, else 503 with the reason. /metrics: Prometheus text."""

    @app.get("/healthz", include_in_schema=False)
    def healthz() -> dict[str, str]:
        return {"status": "ok", "service": station}

    @app.get("/readyz", include_in_schema=False)
    def readyz() -> Response:
        reason = ready()
        return (
            error_response(503, f"{station} is not ready: {reason}")
            if reason
            else JSONResponse({"status": "ready", "service": station})
        )

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def guarded(app: App, token: str, *, probes: bool = True) -> App:
    """`app` for those who know the installation's token, that is for the gateway; `probes` and metrics for the whole platform.

    On whose behalf the gateway asks is in `owner_of(request)`.
    """
    expected = token.encode()

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not (probes and scope["path"] in INTERNAL):
            said = dict(scope["headers"])
            if not hmac.compare_digest(said.get(HEADER, b""), expected):
                message = "Only the gateway may ask here. Are UNDERSTUDY_INTERNAL_TOKEN or the data folder the same for all services?"
                await error_response(401, message, code="internal_token")(scope, receive, send)
                return
        await app(scope, receive, send)

    return guard


def owner_of(request: Request) -> str:
    """The name of the key on whose behalf the gateway asks; empty where it asked for none."""
    return request.headers.get(OWNER.decode(), "")


def key_id_of(request: Request) -> str:
    """The id of that key."""
    return request.headers.get(KEY_ID.decode(), "")
