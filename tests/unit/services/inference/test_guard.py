"""What stands before an engine: who may ask it, under which name, and that it says what it has in hand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.inference.guard import KEY, UNDER_WAY, Guard

TOKEN = "of-this-installation"
RIGHT = (b"authorization", b"Bearer " + TOKEN.encode())


async def behind(scope: Any, receive: Any, send: Any) -> None:
    """vLLM: answers everybody."""
    if wait := scope.get("wait"):
        await wait.wait()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"answer"})


def ask(
    guard: Guard, path: str, *headers: tuple[bytes, bytes], method: str = "POST", server: str = "127.0.0.1", **more: Any
) -> Any:
    """A coroutine for the events of the answer."""

    async def run() -> list[Any]:
        events: list[Any] = []

        async def send(event: Any) -> None:
            events.append(event)

        given = dict(headers)
        lines = [*({b"host": b"127.0.0.1:8000"} | given).items()]
        scope = {"type": "http", "method": method, "path": path, "headers": lines, "server": (server, 8000), **more}
        await guard(scope, None, send)  # type: ignore[arg-type]
        return events

    return run()


def status(coroutine: Any) -> int:
    return int(asyncio.run(coroutine)[0]["status"])


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Guard:
    monkeypatch.setenv(KEY, TOKEN)
    return Guard(behind)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/completions",
        "/invocations",
        "/tokenize",
        "/v1/load_lora_adapter",
        "/ping",
        "/version",
        "/docs",
        "//v1/models",
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS", "HEAD"])
def test_nothing_but_health_and_metrics_is_for_everybody(guard: Guard, path: str, method: str) -> None:
    """vLLM's own key guards four prefixes, and no OPTIONS."""
    assert status(ask(guard, path, method=method)) == 401
    for wrong in (b"Bearer ", b"Bearer x", TOKEN.encode(), b"Basic " + TOKEN.encode(), RIGHT[1] + b" "):
        assert status(ask(guard, path, (b"authorization", wrong), method=method)) == 401
    assert status(ask(guard, path, RIGHT, method=method)) == 200


@pytest.mark.parametrize("path", ["/health", "/metrics"])
def test_probes_need_no_key_and_only_look(guard: Guard, path: str) -> None:
    assert status(ask(guard, path, method="GET")) == 200
    assert status(ask(guard, path, method="POST")) == 401


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
@pytest.mark.parametrize(
    ("host", "right"),
    [
        (b"127.0.0.1:8000", True),
        (b"localhost", True),
        (b"[::1]:8000", True),
        (b"[::1]", True),
        (b"rebound.example:8000", False),
        (b"127.0.0.1.rebound.example", False),
        (b"10.0.0.1", False),
        (b"", False),
    ],
)
def test_a_name_that_was_bound_to_loopback_is_not_answered(guard: Guard, path: str, host: bytes, right: bool) -> None:
    """As a web page would have its visitor's browser do it."""
    assert status(ask(guard, path, RIGHT, (b"host", host), method="GET")) == (200 if right else 403)


def test_in_a_network_of_its_own_it_has_whatever_name_and_without_a_key_is_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(KEY, raising=False)
    guard = Guard(behind)
    assert status(ask(guard, "/v1/completions", (b"host", b"engine:8000"), server="172.18.0.3")) == 200
    assert status(ask(guard, "/v1/completions", (b"host", b"rebound.example"))) == 403, "by loopback all the same"


def test_a_websocket_is_closed(guard: Guard) -> None:
    """Of vLLM's doors one is a websocket, and no use of ours."""
    (event,) = asyncio.run(ask(guard, "/v1/realtime", RIGHT, type="websocket"))
    assert event["type"] == "websocket.close"


def test_health_says_how_many_requests_have_not_ended(guard: Guard) -> None:
    async def run() -> list[int]:
        release, seen = asyncio.Event(), []

        async def look() -> None:
            events = await ask(guard, "/health", method="GET")
            seen.append(int(dict(events[0]["headers"])[UNDER_WAY]))

        asking = [asyncio.create_task(ask(guard, "/v1/completions", RIGHT, wait=release)) for _ in range(3)]
        await asyncio.sleep(0)
        await look()
        asking[0].cancel()
        await asyncio.gather(asking[0], return_exceptions=True)
        await look()
        release.set()
        await asyncio.gather(*asking[1:])
        await look()
        return seen

    assert asyncio.run(run()) == [3, 2, 0]
