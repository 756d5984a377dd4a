"""What the gateway costs streams: a stub engine that writes one chunk to each stream at every step, as one that batches does,
asked directly and through the gateway in turns, with keys and usage on.

Prints chunks per CPU second of the gateway's process, how long a chunk takes from the engine to the client, and what the
gateway adds to that. A stream's usage is asked for and taken out again: each must come whole, without it. The stub and the
client are processes of their own and do next to nothing for a chunk; the last column says what share of a core the busier of
them took: near 100 % it is they who are measured. Does not measure a real engine.

    python -m bench.streams [seconds per turn [streams [steps per second ...]]]
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import time
from typing import Any

from bench.gateway import HEADERS, cpu_seconds, gateway
from understudy.service.ports import free_ports

ROUNDS = 2
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = (
    b'data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"base","choices":[{"index":0,"delta":{"content":"%020d"},"logprobs":null,"finish_reason":null}]}\n\n'
)
USAGE = (
    b'data: {"id":"chatcmpl-0","choices":[],"usage":{"prompt_tokens":9,"total_tokens":99,"completion_tokens":90}}\n\n'
)
MARK = b'"content":"'


def framed(body: bytes) -> bytes:
    """As a piece of a body that is sent in chunks."""
    return b"%x\r\n%b\r\n" % (len(body), body)


class Engine(asyncio.Protocol):
    """Streams to whoever asks, `steps` chunks a second for as long as asked; all of one process move in step."""

    streams: dict[Engine, float] = {}  # noqa: RUF012 (one engine a process)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if b'"seconds":' in data:
            self.transport.write(HEAD)
            self.usage = b"include_usage" in data
            self.streams[self] = time.perf_counter() + float(data.split(b'"seconds":', 1)[1].split(b",", 1)[0])

    def connection_lost(self, _: Exception | None) -> None:
        self.streams.pop(self, None)


async def engine_steps(port: int, steps: float) -> None:
    await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port)
    due = time.perf_counter()
    while True:
        due = max(due + 1 / steps, time.perf_counter() - 0.1)
        await asyncio.sleep(max(0, due - time.perf_counter()))
        for stream, end in list(Engine.streams.items()):
            now = time.perf_counter()
            if now < end:
                stream.transport.write(framed(CHUNK % int(now * 1e9)))
            else:
                del Engine.streams[stream]
                usage = framed(USAGE) if stream.usage else b""
                stream.transport.write(usage + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def engine(port: int, steps: float) -> None:
    import uvloop

    uvloop.run(engine_steps(port, steps))


class Client(asyncio.Protocol):
    """Asks for one stream, and notes how old its chunks are when they come."""

    def __init__(self, request: bytes, took: list[float], ended: asyncio.Future[None]) -> None:
        self._request, self._took, self._ended, self._rest = request, took, ended, b""

    def connection_made(self, transport: Any) -> None:
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        text = self._rest + data if self._rest else data
        at = text.find(MARK)
        while at >= 0 and at + 31 <= len(text):
            self._took.append(now - int(text[at + 11 : at + 31]) / 1e9)
            last, at = at, text.find(MARK, at + 31)
            self._rest = text[last + 31 :] if at < 0 else text[at:]
        if text.endswith(b"0\r\n\r\n"):
            assert b"[DONE]" in text
            assert b'"usage"' not in text
            self._ended.set_result(None)

    def connection_lost(self, _: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_exception(ConnectionError("the stream broke off"))


async def ask(port: int, headers: bytes, seconds: float, streams: int) -> list[float]:
    """Seconds that every chunk took."""
    took: list[float] = []
    loop = asyncio.get_running_loop()
    body = b'{"model": "base", "stream": true, "seconds":%.1f, "messages": []}' % seconds
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\n" + headers
    request += b"content-length: %d\r\n\r\n" % len(body) + body
    ends = [loop.create_future() for _ in range(streams)]
    made = [
        await loop.create_connection(lambda end=end: Client(request, took, end), "127.0.0.1", port)  # type: ignore[misc]
        for end in ends
    ]
    await asyncio.gather(*ends)
    for transport, _ in made:
        transport.close()
    return took


def client(port: int, headers: bytes, seconds: float, streams: int, back: Any) -> None:
    import uvloop

    took = uvloop.run(ask(port, headers, seconds, streams))
    ranked = sorted(took[len(took) // 10 :])  # the first are of the time in which connections are made
    back.put((len(took), ranked[len(ranked) // 2], ranked[int(len(ranked) * 0.99)], cpu_seconds(os.getpid())))


def turn(seconds: float, streams: int, steps: float) -> None:
    """One rate: directly and through the gateway, `ROUNDS` times."""
    ports = free_ports(2)
    context = multiprocessing.get_context("spawn")
    behind = context.Process(target=engine, args=(ports[0], steps), daemon=True)
    between = context.Process(target=gateway, args=(ports[1], f"http://127.0.0.1:{ports[0]}"), daemon=True)
    for process in (behind, between):
        process.start()
    time.sleep(4)
    results: dict[str, list[tuple[float, ...]]] = {"direct": [], "gateway": []}
    for _ in range(ROUNDS):
        for name, port in zip(results, ports, strict=True):
            before = [cpu_seconds(process.pid or 0) for process in (behind, between)]
            back = context.Queue()
            load = context.Process(target=client, args=(port, HEADERS, seconds, streams, back), daemon=True)
            load.start()
            chunks, p50, p99, spent = back.get(timeout=seconds + 60)
            load.join()
            busy = [cpu_seconds(process.pid or 0) - was for process, was in zip((behind, between), before, strict=True)]
            results[name].append((chunks, p50, p99, busy[1], max(busy[0], spent) / seconds))
    for process in (behind, between):
        process.terminate()
    best = {name: min(rounds, key=lambda each: each[2]) for name, rounds in results.items()}
    for name, (chunks, p50, p99, cpu, busiest) in best.items():
        rate = (
            f"{chunks / seconds:9.0f}{chunks / cpu:12.0f}" if name == "gateway" else f"{chunks / seconds:9.0f}{'':12}"
        )
        print(f"{name:10}{streams:9}{rate}{p50 * 1e3:9.2f} ms{p99 * 1e3:9.2f} ms{busiest:9.0%}")
    print(f"{'added':10}{'':30}{(best['gateway'][1] - best['direct'][1]) * 1e3:9.2f} ms", end="")
    print(f"{(best['gateway'][2] - best['direct'][2]) * 1e3:9.2f} ms")


def main(seconds: float, streams: int, *steps: float) -> None:
    print(f"{'':10}{'streams':>9}{'chunks/s':>9}{'per core':>12}{'p50':>12}{'p99':>12}{'others':>9}")
    for each in steps:
        turn(seconds, streams, each)


if __name__ == "__main__":
    given = [float(each) for each in sys.argv[1:]]
    main(given[0] if given else 4.0, int(given[1]) if len(given) > 1 else 256, *(given[2:] or (40, 100, 200)))
