"""What the gateway costs: completions sent straight to a stub engine, through the gateway, and through a plain proxy of
FastAPI and httpx, in turns in one run.

Keys are asked for and usage is counted, as where the gateway is published.

Prints time added to a request at the median, and requests per second of one core, which is the figure to compare on a
busy machine: requests divided by the CPU seconds of the proxy's process. The stub answers at once with 700 bytes.
Does not measure streams (`bench.streams`) or a real engine.

    python -m bench.gateway [seconds per turn]
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response

from services.inference.admission import Admission
from services.inference.gateway import Gateway
from services.inference.sessions import Sessions
from services.inference.usage import Usage
from understudy.belt.apikeys import mint
from understudy.belt.bus import Record
from understudy.belt.contracts import KeyMade
from understudy.belt.folds.keys import Keys
from understudy.service.patience import Patience
from understudy.service.ports import free_ports

CLIENTS, ROUNDS = 32, 3
REQUEST = b'{"model": "base", "messages": [{"role": "user", "content": "%s"}], "max_tokens": 16}' % (b"word " * 100)
ANSWER = b'{"id": "chatcmpl-1", "object": "chat.completion", "choices": [{"message": {"content": "%s"}}]}' % (
    b"x" * 600
)
KEY, MADE = mint("bench", ("inference",))
os.environ.setdefault("BENCH_KEY", MADE.model_dump_json())  # the processes that this one starts read it
HEADERS = (
    b"content-type: application/json\r\nauthorization: Bearer %s\r\nuser-agent: bench\r\naccept: */*\r\n" % KEY.encode()
)


class Stub(asyncio.Protocol):
    """Answers each complete POST at once; the client sends one at a time."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.seen = transport, b""

    def data_received(self, data: bytes) -> None:
        self.seen += data
        if self.seen.endswith(REQUEST):
            self.seen = b""
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)
            self.transport.write(head + ANSWER)


def stub(port: int) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(run())


def gateway(port: int, engine: str) -> None:
    class Routes:
        def route(self, model: str) -> str | None:
            return engine

        def want(self, model: str) -> str | None:
            return None

    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        raise NotImplementedError

    keys = Keys()
    keys.read(KeyMade.model_validate_json(os.environ["BENCH_KEY"]), Record("keys", 0, 0, time.time(), b""))
    admission = Admission(keys, Sessions("token", keys), "token", required=True)
    app = Gateway(nothing, Routes(), {}, "token", admission, Usage(), max_body=1 << 20, hold_seconds=1)
    how = {"http": Patience, "ws": "none", "proxy_headers": False, "lifespan": "off"}  # as `service/host.py` does
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False, **how)  # type: ignore[arg-type]


def plain(port: int, engine: str) -> None:
    app = FastAPI()
    client = httpx.AsyncClient(base_url=engine, limits=httpx.Limits(max_connections=CLIENTS))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        await request.json()
        answer = await client.post("/v1/chat/completions", content=await request.body())
        return Response(answer.content, answer.status_code, media_type="application/json")

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


async def load(port: int, seconds: float, clients: int) -> list[float]:
    """Seconds of every request of `clients` that send one after another."""
    took: list[float] = []
    end = time.perf_counter() + seconds
    message = b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\n" + HEADERS
    message += b"content-length: %d\r\n\r\n" % len(REQUEST) + REQUEST

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            started = time.perf_counter()
            writer.write(message)
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head.split(b"\r\n", 1)[0], head
            length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            await reader.readexactly(length)
            took.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return took


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(seconds: float) -> None:
    ports = free_ports(3)
    engine = f"http://127.0.0.1:{ports[0]}"
    jobs: list[tuple[str, Callable[..., None], tuple[Any, ...]]] = [
        ("engine", stub, (ports[0],)),
        ("gateway", gateway, (ports[1], engine)),
        ("FastAPI+httpx", plain, (ports[2], engine)),
    ]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=arguments, daemon=True) for _, target, arguments in jobs]
    for process in processes:
        process.start()
    time.sleep(5)
    took: dict[str, list[float]] = {name: [] for name, _, _ in jobs}
    alone: dict[str, list[float]] = {name: [] for name, _, _ in jobs}
    cpu = dict.fromkeys(took, 0.0)
    for _ in range(ROUNDS):
        for (name, _, _), port, process in zip(jobs, ports, processes, strict=True):
            alone[name] += asyncio.run(load(port, seconds / 4, 1))
            before = cpu_seconds(process.pid or 0)
            took[name] += asyncio.run(load(port, seconds, CLIENTS))
            cpu[name] += cpu_seconds(process.pid or 0) - before
    for process in processes:
        process.terminate()

    direct = statistics.median(alone["engine"])
    print(f"{'':15}{'added p50':>12}{'p50 @32':>10}{'p99 @32':>10}{'req/s':>9}{'req/s/core':>12}")
    for name in took:
        ranked = sorted(took[name])
        added = (statistics.median(alone[name]) - direct) * 1e3
        p50, p99 = ranked[len(ranked) // 2] * 1e3, ranked[int(len(ranked) * 0.99)] * 1e3
        rates = f"{len(ranked) / seconds / ROUNDS:9.0f}{len(ranked) / cpu[name]:12.0f}"
        print(f"{name:15}{added:9.2f} ms{p50:7.2f} ms{p99:7.2f} ms{rates}")
    ratio = (len(took["gateway"]) / cpu["gateway"]) / (len(took["FastAPI+httpx"]) / cpu["FastAPI+httpx"])
    print(f"gateway does {ratio:.1f}x the requests of FastAPI+httpx per CPU second")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 4.0)
