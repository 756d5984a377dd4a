"""The consumer loop: emit after success, then commit; three kinds of error; long work; stop at any moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from understudy.belt import contracts as c
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.loop import Loop
from understudy.errors import Fatal, Invalid, Transient
from understudy.recipe import parse

REQUEST = c.RunRequested(run="r", recipe=parse({"datasets": {"d": {"source": "d.csv"}}}, "r"))
DONE = c.RunFailed(run="r", station="datagen", reason="done")


@pytest.fixture
def bus(tmp_path: Path) -> EmbeddedBus:
    return EmbeddedBus(tmp_path / "bus.sqlite", lease=1)


def messages(bus: EmbeddedBus, topic: str) -> list[Any]:
    return [c.decode(record.value) for record in bus.replay([topic]) if record]


def run(
    bus: EmbeddedBus, handler: Callable[[Any], Iterator[c.Message]], until: Callable[[], object], **options: Any
) -> None:
    """Run a loop until `until()` holds."""
    loop = Loop(bus, "datagen", {c.RunRequested: handler}, backoff=0.01, keep_alive_every=0.05, **options)
    thread = threading.Thread(target=loop.run)
    thread.start()
    deadline = time.monotonic() + 15
    while not until() and time.monotonic() < deadline:
        time.sleep(0.01)
    loop.stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert until()


def test_outputs_come_with_the_commit_and_progress_at_once(bus: EmbeddedBus) -> None:
    seen_while_working: list[int] = []

    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        yield DONE
        yield c.Progress(run="r", station="datagen", step="half")
        time.sleep(0.1)
        seen_while_working.extend([len(messages(bus, "report-published")), len(messages(bus, "progress"))])

    bus.publish(REQUEST)
    run(bus, handler, lambda: messages(bus, "report-published"))
    assert seen_while_working == [0, 1]
    run(bus, handler, lambda: True)
    assert len(messages(bus, "report-published")) == 1, "a committed message came again"


def test_invalid_becomes_a_dead_letter_and_a_failure_at_the_first_try(bus: EmbeddedBus) -> None:
    calls = []

    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        calls.append(1)
        raise Invalid("The table is empty", "Add rows.")
        yield

    bus.publish(REQUEST)
    run(bus, handler, lambda: messages(bus, "dead-letters"))
    [letter], [failed] = messages(bus, "dead-letters"), messages(bus, "report-published")
    assert (letter.topic, letter.reason, len(calls)) == ("run-requested", "The table is empty. Add rows.", 1)
    assert c.decode(letter.value.encode()) == REQUEST
    assert (failed.station, failed.reason) == ("datagen", letter.reason)


def test_transient_is_tried_again_and_what_the_failed_try_yielded_is_dropped(bus: EmbeddedBus) -> None:
    calls = []

    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        calls.append(1)
        yield DONE
        if len(calls) < 3:
            raise Transient("not now")

    bus.publish(REQUEST)
    run(bus, handler, lambda: messages(bus, "report-published"))
    assert len(calls) == 3
    assert messages(bus, "report-published") == [DONE]


def test_what_never_gets_better_is_given_up_with_the_number_of_tries(bus: EmbeddedBus) -> None:
    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        raise ValueError("surprise")
        yield

    bus.publish(REQUEST)
    run(bus, handler, lambda: messages(bus, "dead-letters"), attempts=3)
    [letter] = messages(bus, "dead-letters")
    assert letter.attempts == 3
    assert "ValueError" in letter.reason
    assert "surprise" in letter.reason


def test_bytes_that_are_no_message_are_buried_and_life_goes_on(bus: EmbeddedBus) -> None:
    bus.publish(REQUEST)
    with bus._transaction() as db:
        db.execute("UPDATE messages SET value = ?", (b"\xff{not json",))
    bus.publish(REQUEST)
    run(bus, lambda _: iter([DONE]), lambda: messages(bus, "report-published"))
    assert "Not a message" in messages(bus, "dead-letters")[0].reason


def test_fatal_ends_the_loop_and_leaves_the_message(bus: EmbeddedBus) -> None:
    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        raise Fatal("The disk is full")
        yield

    bus.publish(REQUEST)
    with pytest.raises(Fatal):
        Loop(bus, "datagen", {c.RunRequested: handler}).run()
    assert not messages(bus, "dead-letters")
    run(bus, lambda _: iter([DONE]), lambda: messages(bus, "report-published"))


def test_work_longer_than_the_lease_stays_ours(bus: EmbeddedBus) -> None:
    calls = []

    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        calls.append(1)
        time.sleep(2.5)  # the lease is 1 s
        yield DONE

    bus.publish(REQUEST)
    other = bus.subscribe("datagen", ["run-requested"], "datagen-other")
    thieves: list[object] = []
    watching = threading.Event()

    def watch() -> None:
        while not watching.wait(0.05):
            if calls and (record := other.poll(0)):
                thieves.append(record)

    thread = threading.Thread(target=watch)
    thread.start()
    run(bus, handler, lambda: messages(bus, "report-published"))
    watching.set()
    thread.join()
    assert calls == [1]
    assert not thieves


def test_stop_in_the_middle_closes_the_handler_and_the_message_comes_again(bus: EmbeddedBus) -> None:
    closed, started = threading.Event(), threading.Event()

    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        try:
            while True:
                started.set()
                time.sleep(0.02)
                yield c.Progress(run="r", station="datagen", step="working")
        finally:
            closed.set()

    bus.publish(REQUEST)
    run(bus, handler, started.is_set)
    assert closed.wait(2)
    run(bus, lambda _: iter([DONE]), lambda: messages(bus, "report-published"))


def test_a_message_that_ends_the_process_each_time_is_poison(bus: EmbeddedBus) -> None:
    bus.publish(REQUEST)
    for _ in range(4):  # four processes took it and died
        assert bus.subscribe("datagen", ["run-requested"], "datagen-0").poll(1)
    run(bus, lambda _: iter([DONE]), lambda: messages(bus, "dead-letters"), deliveries=4)
    assert "end the process" in messages(bus, "dead-letters")[0].reason
    assert messages(bus, "report-published")[0].reason.startswith("Handed out 5 times")
