"""What a long life costs: a service on a bus with 1,000 finished runs and a million words of progress, against one on an empty bus.

    python -m bench.ledger [RUNS] [PROGRESS]

Starts real services (datagen, inference; no engine) on both, and prints how long each takes until it is ready, how long lists and
an unknown model take, and how long the event loop is ever held up while somebody asks for lists without a pause.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from understudy.belt import contracts as c
from understudy.belt import turns
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.turns import Book
from understudy.service.ports import free_ports

A = c.Artifact(sha256="0" * 64)
ITEMS = ("base", "remarks-only", "remarks+general")
BATCH = 2000


def main(runs: int = 1000, progress: int = 1_000_000) -> None:
    """Fill, measure, print."""
    with tempfile.TemporaryDirectory() as folder:
        empty, full = Path(folder) / "empty", Path(folder) / "full"
        began = time.monotonic()
        fill(full, runs, progress)
        size = (full / "bus.sqlite").stat().st_size
        print(
            f"filled {runs:,} runs, {progress:,} progress messages: {time.monotonic() - began:.0f} s, {size / 2**20:.0f} MiB"
        )
        for station in ("datagen", "inference"):
            nothing, much = measure(station, empty), measure(station, full)
            for what in nothing:
                ratio = much[what] / nothing[what]
                print(
                    f"{station:10} {what:44} {1000 * much[what]:8.1f} ms   empty {1000 * nothing[what]:8.1f} ms   x{ratio:.2f}"
                )


def fill(data: Path, runs: int, progress: int) -> None:
    """A bus that has seen so many runs, and so much progress spread over them."""
    bus = EmbeddedBus(data / "bus.sqlite")
    batch: list[c.Message] = []
    for number in range(runs):
        batch += story(f"run-{number:05}")
        if len(batch) > BATCH:
            bus.publish(*batch)
            batch.clear()
    bus.publish(*batch)
    words = (
        c.Progress(
            run=f"run-{number % runs:05}",
            item=ITEMS[number // runs % len(ITEMS)],
            station="trainer",
            step="training",
            done=number,
            total=progress,
            figures={"loss": 1.0, "tokens_per_second": 2000.0, "eta_seconds": 1.0},
            at=time.time(),
        )
        for number in range(progress)
    )
    while some := [word for _, word in zip(range(BATCH), words, strict=False)]:
        bus.publish(*some)
    bus.close()


def story(run: str) -> list[c.Message]:
    """All messages of one finished run."""
    told: list[c.Message] = [
        c.ItemPlanned(run=run, item=item, index=index, base="seedling") for index, item in enumerate(ITEMS)
    ]
    told.append(c.RunRequested(run=run, plan=A, name="bench", bases=("seedling",), items=len(ITEMS)))
    made = c.DatasetsMade(run=run, plan=A, datasets=A)
    told.append(made)
    book = turns.apply(Book(), made)
    for index, item in enumerate(ITEMS):
        asked = c.TrainingRequested(run=run, item=item, index=index, plan=A, datasets=A)
        model = f"ft:seedling:bench:{item}:{run[-5:]}"
        scored = c.ItemScored(run=run, item=item, scores=A)
        book = turns.apply(book, scored)
        told += [asked, c.ServingRequested.following(asked, adapter=A)]
        told.append(c.ModelServed(run=run, item=item, model=model, base="seedling", parent="seedling", adapter=A))
        told += [c.ScoringRequested.following(asked, model=model), scored]
    told.append(c.RunClosed(run=run, status="finished", outcome=turns.outcome(book), report=A))
    return told


def measure(station: str, data: Path) -> dict[str, float]:
    """Seconds: until it is ready, and per request (median, worst)."""
    (port,) = free_ports(1)
    env = {**os.environ, "UNDERSTUDY_DATA": str(data), "UNDERSTUDY_PORT": str(port), "UNDERSTUDY_MEMBER": "0"}
    began = time.monotonic()
    service = subprocess.Popen([sys.executable, "-m", f"services.{station}"], env=env, stderr=subprocess.DEVNULL)
    try:
        while not answers(port):
            if service.poll() is not None or time.monotonic() - began > 120:
                sys.exit(f"{station} did not become ready")
            time.sleep(0.02)
        found = {"ready after": time.monotonic() - began}
        lists = "/v1/runs?limit=100" if station == "datagen" else "/v1/models"
        with Worst(port) as worst:
            found |= times(f"GET {lists}", lambda: ask(port, "GET", lists))
            if station == "inference":
                body = json.dumps({"model": "nobody", "messages": []})
                found |= times("unknown model", lambda: ask(port, "POST", "/v1/chat/completions", body, 404))
        found["worst other request meanwhile"] = worst.seconds
        return found
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(30)


class Worst:
    """Asks for the cheapest thing there is, all the time; `seconds` is the longest it took: somebody held up the event loop."""

    def __init__(self, port: int) -> None:
        self.seconds = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(port,))

    def _run(self, port: int) -> None:
        while not self._stop.wait(0.002):
            began = time.perf_counter()
            ask(port, "GET", "/v1/engines/nothing", expect=404)
            self.seconds = max(self.seconds, time.perf_counter() - began)

    def __enter__(self) -> Worst:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def times(what: str, do: Callable[[], object], count: int = 300) -> dict[str, float]:
    """Median and 99th percentile of `count` calls."""
    do()
    took = []
    for _ in range(count):
        began = time.perf_counter()
        do()
        took.append(time.perf_counter() - began)
    return {f"{what}, median": statistics.median(took), f"{what}, 99 %": statistics.quantiles(took, n=100)[98]}


_kept = threading.local()


def ask(port: int, method: str, path: str, body: str | None = None, expect: int = 200) -> None:
    """One request on this thread's kept connection."""
    connections = _kept.__dict__.setdefault("connections", {})
    connection = connections.setdefault(port, http.client.HTTPConnection("127.0.0.1", port, timeout=30))
    connection.request(method, path, body, {"content-type": "application/json"} if body else {})
    response = connection.getresponse()
    response.read()
    assert response.status == expect, (path, response.status)


def answers(port: int) -> bool:
    """Whether the service is ready."""
    try:
        ask(port, "GET", "/readyz")
        return True
    except (OSError, http.client.HTTPException, AssertionError):
        _kept.__dict__.get("connections", {}).pop(port, None)
        return False


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
