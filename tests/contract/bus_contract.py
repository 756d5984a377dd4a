"""What every bus must do. One suite; each adapter's test module inherits it and brings `bus` and `reopen`."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count, islice

import pytest

from understudy.belt.bus import Bus, Fenced, Record, Subscription
from understudy.belt.contracts import ItemPlanned, Message, Progress, RunClosed, RunRequested, TrainingRequested, decode
from understudy.belt.topics import BY_NAME
from understudy.errors import Invalid
from understudy.terms import Artifact

TOPIC = "run-requested"
PLAN = Artifact(sha256="0" * 64)
WORKER = """
import random, sys, time
from pathlib import Path
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import RunClosed, decode
bus = {dial}
member = bus.subscribe("datagen", ["run-requested"], "worker")
while True:
    if record := member.poll(0.5):
        print("working", flush=True)
        time.sleep(random.random() / 50)
        run = decode(record.value).run
        member.commit(record, [RunClosed(run=run, status="failed", reason=str(part)) for part in range(3)])
"""


def request(run: str) -> RunRequested:
    return RunRequested(run=run, plan=PLAN, name=run, items=1)


def closed(run: str, reason: str = "x") -> RunClosed:
    return RunClosed(run=run, status="failed", reason=reason)


def training(run: str, index: int) -> TrainingRequested:
    return TrainingRequested(run=run, item=f"i{index}", index=index, plan=PLAN)


def runs_on(partition: int) -> Iterator[str]:
    """Names of runs whose requests lie on `partition`."""
    return (f"r{n}" for n in count() if request(f"r{n}").place(BY_NAME[TOPIC].partitions) == partition)


def taken(subscription: Subscription, timeout: float = 10) -> Record:
    record = subscription.poll(timeout)
    assert record is not None, "nothing came"
    return record


def run_of(record: Record) -> str:
    return decode(record.value).run


def reasons(bus: Bus) -> list[str | None]:
    """Of what was closed."""
    closes = [decode(record.value) for record in bus.replay(["run-closed"]) if record]
    return [each.reason for each in closes if isinstance(each, RunClosed)]


def hears_that_it_lost(member: Subscription, record: Record) -> bool:
    """Before it has finished its work."""
    for _ in range(100):
        member.keep_alive()
        if not member.holds(record):
            return True
        time.sleep(0.1)
    return False


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
    counted = 1
    """How many times, at most, a message of a transaction counts in the lag."""
    dial: str
    """A Python expression that connects, evaluated in another process; `{where}` is what `where` returns."""

    def where(self, bus: Bus) -> str:
        """Where `bus` is, so that another process can connect to it."""
        raise NotImplementedError

    def put(self, bus: Bus, topic: str, value: bytes) -> None:
        """Append what is no message, as anybody can who reaches the bus."""
        raise NotImplementedError

    def silence(self, member: Subscription) -> None:
        """Make a member as silent as a killed process."""

    def snatch(self, member: Subscription, record: Record) -> None:
        """Give the record's partition to somebody else, behind the back of `member`."""
        raise NotImplementedError

    @pytest.fixture
    def bus(self, connect: Callable[[], Bus]) -> Iterator[Bus]:
        bus = connect()
        yield bus
        bus.close()

    # --- publishing and reading along

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

    def test_several_are_published_at_once_in_their_order(self, bus: Bus) -> None:
        bus.publish(*(closed("a", str(number)) for number in range(50)), request("a"))
        assert reasons(bus) == [str(number) for number in range(50)]
        assert [run_of(record) for record in bus.replay([TOPIC]) if record] == ["a"]

    def test_a_message_lies_where_it_says(self, bus: Bus) -> None:
        messages = [training("a", index) for index in range(12)]
        bus.publish(*messages)
        places = {decode(r.value): r.partition for r in bus.replay(["training-requested"]) if r}
        assert places == {message: message.place(12) for message in messages}
        assert sorted(places.values()) == list(range(12))

    def test_order_is_kept_per_key(self, bus: Bus) -> None:
        for number in range(20):
            bus.publish(ItemPlanned(run="r", item=f"v{number % 3}", index=number, base="b"))
        seen: dict[str, list[int]] = {}
        for record in bus.replay(["item-planned"]):
            assert record
            message = decode(record.value)
            assert isinstance(message, ItemPlanned)
            seen.setdefault(message.item, []).append(message.index)
        assert seen == {f"v{k}": list(range(k, 20, 3)) for k in range(3)}

    def test_topics_do_not_mix(self, bus: Bus) -> None:
        bus.publish(closed("a"))
        assert bus.subscribe("datagen", [TOPIC], "m").poll(0.3) is None
        assert [type(decode(record.value)) for record in bus.replay(["run-closed"]) if record] == [RunClosed]

    def test_any_bytes_can_lie_on_the_bus(self, bus: Bus) -> None:
        for value in (b"", b"\xff\x00 not JSON", b"[" * 50_000):
            self.put(bus, TOPIC, value)
        member = bus.subscribe("datagen", [TOPIC], "m")
        assert sorted(len(record.value) for record in drain(member)) == [0, 11, 50_000]

    def test_what_is_too_large_is_refused_and_everything_else_goes_on(self, bus: Bus) -> None:
        """Alone, and as one of the outputs of a commit: then none of them is there, and the record is still in hand."""
        with pytest.raises(Invalid, match="too large for run-requested"):
            bus.publish(request("x" * BY_NAME[TOPIC].max_bytes))
        bus.publish(request("a"))
        member = bus.subscribe("datagen", [TOPIC], "m")
        record = taken(member)
        assert run_of(record) == "a"
        with pytest.raises(Invalid, match="too large for run-closed"):
            member.commit(record, [closed("a"), closed("y" * BY_NAME["run-closed"].max_bytes)])
        assert member.holds(record)
        member.commit(record, [closed("a", "after all")])
        assert reasons(bus) == ["after all"]

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

    def test_a_replay_says_when_it_has_seen_what_was_there_however_much_is_published(
        self, connect: Callable[[], Bus]
    ) -> None:
        bus, publisher = connect(), connect()
        bus.publish(*(request(f"r{number}") for number in range(600)))
        seen = []
        for record in islice(bus.replay([TOPIC], follow=True), 5000):
            if record is None:
                break
            seen.append(run_of(record))
            publisher.publish(request("more"))  # it never comes to an end
        assert record is None
        assert {f"r{number}" for number in range(600)} <= set(seen)

    def test_the_latest_of_every_key_of_a_compacted_topic_is_replayed(self, bus: Bus) -> None:
        for number in range(30):
            bus.publish(Progress(run=f"r{number % 3}", station="trainer", step=str(number)))
        latest = {}
        for record in bus.replay(["progress"]):
            assert record
            message = decode(record.value)
            assert isinstance(message, Progress)
            assert int(message.step) > int(latest.get(message.run, "-1"))
            latest[message.run] = message.step
        assert latest == {"r0": "27", "r1": "28", "r2": "29"}

    # --- groups

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
                while got[index] and not got[1 - index] and time.monotonic() < stop:  # who is first does not do it all
                    member.keep_alive()
                    time.sleep(0.02)
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

    def test_the_oldest_is_taken_first_whatever_partition_it_lies_on(self, bus: Bus) -> None:
        dice = random.Random(3)
        order = [(run, index) for index in range(3) for run in "abcdefgh"]
        dice.shuffle(order)
        for run, index in order:
            bus.publish(training(run, index))
            time.sleep(0.003)  # more than the resolution of timestamps
        member = bus.subscribe("trainer", ["training-requested"], "m")
        got = [decode(record.value) for record in drain(member)]
        assert len({message.place(12) for message in got}) > 6
        assert [(m.run, m.index) for m in got if isinstance(m, TrainingRequested)] == order

    def test_a_member_may_have_records_of_several_partitions_in_hand(self, bus: Bus) -> None:
        (first, behind), (aside, _) = islice(runs_on(0), 2), islice(runs_on(1), 2)
        for run in (first, behind, aside):
            bus.publish(request(run))
            time.sleep(0.003)
        member = bus.subscribe("datagen", [TOPIC], "m")
        one, two = taken(member), taken(member)
        assert (run_of(one), run_of(two)) == (first, aside)
        assert member.poll(0.3) is None  # what lies behind one in hand waits
        assert member.holds(one)
        assert member.holds(two)
        member.commit(two)
        assert not member.holds(two)
        member.commit(one, [closed(first)])
        three = taken(member)
        assert (run_of(three), three.delivery) == (behind, 1)
        member.commit(three)
        assert bus.lag("datagen") == {TOPIC: 0}

    def test_who_lost_one_of_its_records_keeps_the_others(self, bus: Bus) -> None:
        bus.publish(*(request(next(runs_on(partition))) for partition in range(3)))
        member = bus.subscribe("datagen", [TOPIC], "m")
        records = sorted((taken(member) for _ in range(3)), key=lambda record: record.partition)
        self.snatch(member, records[1])
        assert hears_that_it_lost(member, records[1])
        assert [member.holds(record) for record in records] == [True, False, True]
        with pytest.raises(Fenced):
            member.commit(records[1], [closed("lost")])
        member.furthest(records[1], 1)
        member.give_back(records[1])
        for record in (records[0], records[2]):
            member.commit(record, [closed(run_of(record), "kept")])
        assert reasons(bus) == ["kept", "kept"]

    def test_outputs_and_commit_are_one_step(self, bus: Bus) -> None:
        bus.publish(request("a"))
        member = bus.subscribe("datagen", [TOPIC], "m")
        outputs: list[Message] = [closed("a"), request("b")]
        member.commit(taken(member), outputs)
        assert reasons(bus) == ["x"]
        assert run_of(taken(member)) == "b"

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

    def test_a_run_that_comes_later_waits_for_no_more_than_a_window(self, connect: Callable[[], Bus]) -> None:
        members = [connect().subscribe("trainer", ["training-requested"], f"m{number}") for number in range(2)]
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not self.settled(members):
            for member in members:
                member.poll(0.05)
        bus, items, order = connect(), iter(range(20)), []
        bus.publish(*(training("a", index) for index in islice(items, 6)))
        hands: dict[int, Record] = {}
        while len(order) < 21 and time.monotonic() < deadline:
            for number, member in enumerate(members):
                if record := hands.pop(number, None):
                    member.commit(record)
                    bus.publish(*(training("a", index) for index in islice(items, 1)))
                if record := member.poll(0.2):
                    hands[number] = record
                    order.append(run_of(record))
                    if len(order) == 5:
                        bus.publish(training("b", 0))
        assert Counter(order) == {"a": 20, "b": 1}
        assert order.index("b") <= 5 + 6

    def settled(self, members: list[Subscription]) -> bool:
        """Whether every member has its part."""
        return True

    # --- what is handed out again, and to whom

    def test_uncommitted_work_of_a_vanished_member_comes_back_to_its_successor(
        self, connect: Callable[[], Bus]
    ) -> None:
        first = connect()
        first.publish(request("a"))
        record = taken(first.subscribe("datagen", [TOPIC], "m"))
        second = connect()  # the first never closes: it was killed
        again = taken(second.subscribe("datagen", [TOPIC], "m"))
        assert (again.offset, run_of(again), again.delivery) == (record.offset, "a", 2)

    def test_a_member_that_lost_its_record_is_fenced_and_publishes_nothing(self, connect: Callable[[], Bus]) -> None:
        bus = connect()
        bus.publish(request("a"))
        stale = bus.subscribe("datagen", [TOPIC], "m")
        record = taken(stale)
        fresh = connect().subscribe("datagen", [TOPIC], "m")
        again = taken(fresh)
        assert hears_that_it_lost(stale, record)
        with pytest.raises(Fenced):
            stale.commit(record, [closed("a", "stale")])
        fresh.commit(again, [closed("a", "fresh")])
        assert reasons(bus) == ["fresh"]

    def test_deliveries_are_counted_until_one_is_committed(self, connect: Callable[[], Bus]) -> None:
        publisher = connect()
        publisher.publish(request("a"))
        for delivery in (1, 2, 3):
            member = connect().subscribe("datagen", [TOPIC], "m")  # the one before was killed
            record = taken(member)
            assert (run_of(record), record.delivery) == ("a", delivery)
        member.commit(record)
        publisher.publish(request("a"))
        assert taken(member).delivery == 1

    def test_what_is_let_go_of_in_order_was_not_delivered(self, connect: Callable[[], Bus]) -> None:
        bus = connect()
        bus.publish(request("a"))
        member = bus.subscribe("datagen", [TOPIC], "m")
        for _ in range(2):
            record = taken(member)
            assert record.delivery == 1
            member.give_back(record)
            assert not member.holds(record)
            with pytest.raises(Fenced):
                member.commit(record)
        taken(member)
        member.close()
        killed = bus.subscribe("datagen", [TOPIC], "m")
        assert taken(killed).delivery == 1
        again = connect().subscribe("datagen", [TOPIC], "m")
        record = taken(again)
        assert record.delivery == 2
        again.give_back(record)
        assert taken(again).delivery == 2  # the one that was killed still counts

    def test_what_a_member_declines_goes_to_another_and_holds_up_its_partition_only(
        self, connect: Callable[[], Bus]
    ) -> None:
        publisher, picky = connect(), connect().subscribe("datagen", [TOPIC], "picky")
        (declined, behind), (aside, *_) = islice(runs_on(0), 2), islice(runs_on(1), 2)
        publisher.publish(request(declined))
        record = taken(picky)
        picky.decline(record)
        assert not picky.holds(record)
        publisher.publish(request(behind), request(aside))
        other = taken(picky)
        assert run_of(other) == aside
        picky.commit(other)
        assert picky.poll(0.5) is None
        picky.reconsider()
        record = taken(picky)
        assert (run_of(record), record.delivery) == (declined, 1)
        picky.decline(record)
        assert picky.poll(0.5) is None
        assert publisher.lag("datagen")[TOPIC] == 2
        able = connect().subscribe("datagen", [TOPIC], "able")
        got: list[Record] = []
        deadline = time.monotonic() + 20
        while not got and time.monotonic() < deadline:
            assert picky.poll(0.1) is None
            if found := able.poll(0.1):
                got.append(found)
        assert [(run_of(found), found.delivery) for found in got] == [(declined, 1)]
        able.commit(got[0])
        while len(got) < 2 and time.monotonic() < deadline:  # the next one may go to either
            got += [found for member in (picky, able) if (found := member.poll(0.1))]
        assert run_of(got[1]) == behind

    def test_who_gets_further_is_no_poison(self, connect: Callable[[], Bus]) -> None:
        bus, (first, second) = connect(), islice(runs_on(0), 2)
        bus.publish(request(first), request(second))
        seen = []
        for mark in (None, 7, 5, None):
            member = connect().subscribe("datagen", [TOPIC], "m")  # the one before was killed
            record = taken(member)
            seen.append((record.delivery, record.furthest))
            if mark is not None:
                member.furthest(record, mark)
        assert seen == [(1, 0), (2, 0), (1, 7), (2, 7)]
        member.furthest(record, 9)
        member.give_back(record)
        again = taken(member)
        assert (again.delivery, again.furthest) == (1, 9)
        member.commit(again)
        following = taken(member)
        assert (run_of(following), following.delivery, following.furthest) == (second, 1, 0)

    def test_a_member_that_ended_in_order_hands_over_at_once(self, connect: Callable[[], Bus]) -> None:
        bus = connect()
        first = bus.subscribe("datagen", [TOPIC], "one")
        first.poll(1)
        bus.publish(request("a"))
        taken(first)
        first.close()
        started = time.monotonic()
        again = taken(connect().subscribe("datagen", [TOPIC], "two"))
        assert (run_of(again), again.delivery) == ("a", 1)
        assert time.monotonic() - started < self.session

    def test_a_killed_member_hands_over_after_its_session(self, connect: Callable[[], Bus]) -> None:
        first = connect().subscribe("datagen", [TOPIC], "one")
        second = connect()
        second.publish(request("a"))
        record = taken(first)
        # From here on the first neither polls nor keeps alive nor closes.
        self.silence(first)
        again = taken(second.subscribe("datagen", [TOPIC], "two"), timeout=3 * self.session + 5)
        assert (again.offset, again.delivery) == (record.offset, 2)
        assert hears_that_it_lost(first, record)

    def test_long_work_keeps_its_records_while_others_come_and_go(self, connect: Callable[[], Bus]) -> None:
        worker, others = connect().subscribe("datagen", [TOPIC], "worker"), connect()
        long = {next(runs_on(partition)) for partition in (0, 1)}
        short = sorted({f"r{number}" for number in range(10)} - long)
        others.publish(*map(request, sorted(long)))
        records = [taken(worker), taken(worker)]
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
        for run in short:
            others.publish(request(run))
        while time.monotonic() < ends:
            worker.keep_alive()
            time.sleep(0.05)
        visitor.join()
        for record in records:
            worker.commit(record, [closed(run_of(record), "done once")])
        assert not long & set(got)
        assert reasons(others) == ["done once"] * 2
        assert sorted([*got, *(run_of(r) for r in drain(worker))]) == short

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
        maker, reader = bus.subscribe("datagen", [TOPIC], "m"), bus.subscribe("evaluator", ["run-closed"], "m")
        for number in range(7):
            bus.publish(request(f"r{number}"))
        for number in range(3):
            facts: list[Message] = [closed(str(number))] * 2
            maker.commit(taken(maker), facts)
        for _ in range(2):
            reader.commit(taken(reader))
        assert bus.lag("datagen") == {TOPIC: 4}
        assert bus.lag("evaluator").keys() == {"run-closed"}
        assert 4 <= bus.lag("evaluator")["run-closed"] <= 4 * self.counted
        assert len(drain(maker)) == len(drain(reader)) == 4
        assert bus.lag("datagen") == {TOPIC: 0}
        assert bus.lag("evaluator") == {"run-closed": 0}
        assert bus.lag("nobody") == {}

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
                drained.commit(record, [closed(run_of(record), str(part)) for part in range(3)])
        published = [decode(record.value) for record in bus.replay(["run-closed"]) if record]
        parts = sorted((message.run, message.reason) for message in published if isinstance(message, RunClosed))
        assert parts == sorted(
            (f"r{k}-{n}", str(part)) for k in range(self.kills) for n in range(10) for part in range(3)
        )
