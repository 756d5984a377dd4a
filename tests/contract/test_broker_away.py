"""A broker that is away in the middle of long work stops nothing: the handler goes on, its result is published when the broker
is back, nothing is handled twice or counted against the message.

The broker is away for several sessions of the group. BROKER_AWAY=300 makes it five minutes, with the sessions that are used
outside of tests.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import kafka_broker
import pytest
from bus_contract import TOPIC, closed, request

from understudy.belt.bus.kafka import POLL_INTERVAL, SESSION, KafkaBus
from understudy.belt.contracts import Message, Progress, RunRequested, decode
from understudy.belt.delivery import Lane
from understudy.belt.loop import Loop
from understudy.belt.topics import TABLE

AWAY = float(os.environ.get("BROKER_AWAY", "8"))
REAL = AWAY >= 60
TIMES = {"session": SESSION, "poll_interval": POLL_INTERVAL} if REAL else {"session": 2.0, "poll_interval": 2.0}
"""Seconds."""

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.long,
    pytest.mark.timeout(600 + 3 * AWAY),
    pytest.mark.skipif(kafka_broker.home() is None, reason="needs KAFKA_HOME, an unpacked Apache Kafka"),
]


@pytest.mark.parametrize("how", ["killed", "frozen"])
@pytest.mark.parametrize("back", ["while it works", "after it is done"])
def test_a_broker_that_is_away_stops_no_work(how: str, back: str, tmp_path: Path) -> None:
    home = kafka_broker.home()
    assert home
    begun, done, handled, ended = threading.Event(), threading.Event(), Counter[str](), Counter[str]()

    def work(message: RunRequested) -> Iterator[Message]:
        handled[message.run] += 1
        if message.run == "long":
            begun.set()
            step = 0
            while not done.wait(0.1):
                step += 1
                yield Progress.answering(message, station="datagen", step="working", mark=step)
        yield closed(message.run)
        ended[message.run] += 1

    with kafka_broker.Broker(home, tmp_path / "broker") as broker:
        bus = KafkaBus(broker.servers, **TIMES)
        loop = Loop(bus, Lane("datagen", {RunRequested: work}), member="m")
        thread = threading.Thread(target=loop.run)
        thread.start()
        try:
            bus.publish(request("long"))
            assert begun.wait(30)
            time.sleep(1)
            broker.kill() if how == "killed" else broker.send(signal.SIGSTOP)
            time.sleep(AWAY)
            if back == "after it is done":
                done.set()
                time.sleep(2)
            broker.start() if how == "killed" else broker.send(signal.SIGCONT)
            time.sleep(5 if back == "while it works" else 0)
            done.set()
            bus.publish(request("next"))
            closed_runs: list[str] = []
            deadline = time.monotonic() + 120
            while len(set(closed_runs)) < 2 and time.monotonic() < deadline:
                time.sleep(0.5)
                found = [record for record in bus.replay(["run-closed"]) if record]
                closed_runs = [decode(record.value).run for record in found]
        finally:
            done.set()
            loop.stop.set()
            thread.join(60)
        assert sorted(closed_runs) == ["long", "next"]
        assert handled == ended == {"long": 1, "next": 1}
        counts = Counter(record.topic for record in bus.replay([topic.name for topic in TABLE]) if record)
        assert counts["dead-letters"] == 0
        assert bus.lag("datagen")[TOPIC] == 0
        bus.close()
