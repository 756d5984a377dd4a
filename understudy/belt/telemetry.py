"""What a station shows on /metrics: how its messages fare, its latest progress, and how far its group is behind.

Labels are stations, topics, outcomes and the names of figures, which code gives: never a run, an item or a text, so
that their number does not grow with use. Counts and times are of this process, to be summed over replicas; lag is of
the whole group, the same from every replica. Serves nothing (`service/web.py`); a service adds what only it has.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Literal, get_args

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from understudy.belt.bus import Bus, Record
from understudy.belt.contracts import Progress
from understudy.terms import Station

log = logging.getLogger(__name__)

Outcome = Literal["done", "dead_letter", "fenced", "retry", "unwanted", "given_back", "declined"]

ATTEMPTS = Counter(
    "understudy_message_attempts", "Attempts at a message, by how they ended", ["station", "topic", "outcome"]
)
IN_HAND = Gauge("understudy_messages_in_hand", "Messages being worked on", ["station", "topic"])
HANDLING = Histogram(
    "understudy_message_handling_seconds",
    "How long a message was in hand, with all attempts and the waits between them",
    ["station", "topic"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 10800, 36000),
)
WAITING = Histogram(
    "understudy_message_waiting_seconds",
    "From the publishing of a message to its first attempt, by the clocks of two machines",
    ["station", "topic"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 3, 10, 30, 100, 300, 1000, 3600, 10800, 36000),
)
LAG_PATIENCE = 2.0
"""Seconds a scrape waits for the bus."""


class Meter(Collector):
    """What one consumer loop tells about its messages; as a collector, the figures of its latest `Progress`."""

    def __init__(self, station: Station, lane: str, topics: Iterable[str]) -> None:
        self._station, self._lane = station, lane
        self._figures: dict[str, float] = {}
        for topic in topics:  # from zero on, or the first dead letter would not be an increase
            for outcome in get_args(Outcome):
                ATTEMPTS.labels(station, topic, outcome)
            for metric in (IN_HAND, HANDLING, WAITING):
                metric.labels(station, topic)

    @contextmanager
    def in_hand(self, record: Record) -> Iterator[None]:
        """Around the handling of one delivery."""
        labels = self._station, record.topic
        if record.delivery == 1:  # later ones tell how long a process was dead
            WAITING.labels(*labels).observe(max(0.0, time.time() - record.timestamp))
        self._figures = {}
        with IN_HAND.labels(*labels).track_inprogress(), HANDLING.labels(*labels).time():
            yield

    def ended(self, record: Record, outcome: Outcome) -> None:
        """One attempt is over."""
        ATTEMPTS.labels(self._station, record.topic, outcome).inc()

    def progress(self, progress: Progress) -> None:
        """Show these figures until the next progress or the next message."""
        self._figures = {"done": progress.done, "total": progress.total, **progress.figures}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, value in self._figures.items():
            family = GaugeMetricFamily(
                f"understudy_progress_{name}", "As the lane last said of its latest message", labels=["station", "lane"]
            )
            family.add_metric([self._station, self._lane], value)
            yield family

    def describe(self) -> list[GaugeMetricFamily]:
        return []


class Lag(Collector):
    """Messages the station's groups have not finished, read from the bus at each scrape, and whether the bus answered.

    When it does not within `LAG_PATIENCE` seconds, the lag is absent, and the scrape neither fails nor waits longer.
    One thread asks, because connections of the bus may belong to a thread.
    """

    def __init__(self, bus: Bus, station: Station, groups: Sequence[str]) -> None:
        self._bus, self._station, self._groups = bus, station, tuple(groups)
        self._questions: SimpleQueue[Future[dict[str, int]]] = SimpleQueue()
        Thread(target=self._answer, name=f"{station}-lag", daemon=True).start()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        up, lag = self.describe()
        question: Future[dict[str, int]] = Future()
        self._questions.put(question)
        try:
            for topic, messages in question.result(LAG_PATIENCE).items():
                lag.add_metric([self._station, topic], messages)
            up.add_metric([self._station], 1)
        except Exception as error:
            question.cancel()
            log.debug("no lag on /metrics: %r", error)
            up.add_metric([self._station], 0)
        yield from (up, lag)

    def describe(self) -> list[GaugeMetricFamily]:
        return [
            GaugeMetricFamily("understudy_bus_up", "1 when the bus answers this process", labels=["station"]),
            GaugeMetricFamily(
                "understudy_lag_messages",
                "Messages that the station's group has not finished",
                labels=["station", "topic"],
            ),
        ]

    def _answer(self) -> None:
        while True:
            question = self._questions.get()
            if question.set_running_or_notify_cancel():  # else its scrape has given up
                try:
                    lags = [self._bus.lag(group) for group in self._groups]
                    question.set_result({topic: count for lag in lags for topic, count in lag.items()})
                except Exception as error:
                    question.set_exception(error)
