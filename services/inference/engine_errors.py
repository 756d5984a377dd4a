"""An engine's errors as OpenAI writes them: vLLM's codes are numbers, which clients in Rust and Java refuse."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
from fastapi.responses import JSONResponse

from understudy.service.web import error_response

LONGEST = 10_000
"""Letters of a message."""


def as_openai(status: int, body: bytes) -> JSONResponse:
    """The answer to the client, from status and body of the engine's."""
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):  # that is between us and the engine
        return error_response(
            HTTPStatus.BAD_GATEWAY, "The engine does not take requests from this gateway", code="engine_refuses"
        )
    return _response(status, _said(body), f"The engine answered {status}")


def event_as_openai(event: bytes) -> bytes:
    """An event of a stream, without the blank line behind it; what is no error stays as it is."""
    name, colon, data = event.partition(b":")
    said = _said(data) if name == b"data" else {}
    if not isinstance(said.get("error"), dict) or not isinstance(code := said["error"].get("code"), int):
        return event
    status = code if 400 <= code < 600 else HTTPStatus.INTERNAL_SERVER_ERROR
    return name + colon + b" " + bytes(_response(status, said, "The engine failed").body)


def _response(status: int, said: dict[str, Any], otherwise: str) -> JSONResponse:
    error = said.get("error", said)
    if not isinstance(error, dict):
        error = {"message": error}
    message = str(error.get("message") or error.get("detail") or otherwise)[:LONGEST]
    param, code = (error.get(name) if isinstance(error.get(name), str) else None for name in ("param", "code"))
    return error_response(status, message, param=param, code=code)


def _said(body: bytes) -> dict[str, Any]:
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return said if isinstance(said, dict) else {}
