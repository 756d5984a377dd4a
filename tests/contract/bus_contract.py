"""What every bus must do. One suite; each adapter's test module inherits it and brings `bus` and `reopen`."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from understudy.belt.bus import Bus, Fenced, Record, Subscription
from understudy.belt.contracts import Message, Progress, ReportPublished, RunFailed, RunRequested, decode
from understudy.recipe import Dataset, Recipe

TOPIC = "run-requested"
WORKER = """
import random, sys, time
from pathlib import Path
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import RunFailed, decode
bus = {dial}
member = bus.subscribe("datagen", ["run-requested"], "worker")
while True:
    if record := member.poll(0.5):
        print("working", flush=True)
        time.sleep(random.random() / 50)
        run = decode(record.value).run
        member.commit(record, [RunFailed(run=run, station="datagen", reason=str(part)) for part in range(3)])
"""


def request(run: str) -> RunRequested:
    return RunRequested(run=run, recipe=Recipe(datasets={"d": Dataset(source="d.csv")}))


def taken(subscription: Subscription, timeout: float = 10) -> Record:
    record = subscription.poll(timeout)
    assert record is not None, "nothing came"
    return record


def run_of(record: Record) -> str:
    return decode(record.value).run


def hears_that_it_is_fenced(member: Subscription) -> None:
    """Before it has finished its work."""

    def work() -> None:
        for _ in range(100):
            member.keep_alive()
            time.sleep(0.1)

    with pytest.raises(Fenced):
        work()


def drain(subscription: Subscription, patience: float = 1) -> list[Record]:
    """Everything there is, committed."""
    records = []
    while record := subscription.poll(patience):
        subscription.commit(record)
        records.append(record)
    return records


class BusContract:
    """Inherit, and provide the fixture `connect`: a function that opens one more connection to the same, initially empty
    bus, on which a silent member is given up after at most `session` seconds."""

    session: float
    kills = 20
    """How many times a worker is killed in the middle of its work."""
    dial: str
    """A Python expression that connects, evaluated in another process; `{where}` is what `where` returns."""

    def where(self, bus: Bus) -> str:
        """Where `bus` is, so that another process can connect to it."""
        raise NotImplementedError

    @pytest.fixture
    def bus(self, connect: Callable[[], Bus]) -> Iterator[Bus]:
        bus = connect()
        yield bus
        bus.close()

    def test_what_is_published_is_received_once_committed_never_again(self, bus: Bus) -> None:
        message = request("a")
        bus.publish(message)
        member = bus.subscribe("datagen", [TOPIC], "m")
        record = taken(member)
        assert decode(record.value) == message
        member.commit(record)
        assert member.poll(0.3) is None
        member.close()
        again = bus.subscribe("datagen", [TOPIC], "m")
        assert again.poll(0.3) is None

    def test_order_is_kept_per_key(self, bus: Bus) -> None:
        for number in range(20):
            bus.publish(Progress(run="r", station="trainer", variant=f"v{number % 3}", step=str(number)))
        seen: dict[str | None, list[int]] = {}
        for record in bus.replay(["progress"]):
            assert record
            message = decode(record.value)
            assert isinstance(message, Progress)
            seen.setdefault(message.variant, []).append(int(message.step))
        assert seen == {f"v{k}": list(range(k, 20, 3)) for k in range(3)}

    def test_groups_each_get_everything(self, bus: Bus) -> None:
        bus.publish(request("a"))
        for group in ("datagen", "inference"):
            member = bus.subscribe(group, [TOPIC], "m")
            assert run_of(taken(member)) == "a"
            member.close()

    def test_members_of_a_group_share_and_never_overlap(self, connect: Callable[[], Bus]) -> None:
        buses = [connect(), connect()]
        for number in range(40):
            buses[0].publish(request(f"r{number}"))
        got: list[list[str]] = [[], []]
        stop = time.monotonic() + 20

        def work(index: int) -> None:
            member = buses[index].subscribe("datagen", [TOPIC], f"m{index}")
            while len(got[0]) + len(got[1]) < 40 and time.monotonic() < stop:
                if record := member.poll(0.1):
                    time.sleep(0.005)
                    member.commit(record)
                    got[index].append(run_of(record))
            member.close()

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got[0] + got[1]) == sorted(f"r{i}" for i in range(40))
        assert got[0]
        assert got[1]
        for bus in buses:
            bus.close()

    def test_uncommitted_work_of_a_vanished_member_comes_back_to_its_successor(
        self, connect: Callable[[], Bus]
    ) -> None:
        first = connect()
        first.publish(request("a"))
        record = taken(first.subscribe("datagen", [TOPIC], "m"))
        second = connect()  # the first never closes: it was killed
        again = taken(second.subscribe("datagen", [TOPIC], "m"))
        assert (again.offset, run_of(again), again.attempt) == (record.offset, "a", 2)

    def test_a_member_that_lost_its_record_is_fenced_and_publishes_nothing(self, connect: Callable[[], Bus]) -> None:
        bus = connect()
        bus.publish(request("a"))
        stale = bus.subscribe("datagen", [TOPIC], "m")
        record = taken(stale)
        fresh = connect().subscribe("datagen", [TOPIC], "m")
        again = taken(fresh)
        hears_that_it_is_fenced(stale)
        with pytest.raises(Fenced):
            stale.commit(record, [RunFailed(run="a", station="datagen", reason="stale")])
        fresh.commit(again, [RunFailed(run="a", station="datagen", reason="fresh")])
        assert [decode(r.value).reason for r in bus.replay(["report-published"]) if r] == ["fresh"]  # type: ignore[union-attr]

    def test_outputs_and_commit_are_one_step(self, bus: Bus) -> None:
        bus.publish(request("a"))
        member = bus.subscribe("datagen", [TOPIC], "m")
        outputs: list[Message] = [RunFailed(run="a", station="datagen", reason="x"), request("b")]
        member.commit(taken(member), outputs)
        assert len([r for r in bus.replay(["report-published"]) if r]) == 1
        assert run_of(taken(member)) == "b"

    def test_replay_starts_at_the_beginning_and_follows(self, bus: Bus) -> None:
        bus.publish(request("a"))
        stream = bus.replay([TOPIC], follow=True)
        first = next(stream)
        assert first
        assert run_of(first) == "a"
        assert next(stream) is None
        bus.publish(request("b"))
        deadline = time.monotonic() + 10
        while (record := next(stream)) is None:
            assert time.monotonic() < deadline
        assert run_of(record) == "b"

    def test_a_waiting_member_hears_within_a_tenth_of_a_second(self, connect: Callable[[], Bus]) -> None:
        member = connect().subscribe("datagen", [TOPIC], "m")
        member.poll(0.2)
        publisher = connect()
        delays = []
        for number in range(20):
            threading.Timer(0.02, lambda n=number: publisher.publish(request(f"r{n}"))).start()
            record = taken(member)
            delays.append(time.time() - record.timestamp)
            member.commit(record)
        assert sorted(delays)[10] < 0.1

    def test_topics_do_not_mix(self, bus: Bus) -> None:
        bus.publish(RunFailed(run="a", station="trainer", reason="x"))
        assert bus.subscribe("datagen", [TOPIC], "m").poll(0.3) is None
        assert all(
            isinstance(decode(r.value), RunFailed | ReportPublished) for r in bus.replay(["report-published"]) if r
        )

    def test_what_was_not_committed_is_handed_out_again_and_counted(self, bus: Bus) -> None:
        bus.publish(request("a"))
        for attempt in (1, 2, 3):
            member = bus.subscribe("datagen", [TOPIC], "m")
            record = taken(member)
            assert (run_of(record), record.attempt) == ("a", attempt)
            member.close()
        member = bus.subscribe("datagen", [TOPIC], "m")
        member.commit(taken(member))
        bus.publish(request("a"))
        assert taken(member).attempt == 1

    def test_a_member_that_ended_in_order_hands_over_at_once(self, connect: Callable[[], Bus]) -> None:
        bus = connect()
        first = bus.subscribe("datagen", [TOPIC], "one")
        first.poll(1)
        bus.publish(request("a"))
        taken(first)
        first.close()
        started = time.monotonic()
        assert run_of(taken(connect().subscribe("datagen", [TOPIC], "two"))) == "a"
        assert time.monotonic() - started < self.session

    def test_a_killed_member_hands_over_after_its_session(self, connect: Callable[[], Bus]) -> None:
        first = connect().subscribe("datagen", [TOPIC], "one")
        second = connect()
        second.publish(request("a"))
        record = taken(first)
        # From here on the first neither polls nor keeps alive nor closes.
        self.silence(first)
        again = taken(second.subscribe("datagen", [TOPIC], "two"), timeout=3 * self.session + 5)
        assert (again.offset, again.attempt) == (record.offset, 2)
        hears_that_it_is_fenced(first)

    def silence(self, member: Subscription) -> None:
        """Make a member as silent as a killed process."""

    def test_long_work_keeps_its_record_while_others_come_and_go(self, connect: Callable[[], Bus]) -> None:
        worker, others = connect().subscribe("datagen", [TOPIC], "worker"), connect()
        others.publish(request("long"))
        record = taken(worker)
        ends = time.monotonic() + 2.5 * self.session
        got: list[str] = []

        def come_and_go() -> None:
            while time.monotonic() < ends:
                other = others.subscribe("datagen", [TOPIC], "other")
                while time.monotonic() < ends and len(got) < 8:
                    if taken := other.poll(0.2):
                        other.commit(taken)
                        got.append(run_of(taken))
                other.close()
                time.sleep(0.2)

        visitor = threading.Thread(target=come_and_go)
        visitor.start()
        for number in range(8):
            others.publish(request(f"r{number}"))
        while time.monotonic() < ends:
            worker.keep_alive()
            time.sleep(0.05)
        visitor.join()
        worker.commit(record, [RunFailed(run="long", station="datagen", reason="done once")])
        assert "long" not in got
        assert len([r for r in others.replay(["report-published"]) if r]) == 1
        assert sorted([*got, *(run_of(r) for r in drain(worker))]) == sorted(f"r{i}" for i in range(8))

    def test_nothing_waits_behind_a_slow_member(self, connect: Callable[[], Bus]) -> None:
        slow, fast = connect().subscribe("datagen", [TOPIC], "slow"), connect().subscribe("datagen", [TOPIC], "fast")
        publisher = connect()
        publisher.publish(request("slow"))
        held = taken(slow)
        for number in range(30):
            publisher.publish(request(f"r{number}"))
        waiting = sum(r.partition != held.partition for r in publisher.replay([TOPIC]) if r)
        done: list[Record] = []
        deadline = time.monotonic() + 30
        while len(done) < waiting and time.monotonic() < deadline:
            slow.keep_alive()
            if record := fast.poll(0.1):
                fast.commit(record)
                done.append(record)
        assert len(done) == waiting
        assert all(record.partition != held.partition for record in done)
        slow.commit(held)

    def test_lag_counts_what_a_group_has_not_done(self, bus: Bus) -> None:
        maker, reader = bus.subscribe("datagen", [TOPIC], "m"), bus.subscribe("evaluator", ["report-published"], "m")
        for number in range(7):
            bus.publish(request(f"r{number}"))
        for number in range(3):
            facts: list[Message] = [RunFailed(run=str(number), station="datagen", reason="x")] * 2
            maker.commit(taken(maker), facts)
        for _ in range(2):
            reader.commit(taken(reader))
        assert bus.lag("datagen") == {TOPIC: 4}
        assert bus.lag("evaluator") == {"report-published": 4}
        assert len(drain(maker)) == len(drain(reader)) == 4
        assert bus.lag("datagen") == {TOPIC: 0}
        assert bus.lag("evaluator") == {"report-published": 0}
        assert bus.lag("nobody") == {}

    def test_any_bytes_can_lie_on_the_bus(self, bus: Bus) -> None:
        for value in (b"", b"\xff\x00 not JSON", b"[" * 100_000):
            self.put(bus, TOPIC, value)
        member = bus.subscribe("datagen", [TOPIC], "m")
        assert sorted(len(record.value) for record in drain(member)) == [0, 11, 100_000]

    def put(self, bus: Bus, topic: str, value: bytes) -> None:
        """Append what is no message, as anybody can who reaches the bus."""
        raise NotImplementedError

    def test_kills_lose_and_double_nothing(self, connect: Callable[[], Bus]) -> None:
        bus = connect()
        script = WORKER.replace("{dial}", self.dial.format(where=self.where(bus)))
        dice = random.Random(7)
        for kill in range(self.kills):
            for number in range(10):
                bus.publish(request(f"r{kill}-{number}"))
            with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as worker:
                assert worker.stdout
                assert worker.stdout.readline() == b"working\n"
                time.sleep(dice.random() * 0.15)
                worker.kill()
        drained = bus.subscribe("datagen", [TOPIC], "worker")
        while bus.lag("datagen")[TOPIC]:
            if record := drained.poll(0.2):
                run = run_of(record)
                drained.commit(record, [RunFailed(run=run, station="datagen", reason=str(part)) for part in range(3)])
        published = [decode(record.value) for record in bus.replay(["report-published"]) if record]
        parts = sorted((message.run, message.reason) for message in published if isinstance(message, RunFailed))
        assert parts == sorted(
            (f"r{k}-{n}", str(part)) for k in range(self.kills) for n in range(10) for part in range(3)
        )
