"""The consumer loop: emit after success, then commit; kinds of error; long work side by side; cancel and stop at any moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from understudy.belt import contracts as c
from understudy.belt.bus import ENVELOPE, Record
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.delivery import Lane
from understudy.belt.folds.control import Control
from understudy.belt.folds.reader import Reader
from understudy.belt.loop import Loop
from understudy.belt.topics import BY_NAME
from understudy.errors import Fatal, Invalid, Transient
from understudy.interrupt import check

A = c.Artifact(sha256="0" * 64)
REQUEST = c.RunRequested(run="r", plan=A, name="r", items=1)
DONE = c.RunClosed(run="r", status="failed", station="datagen", reason="done")
Handler = Callable[[Any], Iterator[c.Message]]


@pytest.fixture
def bus(tmp_path: Path) -> EmbeddedBus:
    return EmbeddedBus(tmp_path / "bus.sqlite", lease=1)


def messages(bus: EmbeddedBus, topic: str) -> list[Any]:
    return [c.decode(record.value) for record in bus.replay([topic]) if record]


def until(met: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not met() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert met()


class Running:
    """A loop in a thread, with the fold it obeys; ends with the block."""

    def __init__(self, bus: EmbeddedBus, lane: Lane, **options: Any) -> None:
        self.control, self.stop = Control(), threading.Event()
        reader = Reader(bus, [self.control])
        self.loop = Loop(
            bus,
            lane,
            self.control,
            **{"ready": lambda: reader.caught_up.wait(5), "stop": self.stop, "backoff": 0.01, "tick": 0.05} | options,
        )
        self.error: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run),
            threading.Thread(target=reader.follow, args=(self.stop,), daemon=True),
        ]

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:
            self.error.append(error)

    def __enter__(self) -> Running:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


def run(bus: EmbeddedBus, handler: Handler, met: Callable[[], object], **options: Any) -> None:
    """Run a loop until `met()` holds."""
    with Running(bus, Lane("datagen", {c.RunRequested: handler}), **options):
        until(met)


def test_outputs_come_with_the_commit_and_progress_at_once(bus: EmbeddedBus) -> None:
    seen_while_working: list[int] = []

    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        yield DONE
        yield c.Progress(run="r", station="datagen", step="half")
        time.sleep(0.1)
        seen_while_working.extend([len(messages(bus, "run-closed")), len(messages(bus, "progress"))])

    bus.publish(REQUEST)
    run(bus, handler, lambda: messages(bus, "run-closed"))
    assert seen_while_working == [0, 1]
    assert messages(bus, "progress")[0].at == pytest.approx(time.time(), abs=20)
    run(bus, handler, lambda: True)
    assert len(messages(bus, "run-closed")) == 1, "a committed message came again"


def test_invalid_becomes_a_dead_letter_and_a_failure_at_the_first_try(bus: EmbeddedBus) -> None:
    calls = []

    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        calls.append(1)
        raise Invalid("The table is empty", "Add rows.")
        yield

    bus.publish(REQUEST)
    run(bus, handler, lambda: messages(bus, "dead-letters"))
    [letter], [failed] = messages(bus, "dead-letters"), messages(bus, "run-closed")
    assert (letter.topic, letter.reason, len(calls)) == ("run-requested", "The table is empty. Add rows.", 1)
    assert c.decode(letter.value.encode()) == REQUEST
    assert (failed.station, failed.status, failed.reason) == ("datagen", "failed", letter.reason)


def test_a_message_near_the_limit_of_its_topic_is_buried_and_life_goes_on(bus: EmbeddedBus) -> None:
    """Its names are in what would be said of its failure too, and the reason beside them."""
    name = "r" * ((BY_NAME["run-requested"].max_bytes - ENVELOPE - len(c.encode(REQUEST))) // 2)

    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        raise Invalid("\N{SEEDLING}" * 5000)
        yield

    bus.publish(REQUEST.model_copy(update={"run": name}), REQUEST)
    with Running(bus, Lane("datagen", {c.RunRequested: handler})) as running:
        until(lambda: len(messages(bus, "dead-letters")) == 2 or running.error)
        assert not running.error
    assert sorted(len(letter.run) for letter in messages(bus, "dead-letters")) == [1, len(name)]
    assert [closed.run for closed in messages(bus, "run-closed")] == ["r"]


def test_transient_is_tried_again_and_what_the_failed_try_yielded_is_dropped(bus: EmbeddedBus) -> None:
    calls = []

    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        calls.append(1)
        yield DONE
        if len(calls) < 3:
            raise Transient("not now")

    bus.publish(REQUEST)
    run(bus, handler, lambda: messages(bus, "run-closed"))
    assert len(calls) == 3
    assert messages(bus, "run-closed") == [DONE]


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


def test_a_patient_lane_never_gives_up_on_what_may_come_back(bus: EmbeddedBus) -> None:
    calls = []

    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        calls.append(1)
        if len(calls) < 9:
            raise Transient("the store is away")
        yield DONE

    bus.publish(REQUEST)
    with Running(bus, Lane("datagen", {c.RunRequested: handler}, patient=True), backoff=0.001):
        until(lambda: messages(bus, "run-closed"))
    assert not messages(bus, "dead-letters")


def test_bytes_that_are_no_message_are_buried_and_life_goes_on(bus: EmbeddedBus) -> None:
    bus.publish(REQUEST)
    with bus._transaction() as db:
        db.execute("UPDATE messages SET value = ?", (b"\xff{not json",))
    bus.publish(REQUEST)
    run(bus, lambda _: iter([DONE]), lambda: messages(bus, "run-closed"))
    assert "Not a message" in messages(bus, "dead-letters")[0].reason


def test_fatal_ends_the_loop_and_leaves_the_message(bus: EmbeddedBus) -> None:
    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        raise Fatal("The disk is full")
        yield

    bus.publish(REQUEST)
    with Running(bus, Lane("datagen", {c.RunRequested: handler})) as running:
        until(lambda: running.error)
    assert isinstance(running.error[0], Fatal)
    assert not messages(bus, "dead-letters")
    run(bus, lambda _: iter([DONE]), lambda: messages(bus, "run-closed"))


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
    run(bus, handler, lambda: messages(bus, "run-closed"))
    watching.set()
    thread.join()
    assert calls == [1]
    assert not thieves


def endless(closed: threading.Event, started: threading.Event) -> Handler:
    def handler(message: c.RunRequested) -> Iterator[c.Message]:
        try:
            while True:
                started.set()
                time.sleep(0.02)
                yield c.Progress(run=message.run, station="datagen", step="working")
        finally:
            closed.set()

    return handler


def test_stop_in_the_middle_closes_the_handler_and_the_message_comes_again_uncounted(bus: EmbeddedBus) -> None:
    closed, started = threading.Event(), threading.Event()
    bus.publish(REQUEST)
    for _ in range(4):
        started.clear()
        run(bus, endless(closed, started), started.is_set, deliveries=3)
        assert closed.wait(2)
    run(bus, lambda _: iter([DONE]), lambda: messages(bus, "run-closed"), deliveries=3)
    assert not messages(bus, "dead-letters"), "orderly stops were taken for poison"


def kill(bus: EmbeddedBus, mark: int | None = None) -> None:
    """A process takes the message, gets so far, and dies."""
    member = bus.subscribe("datagen", ["run-requested"], "datagen-0")
    record = member.poll(1)
    assert record
    if mark and mark > record.furthest and record.delivery > 1:
        member.furthest(record, mark)


def test_a_message_that_ends_the_process_each_time_is_poison(bus: EmbeddedBus) -> None:
    bus.publish(REQUEST)
    for _ in range(4):
        kill(bus)
    run(bus, lambda _: iter([DONE]), lambda: messages(bus, "dead-letters"), deliveries=4)
    assert "end the process" in messages(bus, "dead-letters")[0].reason
    assert messages(bus, "run-closed")[0].reason.startswith("Handed out 5 times")


def test_work_that_gets_further_each_time_is_no_poison(bus: EmbeddedBus) -> None:
    bus.publish(REQUEST)
    for step in range(9):
        kill(bus, mark=step + 1)
    run(bus, lambda _: iter([DONE]), lambda: messages(bus, "run-closed"), deliveries=4)
    assert not messages(bus, "dead-letters")


def test_the_loop_remembers_the_furthest_mark_and_only_what_goes_beyond_it_clears_the_count(bus: EmbeddedBus) -> None:
    def reaching(*marks: int) -> Handler:
        def handler(_: c.RunRequested) -> Iterator[c.Message]:
            for mark in marks:
                yield c.Progress(run="r", station="datagen", step="x", mark=mark)
            reached.set()
            while True:
                time.sleep(0.02)
                yield c.Progress(run="r", station="datagen", step="x")

        return handler

    def next_delivery() -> tuple[int, int]:
        member = bus.subscribe("datagen", ["run-requested"], "datagen-0")
        record = member.poll(1)
        assert record
        member.close()  # in order: does not count
        return record.delivery, record.furthest

    bus.publish(REQUEST)
    for _ in range(3):
        kill(bus)
    assert next_delivery() == (4, 0)
    for marks, expected in (((1, 2, 5), (1, 5)), ((3, 4, 5), (3, 5)), ((4, 6), (1, 6))):
        reached = threading.Event()
        run(bus, reaching(*marks), reached.is_set)
        assert next_delivery() == expected, marks
        kill(bus)
        kill(bus)


def test_a_cancelled_message_is_closed_at_once_and_committed_without_a_word(bus: EmbeddedBus) -> None:
    closed, started = threading.Event(), threading.Event()
    bus.publish(REQUEST)
    with Running(bus, Lane("datagen", {c.RunRequested: endless(closed, started)})):
        assert started.wait(5)
        began = time.monotonic()
        bus.publish(c.CancelRequested(run="r"))
        assert closed.wait(2)
        assert time.monotonic() - began < 1
        until(lambda: bus.lag("datagen") == {"run-requested": 0})
    assert not messages(bus, "run-closed")
    assert not messages(bus, "dead-letters")


def test_a_cancelled_message_that_waits_is_never_begun_and_the_next_generation_is(bus: EmbeddedBus) -> None:
    seen: list[int] = []

    def handler(message: c.RunRequested) -> Iterator[c.Message]:
        seen.append(message.generation)
        yield DONE

    bus.publish(REQUEST, c.CancelRequested(run="r"), REQUEST.model_copy(update={"generation": 2}))
    run(bus, handler, lambda: bus.lag("datagen") == {"run-requested": 0})
    assert seen == [2]


@pytest.mark.parametrize("wish", [c.CancelRequested(run="r"), c.RunDeleted(run="r")], ids=["cancel", "delete"])
def test_cancelled_between_two_tries_it_is_let_be_and_the_loop_goes_on(bus: EmbeddedBus, wish: c.Message) -> None:
    """The endpoint does not answer, so somebody cancels: other runs in this lane must not notice."""
    tried = threading.Event()

    def handler(message: c.RunRequested) -> Iterator[c.Message]:
        if message.run == "r":
            tried.set()
            raise Transient("nobody answers")
        yield DONE.model_copy(update={"run": message.run})

    bus.publish(REQUEST)
    with Running(bus, Lane("datagen", {c.RunRequested: handler}), backoff=30) as running:
        assert tried.wait(5)
        bus.publish(wish)
        until(lambda: bus.lag("datagen") == {"run-requested": 0}, 5)
        bus.publish(c.RunRequested(run="s", plan=A, name="s", items=1))
        until(lambda: [m.run for m in messages(bus, "run-closed")] == ["s"], 5)
        assert not running.error
    assert not messages(bus, "dead-letters")


def test_a_blocking_call_hears_that_it_is_cancelled(bus: EmbeddedBus) -> None:
    """As a transfer to a store does, between two pieces."""
    began, heard = threading.Event(), threading.Event()

    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        began.set()
        try:
            while True:
                time.sleep(0.01)
                check()
        finally:
            heard.set()
        yield DONE

    bus.publish(REQUEST)
    with Running(bus, Lane("datagen", {c.RunRequested: handler})):
        assert began.wait(5)
        bus.publish(c.CancelRequested(run="r"))
        assert heard.wait(2)
        until(lambda: bus.lag("datagen") == {"run-requested": 0})
    assert not messages(bus, "dead-letters")


def test_the_next_message_waits_until_the_cancelled_one_has_ended(bus: EmbeddedBus) -> None:
    order: list[str] = []

    def handler(message: c.RunRequested) -> Iterator[c.Message]:
        order.append(f"begin {message.run}")
        try:
            while message.run == "r":
                time.sleep(0.01)
                yield c.Progress(run="r", station="datagen", step="x")
        finally:
            time.sleep(0.3 if message.run == "r" else 0)
            order.append(f"end {message.run}")

    bus.publish(REQUEST)
    with Running(bus, Lane("datagen", {c.RunRequested: handler})):
        until(lambda: order)
        bus.publish(c.RunRequested(run="s", plan=A, name="s", items=1), c.CancelRequested(run="r"))
        until(lambda: len(order) == 4)
    assert order == ["begin r", "end r", "begin s", "end s"]


def test_what_a_deleted_run_left_is_forgotten_once_its_work_has_ended(bus: EmbeddedBus) -> None:
    closed, started = threading.Event(), threading.Event()
    forgotten: list[tuple[str, bool]] = []
    bus.publish(REQUEST)
    lane = Lane("datagen", {c.RunRequested: endless(closed, started)}, obeys=("deleted",))
    with Running(bus, lane, forget=lambda name: forgotten.append((name, closed.is_set()))):
        assert started.wait(5)
        bus.publish(c.CancelRequested(run="r"))
        assert not closed.wait(0.5), "this lane does not obey a cancel"
        bus.publish(c.RunDeleted(run="r"))
        until(lambda: forgotten)
    assert forgotten == [("r", True)]


def item(run: str, index: int, **more: Any) -> c.TrainingRequested:
    return c.TrainingRequested(run=run, item=f"i{index}", index=index, plan=A, **more)


def test_several_in_hand_and_one_that_hangs_holds_up_nobody(bus: EmbeddedBus) -> None:
    done: list[str] = []
    release = threading.Event()

    def handler(message: c.TrainingRequested) -> Iterator[c.Message]:
        while message.index == 0 and not release.is_set():
            time.sleep(0.01)
            yield c.Progress(run="r", station="trainer", item=message.item, step="hangs")
        done.append(message.item)
        yield c.ItemScored(run="r", item=message.item, answers=A, measures=A)

    bus.publish(*(item("r", n) for n in range(5)))
    with Running(bus, Lane("trainer", {c.TrainingRequested: handler}, width=3)):
        until(lambda: len(done) == 4, 5)
        assert "i0" not in done
        release.set()
        until(lambda: len(messages(bus, "run-control")) == 5)
    assert sorted(done) == [f"i{n}" for n in range(5)]


def test_what_a_replica_lacks_is_left_for_one_that_has_it(bus: EmbeddedBus) -> None:
    did: dict[str, list[str]] = {"old": [], "new": []}

    def handler(name: str) -> Handler:
        def handle(message: c.TrainingRequested) -> Iterator[c.Message]:
            did[name].append(message.item)
            yield c.ItemScored(run="r", item=message.item, answers=A, measures=A)

        return handle

    bus.publish(item("r", 0, needs=("dpo",)), item("r", 1), item("r", 2, needs=("nf4",)))
    with Running(bus, Lane("trainer", {c.TrainingRequested: handler("old")}, has=frozenset({"nf4"})), member="old"):
        until(lambda: sorted(did["old"]) == ["i1", "i2"])
        until(lambda: messages(bus, "progress"))
        assert "dpo" in messages(bus, "progress")[0].step
        time.sleep(0.3)
        assert bus.lag("trainer")["training-requested"] == 1
        new = Lane("trainer", {c.TrainingRequested: handler("new")}, has=frozenset({"nf4", "dpo"}))
        with Running(bus, new, member="new"):
            until(lambda: did["new"] == ["i0"])
            until(lambda: bus.lag("trainer")["training-requested"] == 0)
    assert not messages(bus, "dead-letters")


def test_a_declined_message_whose_run_is_cancelled_is_committed_by_who_declined_it(bus: EmbeddedBus) -> None:
    bus.publish(item("r", 0, needs=("dpo",)))
    with Running(bus, Lane("trainer", {c.TrainingRequested: lambda _: iter([])}), reconsider=0.2):
        until(lambda: messages(bus, "progress"))
        bus.publish(c.CancelRequested(run="r"))
        until(lambda: bus.lag("trainer")["training-requested"] == 0, 5)


def test_a_located_handler_is_told_where_its_message_lies(bus: EmbeddedBus) -> None:
    seen: list[Record] = []

    def handler(message: c.ItemFailed, record: Record) -> Iterator[c.Message]:
        seen.append(record)
        yield from ()

    bus.publish(*(c.ItemFailed(run="r", item=f"i{n}", station="trainer", reason="x") for n in range(3)))
    with Running(bus, Lane("closer", {c.ItemFailed: handler}, located=True)):
        until(lambda: len(seen) == 3)
    assert [record.offset for record in seen] == [0, 1, 2]


def test_a_bus_that_is_away_at_the_commit_is_waited_for_and_the_work_not_done_again(bus: EmbeddedBus) -> None:
    calls: list[int] = []

    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        calls.append(1)
        yield DONE

    bus.publish(REQUEST)
    running = Running(bus, Lane("datagen", {c.RunRequested: handler}))
    subscribe, failures = bus.subscribe, iter([Transient("away"), Transient("away")])

    def subscribed(*arguments: Any) -> Any:
        subscription = subscribe(*arguments)
        commit = subscription.commit

        def failing(record: Record, outputs: Any = ()) -> None:
            if error := next(failures, None):
                raise error
            commit(record, outputs)

        subscription.commit = failing  # type: ignore[method-assign]
        return subscription

    bus.subscribe = subscribed  # type: ignore[method-assign]
    with running:
        until(lambda: messages(bus, "run-closed"))
    assert calls == [1]


def test_no_message_is_taken_before_the_fold_has_caught_up(bus: EmbeddedBus) -> None:
    """Else a cancelled message could be begun."""
    gate = threading.Event()
    did: list[str] = []

    def handler(message: c.RunRequested) -> Iterator[c.Message]:
        did.append(message.run)
        yield DONE

    bus.publish(REQUEST)
    with Running(bus, Lane("datagen", {c.RunRequested: handler}), ready=gate.wait):
        time.sleep(0.3)
        assert not did
        gate.set()
        until(lambda: did)


def test_who_has_seen_several_processes_die_works_alone_and_takes_no_others_with_it(bus: EmbeddedBus) -> None:
    """Eight messages side by side, one of them ends the process: the others are not buried with it."""
    at_work: list[set[str]] = []
    now: set[str] = set()

    def handler(message: c.TrainingRequested) -> Iterator[c.Message]:
        now.add(message.item)
        at_work.append(set(now))
        time.sleep(0.05)
        now.discard(message.item)
        yield c.ItemScored(run="r", item=message.item, answers=A, measures=A)

    bus.publish(*(item("r", n) for n in range(4)))
    for _ in range(4):  # processes that took them all, and died
        dead = bus.subscribe("trainer", ["training-requested"], "trainer-0")
        while dead.poll(0):
            pass
    bus.publish(*(item("r", n) for n in range(4, 8)))
    with Running(bus, Lane("trainer", {c.TrainingRequested: handler}, width=4)):
        until(lambda: len(messages(bus, "run-control")) == 8)
    suspects = {f"i{n}" for n in range(4)}
    assert all(len(together) == 1 for together in at_work if together & suspects)
    assert any(len(together) > 1 for together in at_work)
    assert not messages(bus, "dead-letters")


def test_a_suspect_that_waits_for_long_holds_up_nobody(bus: EmbeddedBus) -> None:
    """A base whose engine does not come up, after some crash of the process: the other bases go on."""
    release = threading.Event()
    done: list[str] = []

    def handler(message: c.TrainingRequested) -> Iterator[c.Message]:
        while message.index == 0 and not release.is_set():
            time.sleep(0.02)
            yield c.Progress(run="r", station="trainer", item=message.item, step="waits")
        done.append(message.item)
        yield c.ItemScored(run="r", item=message.item, answers=A, measures=A)

    bus.publish(*(item("r", n) for n in range(3)))
    for _ in range(4):
        dead = bus.subscribe("trainer", ["training-requested"], "trainer-0")
        while dead.poll(0):
            pass
    bus.publish(*(item("r", n) for n in range(3, 6)))
    with Running(bus, Lane("trainer", {c.TrainingRequested: handler}, width=8)):
        until(lambda: len(done) == 5, 8)
        assert "i0" not in done
        release.set()
        until(lambda: len(messages(bus, "run-control")) == 6)


def test_a_patient_lane_takes_nothing_for_poison(bus: EmbeddedBus) -> None:
    bus.publish(REQUEST)
    for _ in range(4):
        kill(bus)
    with Running(bus, Lane("datagen", {c.RunRequested: lambda _: iter([DONE])}, patient=True), deliveries=3):
        until(lambda: messages(bus, "run-closed"))
    assert not messages(bus, "dead-letters")


def test_what_was_lost_and_came_back_waits_until_the_first_work_on_it_has_ended(bus: EmbeddedBus) -> None:
    """A process that was frozen for longer than its session: two workers on one unit of work would spoil it."""
    at_once: list[int] = []
    working: list[int] = []
    release = threading.Event()

    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        working.append(1)
        at_once.append(len(working))
        try:
            while not release.is_set():
                time.sleep(0.02)
                yield c.Progress(run="r", station="datagen", step="x")
        finally:
            time.sleep(0.3)  # ending takes a moment
            working.pop()
        yield DONE

    bus.publish(REQUEST)
    with Running(bus, Lane("datagen", {c.RunRequested: handler}, width=3)) as running:
        until(lambda: working)
        with bus._transaction() as db:  # as others would do when our session ends
            db.execute("UPDATE positions SET member = NULL, incarnation = NULL, renewed = NULL, expires = NULL")
        until(lambda: len(at_once) == 2)
        release.set()
        until(lambda: messages(bus, "run-closed"))
        assert running.loop
    assert at_once == [1, 1]


def test_a_bus_that_is_away_when_we_join_is_waited_for(bus: EmbeddedBus) -> None:
    subscribe, failures = bus.subscribe, iter([Transient("away"), Transient("away")])

    def late(*arguments: Any) -> Any:
        if error := next(failures, None):
            raise error
        return subscribe(*arguments)

    bus.subscribe = late  # type: ignore[method-assign]
    bus.publish(REQUEST)
    run(bus, lambda _: iter([DONE]), lambda: messages(bus, "run-closed"))


def test_progress_that_nobody_takes_holds_up_no_work_and_figures_are_numbers(bus: EmbeddedBus) -> None:
    publish = bus.publish

    def slow(*sent: c.Message) -> None:
        if isinstance(sent[0], c.Progress):
            time.sleep(1)
        publish(*sent)

    bus.publish(REQUEST)
    bus.publish = slow  # type: ignore[method-assign]

    def handler(_: c.RunRequested) -> Iterator[c.Message]:
        for done in range(50):
            yield c.Progress(run="r", station="datagen", step="x", done=done, figures={"loss": float("nan"), "eta": 1})
        yield DONE

    began = time.monotonic()
    with Running(bus, Lane("datagen", {c.RunRequested: handler})):
        until(lambda: messages(bus, "run-closed"))
        assert time.monotonic() - began < 4
        until(lambda: [(word.done, word.figures) for word in messages(bus, "progress")] == [(49, {"eta": 1})])


def test_that_a_run_is_deleted_is_heard_by_whoever_must_know(bus: EmbeddedBus) -> None:
    heard: list[str] = []

    def handler(message: c.RunDeleted) -> Iterator[c.Message]:
        heard.append(message.run)
        yield from ()

    bus.publish(c.RunDeleted(run="r"))
    with Running(bus, Lane("closer", {c.RunDeleted: handler}, obeys=("deleted",))):
        until(lambda: heard)
