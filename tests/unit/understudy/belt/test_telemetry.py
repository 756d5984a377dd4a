"""What /metrics says of a station: real loop, real bus; and that a bus which is away makes lag absent, not /metrics slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry

from understudy.belt import contracts as c
from understudy.belt import telemetry as metrics
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.delivery import Lane
from understudy.belt.loop import Loop
from understudy.belt.telemetry import Lag
from understudy.errors import Invalid, Transient

REQUEST = c.RunRequested(run="r", plan=c.Artifact(sha256="0" * 64), name="r", items=1)
LABELS = {"station": "datagen", "topic": "run-requested"}


@pytest.fixture
def bus(tmp_path: Path) -> EmbeddedBus:
    return EmbeddedBus(tmp_path / "bus.sqlite", lease=1)


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def outcomes() -> dict[str, float]:
    names = ("done", "dead_letter", "fenced", "retry")
    return {name: value("understudy_message_attempts_total", outcome=name, **LABELS) for name in names}


def run(bus: EmbeddedBus, handler: Callable[[Any], Iterator[c.Message]], until: Callable[[], object]) -> Loop:
    """Run a loop until `until()` holds."""
    loop = Loop(bus, Lane("datagen", {c.RunRequested: handler}), backoff=0.01, tick=0.05)
    thread = threading.Thread(target=loop.run)
    thread.start()
    deadline = time.monotonic() + 10
    while not until() and time.monotonic() < deadline:
        time.sleep(0.01)
    loop.stop.set()
    thread.join(10)
    assert until()
    return loop


def figures(loop: Loop) -> dict[str, float]:
    return {f.name.removeprefix("understudy_progress_"): f.samples[0].value for f in loop.meter.collect()}


def test_every_attempt_is_counted_by_how_it_ended(bus: EmbeddedBus) -> None:
    calls = []

    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        calls.append(1)
        if len(calls) == 1:
            raise Transient("not now")
        if len(calls) == 3:
            raise Invalid("never")
        if len(calls) == 4:  # another process of our name takes the message over
            bus.subscribe("datagen", ["run-requested"], "datagen-0").poll(1)
        yield from ()

    before = outcomes()
    waited = value("understudy_message_waiting_seconds_count", **LABELS)
    took = value("understudy_message_handling_seconds_count", **LABELS)
    for _ in range(3):
        bus.publish(REQUEST)
    run(bus, handler, lambda: outcomes()["done"] == before["done"] + 2)
    ended = {name: count - before[name] for name, count in outcomes().items()}
    assert ended == {"retry": 1, "done": 2, "dead_letter": 1, "fenced": 1}
    assert value("understudy_message_waiting_seconds_count", **LABELS) - waited == 3, "the fenced one came twice"
    assert value("understudy_message_handling_seconds_count", **LABELS) - took == 4


def test_all_counts_begin_at_zero(bus: EmbeddedBus) -> None:
    """A rule on an increase would miss the first dead letter if the series began with it."""
    Loop(bus, Lane("trainer", {c.RunClosed: lambda _: iter(())}))  # a pair that no other test touches
    labels = {"station": "trainer", "topic": "run-closed", "outcome": "dead_letter"}
    assert REGISTRY.get_sample_value("understudy_message_attempts_total", labels) == 0


def test_a_message_is_in_hand_while_it_is_worked_on_and_waited_from_its_publishing(bus: EmbeddedBus) -> None:
    seen: list[float] = []

    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        seen.append(value("understudy_messages_in_hand", **LABELS))
        yield from ()

    waited = value("understudy_message_waiting_seconds_sum", **LABELS)
    bus.publish(REQUEST)
    time.sleep(0.3)
    run(bus, handler, lambda: seen)
    assert seen == [1]
    assert value("understudy_messages_in_hand", **LABELS) == 0
    assert 0.3 <= value("understudy_message_waiting_seconds_sum", **LABELS) - waited < 3


def test_the_latest_figures_stay_until_the_next_message(bus: EmbeddedBus) -> None:
    calls: list[int] = []

    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        calls.append(1)
        if len(calls) == 1:
            yield c.Progress(run="r", station="datagen", step="a", done=1, total=4, figures={"eta_seconds": 3})
            yield c.Progress(run="r", station="datagen", step="b", done=2, total=4, figures={"loss": 0.5})

    bus.publish(REQUEST)
    loop = run(bus, handler, lambda: len(calls) == 1)
    assert figures(loop) == {"done": 2, "total": 4, "loss": 0.5}
    bus.publish(REQUEST)
    assert not figures(run(bus, handler, lambda: len(calls) == 2))


def test_the_lanes_of_a_station_have_figures_of_their_own(bus: EmbeddedBus) -> None:
    """Two series with the same labels would make Prometheus refuse the whole scrape."""
    registry = CollectorRegistry()
    for group in ("evaluator", "reporter"):
        loop = Loop(bus, Lane(group, {}))
        loop.meter.progress(c.Progress(run="r", station="evaluator", step="x", done=len(group)))
        registry.register(loop.meter)
    lanes = {"evaluator": 9, "reporter": 8}
    for lane, done in lanes.items():
        labels = {"station": "evaluator", "lane": lane}
        assert registry.get_sample_value("understudy_progress_done", labels) == done
    assert (
        len({frozenset(s.labels.items()) for f in registry.collect() for s in f.samples if s.name.endswith("done")})
        == 2
    )


def test_lag_is_what_the_group_has_not_finished(bus: EmbeddedBus) -> None:
    registry = CollectorRegistry()
    registry.register(Lag(bus, "datagen", ["datagen"]))
    bus.subscribe("datagen", ["run-requested"], "datagen-0").close()
    assert registry.get_sample_value("understudy_lag_messages", LABELS) == 0
    bus.publish(REQUEST)
    bus.publish(REQUEST)
    assert registry.get_sample_value("understudy_lag_messages", LABELS) == 2
    run(bus, lambda _: iter(()), lambda: registry.get_sample_value("understudy_lag_messages", LABELS) == 0)
    assert registry.get_sample_value("understudy_bus_up", {"station": "datagen"}) == 1


class Away(EmbeddedBus):
    """A bus that does not answer, or answers with an error, until it is back."""

    def __init__(self, path: Path, error: Exception | None) -> None:
        super().__init__(path)
        self.error, self.back, self.asked = error, threading.Event(), 0

    def lag(self, group: str) -> dict[str, int]:
        self.asked += 1
        if not self.back.is_set() and self.error:
            raise self.error
        self.back.wait()
        return {"run-requested": 7}


@pytest.mark.parametrize("error", [None, Transient("no broker")])
def test_a_bus_that_is_away_makes_lag_absent_and_scrapes_neither_slow_nor_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    monkeypatch.setattr(metrics, "LAG_PATIENCE", 0.2)
    away, registry = Away(tmp_path / "bus.sqlite", error), CollectorRegistry()
    registry.register(Lag(away, "datagen", ["datagen"]))
    began = time.monotonic()
    for _ in range(3):
        assert registry.get_sample_value("understudy_bus_up", {"station": "datagen"}) == 0
        assert registry.get_sample_value("understudy_lag_messages", LABELS) is None
    assert time.monotonic() - began < 3
    assert away.asked == (6 if error else 1), "scrapes that gave up must not queue up at the bus"
    away.back.set()
    assert registry.get_sample_value("understudy_lag_messages", LABELS) == 7
    assert registry.get_sample_value("understudy_bus_up", {"station": "datagen"}) == 1
