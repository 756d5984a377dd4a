"""A small OpenAI-protocol server with a provider's limits, for `bench.ask` and the tests of `understudy.llm`.

Two token buckets, of requests and of tokens, which fill evenly; a request that finds one short is answered 429 with
`Retry-After` and, like every answer, with `x-ratelimit-*` headers. Tokens are charged when a request comes, as a quarter of its bytes plus
`max_tokens`, or when it ends, as what it used. Counts what it answered, by the last message. One connection, one request at a time.

    python -m bench._llm_server '{"requests_per_minute": 6000}'      # prints its port; Settings has the other keys
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REASONS = {200: "OK", 404: "Not Found", 429: "Too Many Requests"}


@dataclass(frozen=True)
class Settings:
    """What it allows and how it behaves."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    burst_seconds: float = 60.0
    """How many seconds of its rate a bucket holds."""
    headers: bool = True
    """Whether it sends `x-ratelimit-*`."""
    charge_usage: bool = False
    """Charge what was used when a request ends, instead of an estimate when it comes."""
    latency: float = 0.0
    """Seconds from a request to its answer."""
    completion_tokens: int = 20
    text: str = "I see"
    """What it answers to everything."""


class Bucket:
    """One limit."""

    def __init__(self, per_minute: float, burst_seconds: float) -> None:
        self.limit, self.rate = per_minute, per_minute / 60
        self.room = self.level = self.rate * burst_seconds
        self.at = self.began = time.monotonic()
        self.taken = 0.0

    def fill(self) -> None:
        now = time.monotonic()
        self.level, self.at = min(self.room, self.level + self.rate * (now - self.at)), now

    def take(self, amount: float) -> None:
        self.level -= amount
        self.taken += amount


class Server:
    """The buckets, and the counts of one server."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.answered: Counter[str] = Counter()
        self.asked = self.refused = 0
        self.reset()

    def reset(self) -> None:
        """Full buckets, no counts."""
        burst = self.settings.burst_seconds
        limits = {"requests": self.settings.requests_per_minute, "tokens": self.settings.tokens_per_minute}
        self.buckets = {name: Bucket(limit, burst) for name, limit in limits.items() if limit is not None}
        self.asked = self.refused = 0
        self.first: float | None = None
        self.answered.clear()

    def admit(self, body: dict[str, Any], size: int) -> float:
        """Seconds until this request fits; 0: it was taken."""
        tokens = 0.0 if self.settings.charge_usage else size // 4 + body.get("max_tokens", 0)
        costs = {"requests": 1.0, "tokens": tokens}
        self.asked += 1
        if self.first is None:
            self.first = time.monotonic()
            for bucket in self.buckets.values():
                bucket.began = bucket.at = self.first
        for bucket in self.buckets.values():
            bucket.fill()
        short, self.short_of = max(
            (((costs[name] - bucket.level) / bucket.rate, name) for name, bucket in self.buckets.items()),
            default=(0.0, ""),
        )
        if short > 1e-9:
            self.refused += 1
            return short
        for name, bucket in self.buckets.items():
            bucket.take(costs[name])
        return 0.0

    def finish(self, body: dict[str, Any], size: int) -> dict[str, Any]:
        """The answer, and the count of it."""
        usage = {"prompt_tokens": size // 4, "completion_tokens": self.settings.completion_tokens}
        if self.settings.charge_usage and "tokens" in self.buckets:
            self.buckets["tokens"].fill()
            self.buckets["tokens"].take(sum(usage.values()))
        self.answered[body["messages"][-1]["content"]] += 1
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": self.settings.text}}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": usage | {"total_tokens": sum(usage.values())},
        }

    def headers(self) -> str:
        """Of the limits, as OpenAI writes them: the reset is when the bucket would be full."""
        if not self.settings.headers:
            return ""
        return "".join(
            f"x-ratelimit-limit-{name}: {bucket.limit:.0f}\r\nx-ratelimit-remaining-{name}: {max(0, int(bucket.level))}\r\n"
            f"x-ratelimit-reset-{name}: {(bucket.room - bucket.level) / bucket.rate:.3f}s\r\n"
            for name, bucket in self.buckets.items()
        )

    def figures(self) -> dict[str, Any]:
        """What happened since the first request: shares of what was allowed (a full bucket and what it was filled with)."""
        now = time.monotonic()
        used = {
            name: bucket.taken / (bucket.room + bucket.rate * (now - bucket.began))
            for name, bucket in self.buckets.items()
        }
        return {"asked": self.asked, "refused": self.refused, "used": used, "answered": dict(self.answered)}


class Connection(asyncio.Protocol):
    """HTTP/1.1, one request at a time."""

    def __init__(self, server: Server) -> None:
        self.server, self.seen = server, b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.seen += data
        head, found, rest = self.seen.partition(b"\r\n\r\n")
        if not found:
            return
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        if len(rest) < length:
            return
        self.seen = b""
        if head.startswith(b"GET /figures"):
            self.reply(200, self.server.figures())
        elif head.startswith(b"POST /reset"):
            self.server.reset()
            self.reply(200, {})
        elif head.startswith(b"POST /v1/chat/completions"):
            self.complete(json.loads(rest), length)
        else:
            self.reply(404, {"error": {"message": "not here"}})

    def complete(self, body: dict[str, Any], size: int) -> None:
        if short := self.server.admit(body, size):
            error = {
                "message": f"Rate limit reached on {self.server.short_of} per minute",
                "type": self.server.short_of,
                "code": "rate_limit_exceeded",
            }
            self.reply(429, {"error": error}, f"retry-after: {int(short) + 1}\r\n" + self.server.headers())
            return
        headers = self.server.headers()
        if self.server.settings.latency:
            asyncio.get_running_loop().call_later(self.server.settings.latency, self.answer, body, size, headers)
        else:
            self.answer(body, size, headers)

    def answer(self, body: dict[str, Any], size: int, headers: str) -> None:
        document = self.server.finish(body, size)  # who has hung up meanwhile pays all the same
        if not self.transport.is_closing():
            self.reply(200, document, headers)

    def reply(self, status: int, document: Any, headers: str = "") -> None:
        content = json.dumps(document).encode()
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\ncontent-type: application/json\r\n{headers}content-length: {len(content)}\r\n\r\n"
        self.transport.write(head.encode() + content)


@contextmanager
def running(**settings: Any) -> Iterator[str]:
    """The URL of a server with these settings, in a process of its own."""
    command = [sys.executable, "-m", "bench._llm_server", json.dumps(settings)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


async def main(settings: Settings) -> None:
    """Serve on a free port until killed."""
    state = Server(settings)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(state), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Settings(**json.loads(sys.argv[1]) if len(sys.argv) > 1 else {})))
