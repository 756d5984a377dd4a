"""What the gateway shows on /metrics: how many requests, how they ended, how long they took.

Labels are path families from a fixed list and classes of status codes; never a model, whose names grow with every run.
Costs about 5 microseconds a request. Changes nothing about an answer.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from prometheus_client import Counter, Gauge, Histogram

from understudy.service.web import Send

REQUESTS = Counter("understudy_gateway_requests", "Requests that have ended", ["family", "code"])
IN_FLIGHT = Gauge("understudy_gateway_requests_in_flight", "Requests that have not ended", ["family"])
SECONDS = Histogram(
    "understudy_gateway_request_seconds",
    "From a request to the last byte of its answer",
    ["family"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100),
)
FIRST_TOKEN = Histogram(
    "understudy_gateway_first_token_seconds",
    "From a request to the first piece of its streamed answer",
    ["family"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50),
)
HUNG_UP = 499
"""nginx's code for a client that hung up before its answer began."""


class Family:
    """The metrics of one path family: all there from the start, or its first request would be no increase of any."""

    def __init__(self, name: str) -> None:
        self.ended = {code: REQUESTS.labels(name, f"{code}xx") for code in range(1, 6)}
        self.in_flight, self.seconds = IN_FLIGHT.labels(name), SECONDS.labels(name)
        self.first_token = FIRST_TOKEN.labels(name)


class Meter:
    """`with Meter(family, send) as meter:` around one request, which is answered through `meter.send`."""

    __slots__ = ("_family", "_send", "_started", "_status", "_streamed")

    def __init__(self, family: Family, send: Send) -> None:
        self._family, self._send = family, send
        self._started, self._status, self._streamed = time.perf_counter(), HUNG_UP, False

    async def send(self, event: Any) -> None:
        """ASGI's `send`."""
        if event["type"] == "http.response.start":
            self._status = event["status"]
            self._streamed = any(
                name == b"content-type" and value.startswith(b"text/event-stream")
                for name, value in event.get("headers", ())
            )
        elif self._streamed and event.get("body"):
            self._streamed = False
            self._family.first_token.observe(time.perf_counter() - self._started)
        await self._send(event)

    def __enter__(self) -> Self:
        self._family.in_flight.inc()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._family.in_flight.dec()
        self._family.ended[min(self._status // 100, 5)].inc()
        self._family.seconds.observe(time.perf_counter() - self._started)
