"""What every bus must do. One suite; each adapter's test module inherits it and brings `bus` and `reopen`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from understudy.bus import Bus, Fenced, Record, Subscription
from understudy.contracts import Message, Progress, ReportPublished, RunFailed, RunRequested, decode
from understudy.recipe import Dataset, Recipe

TOPIC = "run-requested"


def request(run: str) -> RunRequested:
    return RunRequested(run=run, recipe=Recipe(datasets={"d": Dataset(source="d.csv")}))


def taken(subscription: Subscription, timeout: float = 10) -> Record:
    record = subscription.poll(timeout)
    assert record is not None, "nothing came"
    return record


def run_of(record: Record) -> str:
    return decode(record.value).run


class BusContract:
    """Inherit, and provide the fixture `connect`: a function that opens one more connection to the same, initially empty bus."""

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
        buses[0].publish(*(request(f"r{i}") for i in range(40)))
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
        assert (again.offset, run_of(again)) == (record.offset, "a")

    def test_a_member_that_lost_its_record_is_fenced_and_publishes_nothing(self, connect: Callable[[], Bus]) -> None:
        bus = connect()
        bus.publish(request("a"))
        stale = bus.subscribe("datagen", [TOPIC], "m")
        record = taken(stale)
        fresh = connect().subscribe("datagen", [TOPIC], "m")
        again = taken(fresh)
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
