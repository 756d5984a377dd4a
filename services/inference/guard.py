"""What stands before an engine's HTTP API, inside its process: only we may ask it, and it says how much it has in hand.

vLLM's own key (VLLM_API_KEY, vllm/entrypoints/serve/middleware/authenticate.py of 0.32) guards only paths that begin with /v1, /v2,
/inference or /cohere. Without a key answer there /invocations (SageMaker's door to the same completions), /tokenize, /detokenize,
/load, /version, /ping and the pages of the API. So this guards everything but GET /health and /metrics, by the same key. Where
none is set, as in a network of its own, everybody in it may ask.

Who comes by the loopback interface must say so in `Host`: a web page whose name was bound to 127.0.0.1 says its own name.
vLLM is given this class as `--middleware` (`launch.py`). Imports nothing but the standard library. Knows no other service.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

KEY = "VLLM_API_KEY"
OPEN = ("/health", "/metrics")
"""What anybody may GET."""
UNDER_WAY = b"x-understudy-under-way"
"""Header of /health: requests that have not ended, of those that compute something."""


class Guard:
    """ASGI middleware; reads its key from the environment."""

    def __init__(self, app: App) -> None:
        self._app = app
        key = os.environ.get(KEY, "")
        self._key = _digest(b"Bearer " + key.encode()) if key else b""
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if _is_loopback((scope.get("server") or [""])[0]) and not _names_loopback(headers.get(b"host", b"")):
            return await _refuse(send, 403, "This engine is asked by its loopback address only.")
        if scope["method"] == "GET" and scope["path"] in OPEN:
            return await self._app(scope, receive, self._telling(send))
        if self._key and not hmac.compare_digest(_digest(headers.get(b"authorization", b"")), self._key):
            return await _refuse(send, 401, "This engine takes requests through the gateway only.")
        if scope["method"] != "POST":
            return await self._app(scope, receive, send)
        self._under_way += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way -= 1

    def _telling(self, send: Send) -> Send:
        async def tell(event: MutableMapping[str, Any]) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [*event.get("headers", ()), (UNDER_WAY, b"%d" % self._under_way)]
            await send(event)

        return tell


async def _refuse(send: Send, status: int, message: str) -> None:
    body = json.dumps(
        {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    ).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _names_loopback(host: bytes) -> bool:
    name = host.decode("latin-1").rpartition(":")[0] if host[-1:] != b"]" and b":" in host else host.decode("latin-1")
    return name.strip("[]") == "localhost" or _is_loopback(name.strip("[]"))
