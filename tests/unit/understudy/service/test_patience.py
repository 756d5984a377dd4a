"""Clients that keep a listener waiting, over real sockets: they are closed, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from understudy.service import patience
from understudy.service.patience import Patience
from understudy.service.ports import free_ports

POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HEAD", 0.6), ("PAUSE", 0.6), ("OVER", 1.2), ("LOOK", 0.1)):
        monkeypatch.setattr(patience, name, value)


async def count(scope: Any, receive: Any, send: Any) -> None:
    """Answers how many bytes it was sent, or with which headers."""
    size, event = 0, {"more_body": True}
    while event.get("more_body"):
        event = await receive()
        if event["type"] != "http.request":
            return
        size += len(event["body"])
    await asyncio.sleep(1 if scope["path"] == "/slowly" else 0)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    names = b",".join(name for name, _ in scope["headers"])
    await send({"type": "http.response.body", "body": names if scope["path"] == "/headers" else str(size).encode()})


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    (port,) = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(count, http=Patience, port=port, log_level="critical", lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield port
    server.should_exit = True
    await task


async def told(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    """Status and error of what came until the connection was closed."""
    head, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


async def test_who_sends_no_head_is_closed_and_others_are_served_meanwhile() -> None:
    async with serving() as port:
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
        for number, (_, writer) in enumerate(slow):
            writer.write((b"G", b"", POST[:30], b"\r\n")[number % 4])
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            for _ in range(20):
                assert (await client.post("/", content=b"abc")).text == "3"
        ends = await asyncio.gather(*(told(reader) for reader, _ in slow))
        assert {(status, error["code"]) for status, error in ends} == {(408, "request_timeout")}
        for _, writer in slow:
            writer.close()


@pytest.mark.parametrize("piece", [b"", b"x"])
async def test_a_body_that_stops_or_trickles_is_given_up(piece: bytes) -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(POST)
        ended = asyncio.create_task(told(reader))
        began = time.monotonic()
        while not ended.done():
            writer.write(piece)
            await asyncio.sleep(0.1)
        assert (await ended)[0] == 408
        assert 0.5 < time.monotonic() - began < 2.5
        writer.close()


async def test_a_body_that_comes_steadily_an_answer_that_takes_long_and_a_connection_that_rests_are_waited_for() -> (
    None
):
    async def steadily() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 1000
            await asyncio.sleep(0.1)

    async with (
        serving() as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10) as client,
    ):
        assert (await client.post("/", content=steadily())).text == "20000"
        assert (await client.post("/slowly", content=b"x")).text == "1"
        await asyncio.sleep(1.5)
        (kept,) = client._transport._pool.connections  # type: ignore[attr-defined]
        assert (await client.post("/", content=b"x")).text == "1"
        assert client._transport._pool.connections == [kept], "the same connection"  # type: ignore[attr-defined]


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nx: ", b"GET /", b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 5])
async def test_a_head_without_end_is_refused_with_its_limit(start: bytes) -> None:
    filler = b"x: y\r\n" if start.endswith(b"\n") else b"yyyyyy"
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(start)
        await asyncio.sleep(0.05)  # what comes in one piece with the start is not counted
        writer.write(filler * (patience.MOST_HEAD // 6 + 10))
        status, error = await told(reader)
        assert status == 431
        assert ("128 headers" if start.endswith(b"\n") else "65536 bytes") in error["message"]
        writer.close()


async def test_what_comes_behind_a_body_is_no_header_and_requests_may_come_one_behind_the_other() -> None:
    """Headers are looked at before the body is read."""
    chunked = b"POST /headers HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(chunked + b"x-understudy-owner: somebody\r\n\r\n")
        for _ in range(3):
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readuntil(b"0\r\n\r\n") == b"16\r\nhost,transfer-encoding\r\n0\r\n\r\n"
        writer.close()


async def test_connections_beyond_the_most_are_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "most_connections", lambda: 5)
    async with serving() as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        await asyncio.sleep(0.05)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        status, error = await told(reader)
        assert (status, error["type"]) == (503, "server_error")
        for _, each in (*held, (reader, writer)):
            each.close()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            assert (await client.post("/", content=b"abc")).text == "3", "and they may come back"


async def test_one_connection_has_few_headers_and_few_requests_waiting() -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a:b\r\n" * 200 + b"\r\n")
        status, error = await told(reader)
        assert (status, "128 headers" in error["message"]) == (431, True)
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /slowly HTTP/1.1\r\nhost: x\r\n\r\n" * 5000)
        with contextlib.suppress(ConnectionResetError):  # for what it sent and nobody read
            await asyncio.wait_for(reader.read(), 5)
        writer.close()
