"""Message published -> handler started, on both buses, through the real consumer loop. Target: p50 <= 20 ms, p99 <= 100 ms.

    KAFKA_BOOTSTRAP_SERVERS=localhost:9092 python -m bench.bus [messages]

Without KAFKA_BOOTSTRAP_SERVERS only the embedded bus is measured. One message at a time, 100 ms apart, publisher and loop in two
processes; each message is handled and answered by another one in the same step.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from understudy.belt.bus import Bus
from understudy.belt.bus.connect import connect
from understudy.belt.contracts import Message, RunClosed, RunRequested
from understudy.belt.delivery import Lane
from understudy.belt.loop import Loop
from understudy.settings import Settings
from understudy.terms import Artifact

PUBLISHER = "import sys, bench.bus; bench.bus.publish(int(sys.argv[1]))"


def publish(count: int) -> None:
    """Publish `count` messages that carry the time, 100 ms apart."""
    bus = connect(Settings())
    plan = Artifact(sha256="0" * 64)
    for number in range(count):
        bus.publish(RunRequested(run=f"{number}/{time.time()}", plan=plan, name="bench", items=1))
        time.sleep(0.1)


def measure(bus: Bus, environment: dict[str, str], count: int) -> list[float]:
    """Milliseconds from the call of publish to the start of the handler, sorted."""
    delays: list[float] = []

    def handle(request: RunRequested) -> Iterator[Message]:
        delays.append((time.time() - float(request.run.split("/")[1])) * 1000)
        yield RunClosed(run=request.run, status="finished")

    loop = Loop(bus, Lane("datagen", {RunRequested: handle}), member="bench")
    thread = threading.Thread(target=loop.run)
    thread.start()
    time.sleep(2)
    subprocess.run([sys.executable, "-c", PUBLISHER, str(count + 20)], env=os.environ | environment, check=True)
    while len(delays) < count + 20:
        time.sleep(0.1)
    loop.stop.set()
    thread.join()
    return sorted(delays[20:])  # the first ones warm up


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    medians = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, servers in (("embedded", ""), ("kafka", os.environ.get("KAFKA_BOOTSTRAP_SERVERS", ""))):
            if name == "kafka" and not servers:
                continue
            settings = Settings(data=Path(folder), bus=servers, bus_prefix=f"bench-{uuid.uuid4().hex[:8]}-")
            environment = {
                "UNDERSTUDY_DATA": folder,
                "UNDERSTUDY_BUS": servers,
                "UNDERSTUDY_BUS_PREFIX": settings.bus_prefix,
            }
            bus = connect(settings)
            delays = measure(bus, environment, count)
            bus.close()
            medians[name] = statistics.median(delays)
            p99 = delays[int(len(delays) * 0.99)]
            print(f"{name:9} p50 {medians[name]:6.2f} ms   p99 {p99:6.2f} ms   of {len(delays)}")
    if len(medians) == 2:
        print(f"kafka / embedded, p50: {medians['kafka'] / medians['embedded']:.2f}")


if __name__ == "__main__":
    main()
