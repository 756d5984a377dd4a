"""The client against a real HTTP server: what it retries, what it refuses at once, and that it keeps to its concurrency."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from understudy.errors import Invalid, Transient
from understudy.llm.chat import ChatClient
from understudy.records import Turn

ASK = [Turn(role="user", content="hi")]
ANSWER = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    "prompt_logprobs": [None],
}


@pytest.fixture
def server() -> Iterator[Callable[..., str]]:
    """`server(respond)` starts a server; `respond(body)` gives (status, headers, answer). Returns the base URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(respond: Callable[[dict[str, Any]], tuple[int, dict[str, str], Any]]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, headers, answer = respond(body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {
                    "Content-Type": "application/json",
                    "Content-Length": str(len(content)),
                    **headers,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/v1"

    yield start
    for running in servers:
        running.shutdown()


async def test_an_answer_with_what_is_not_in_the_standard(server: Callable[..., str]) -> None:
    asked: list[dict[str, Any]] = []
    url = server(lambda body: (asked.append(body) or 200, {}, ANSWER))  # type: ignore[func-returns-value]
    async with ChatClient(url) as chat:
        answer = await chat.complete("m", ASK, max_tokens=5, seed=1, extra={"prompt_logprobs": 0})
    assert (answer.text, answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == (
        "hello",
        "stop",
        3,
        1,
    )
    assert answer.raw["prompt_logprobs"] == [None]
    assert (asked[0]["prompt_logprobs"], asked[0]["seed"], asked[0]["temperature"]) == (0, 1, 0)


async def test_a_busy_server_is_asked_again(server: Callable[..., str]) -> None:
    calls: list[int] = []

    def respond(_: Any) -> tuple[int, dict[str, str], Any]:
        calls.append(1)
        return (429, {"Retry-After": "0"}, {"error": {"message": "slow down"}}) if len(calls) < 3 else (200, {}, ANSWER)

    async with ChatClient(server(respond)) as chat:
        assert (await chat.complete("m", ASK, max_tokens=5)).text == "hello"
    assert len(calls) == 3


async def test_a_refusal_is_invalid_at_once_and_says_why(server: Callable[..., str]) -> None:
    calls: list[int] = []
    url = server(lambda _: (calls.append(1) or 400, {}, {"error": {"message": "too long by 7 tokens"}}))  # type: ignore[func-returns-value]
    async with ChatClient(url) as chat:
        with pytest.raises(Invalid, match="too long by 7 tokens"):
            await chat.complete("m", ASK, max_tokens=5)
    assert len(calls) == 1


async def test_nobody_there_is_transient() -> None:
    async with ChatClient("http://127.0.0.1:9/v1", tries=1) as chat:
        with pytest.raises(Transient, match="did not answer"):
            await chat.complete("m", ASK, max_tokens=5)


async def test_no_more_than_the_allowed_requests_at_once(server: Callable[..., str]) -> None:
    now, most, guard = [0], [0], threading.Lock()

    def respond(_: Any) -> tuple[int, dict[str, str], Any]:
        with guard:
            now[0] += 1
            most[0] = max(most[0], now[0])
        threading.Event().wait(0.02)
        with guard:
            now[0] -= 1
        return 200, {}, ANSWER

    async with ChatClient(server(respond), concurrency=4) as chat:
        await asyncio.gather(*(chat.complete("m", ASK, max_tokens=5) for _ in range(30)))
    assert most[0] == 4
