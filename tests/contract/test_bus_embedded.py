"""The embedded bus keeps the bus contract, and what only it can promise."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bus_contract import TOPIC, BusContract, closed, request, run_of, taken

from understudy.belt.bus import Bus, Record, Subscription
from understudy.belt.bus.embedded import EmbeddedBus, EmbeddedSubscription
from understudy.belt.contracts import Progress, decode
from understudy.errors import Fatal, Transient


class TestEmbedded(BusContract):
    session = 1.0
    dial = "EmbeddedBus(Path('{where}'))"

    def where(self, bus: Bus) -> str:
        assert isinstance(bus, EmbeddedBus)
        return str(bus._path)

    @pytest.fixture
    def connect(self, tmp_path: Path) -> Callable[[], EmbeddedBus]:
        return lambda: EmbeddedBus(tmp_path / "bus.sqlite", lease=self.session)

    def put(self, bus: Bus, topic: str, value: bytes) -> None:
        assert isinstance(bus, EmbeddedBus)
        with bus._transaction() as db:
            at = db.execute("SELECT COUNT(*) FROM messages WHERE topic = ?", (topic,)).fetchone()[0]
            db.execute(
                "INSERT INTO messages (topic, partition, offset, at, value) VALUES (?, 0, ?, 0, ?)", (topic, at, value)
            )
            db.execute(
                "INSERT INTO heads VALUES (?, 0, ?) ON CONFLICT DO UPDATE SET next = excluded.next", (topic, at + 1)
            )

    def snatch(self, member: Subscription, record: Record) -> None:
        assert isinstance(member, EmbeddedSubscription)
        with member._bus._transaction() as db:
            db.execute(
                "UPDATE positions SET member = 'other', incarnation = 'other' WHERE topic = ? AND partition = ?",
                (record.topic, record.partition),
            )


def test_a_silent_members_work_goes_to_another_when_its_lease_ends(tmp_path: Path) -> None:
    now = [1000.0]
    bus = EmbeddedBus(tmp_path / "bus.sqlite", lease=15, clock=lambda: now[0])
    bus.publish(request("a"))
    taken(bus.subscribe("datagen", [TOPIC], "silent"))
    other = bus.subscribe("datagen", [TOPIC], "other")
    assert other.poll(0) is None
    now[0] += 16
    record = taken(other, 1)
    assert run_of(record) == "a"
    assert record.delivery == 2


def test_a_lease_does_not_outlive_the_machine(tmp_path: Path) -> None:
    now = [1000.0]
    bus = EmbeddedBus(tmp_path / "bus.sqlite", lease=15, clock=lambda: now[0])
    bus.publish(request("a"))
    taken(bus.subscribe("datagen", [TOPIC], "before"))
    now[0] = 20  # the clock begins anew when the machine does
    assert taken(bus.subscribe("datagen", [TOPIC], "after"), 1).delivery == 2


def test_keep_alive_holds_the_leases_for_hours(tmp_path: Path) -> None:
    now = [1000.0]
    bus = EmbeddedBus(tmp_path / "bus.sqlite", lease=15, clock=lambda: now[0])
    bus.publish(request("a"))
    worker = bus.subscribe("datagen", [TOPIC], "worker")
    record = taken(worker)
    other = bus.subscribe("datagen", [TOPIC], "other")
    for _ in range(900):
        now[0] += 10
        worker.keep_alive()
        assert other.poll(0) is None
    worker.commit(record)


def test_who_slept_longer_than_its_lease_has_its_record_still_when_nobody_took_it(tmp_path: Path) -> None:
    now = [1000.0]
    bus = EmbeddedBus(tmp_path / "bus.sqlite", lease=15, clock=lambda: now[0])
    bus.publish(request("a"))
    sleeper = bus.subscribe("datagen", [TOPIC], "sleeper")
    record = taken(sleeper)
    now[0] += 100
    assert sleeper.poll(0) is None  # it is in hand, not to be had twice
    sleeper.keep_alive()
    assert bus.subscribe("datagen", [TOPIC], "other").poll(0) is None
    sleeper.commit(record)


def test_keep_alive_on_a_locked_file_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    bus = EmbeddedBus(tmp_path / "bus.sqlite", lease=15, clock=lambda: now[0])
    bus.publish(request("a"))
    worker = bus.subscribe("datagen", [TOPIC], "worker")
    record = taken(worker)

    def locked() -> None:
        raise Transient("stays locked")

    now[0] += 10
    with monkeypatch.context() as patched:
        patched.setattr(bus, "_transaction", locked)
        worker.keep_alive()
    assert worker.holds(record)
    worker.keep_alive()
    now[0] += 10
    assert bus.subscribe("datagen", [TOPIC], "other").poll(0) is None


def test_of_a_compacted_topic_the_latest_of_each_key_stays(tmp_path: Path) -> None:
    bus = EmbeddedBus(tmp_path / "bus.sqlite")
    for number in range(30):
        bus.publish(Progress(run=f"r{number % 3}", station="trainer", step=str(number)))
        bus.publish(closed("r", str(number)))
    kept = [decode(record.value) for record in bus.replay(["progress"]) if record]
    assert [message.step for message in kept if isinstance(message, Progress)] == ["27", "28", "29"]
    assert sum(1 for record in bus.replay(["run-closed"]) if record) == 30


def test_what_expired_is_forgotten_and_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = EmbeddedBus(tmp_path / "bus.sqlite")
    member = bus.subscribe("watcher", ["progress"], "m")
    wall = [time.time()]
    monkeypatch.setattr(time, "time", lambda: wall[0])
    bus.publish(Progress(run="old", station="trainer", step="old"), closed("r"))
    wall[0] += 8 * 24 * 3600
    bus.publish(
        Progress(run="r", station="trainer", item="i", step="new"), Progress(run="r", station="trainer", step="x")
    )
    assert bus.lag("watcher") == {"progress": 2}
    assert [decode(record.value).step for record in bus.replay(["progress"]) if record] == ["new", "x"]  # type: ignore[union-attr]
    assert sum(1 for record in bus.replay(["run-closed"]) if record) == 1
    for _ in range(2):
        member.commit(taken(member, 1))
    assert bus.lag("watcher") == {"progress": 0}


def test_a_replay_of_several_topics_is_in_the_order_of_publishing(tmp_path: Path) -> None:
    bus = EmbeddedBus(tmp_path / "bus.sqlite")
    messages = [each(f"r{number}") for number in range(700) for each in (request, closed)]
    bus.publish(*messages)
    assert [decode(record.value) for record in bus.replay([TOPIC, "run-closed"]) if record] == messages


def test_opening_replaying_and_lag_do_not_look_at_what_they_do_not_need(tmp_path: Path) -> None:
    """A million rows, in miniature: what counts is how many steps SQLite takes, not how fast it is today."""
    bus = EmbeddedBus(tmp_path / "bus.sqlite")
    many = [
        each for n in range(20_000) for each in (closed(f"r{n}"), Progress(run=f"r{n}", station="trainer", step="s"))
    ]
    bus.publish(request("a"), *many, request("b"))
    bus.subscribe("evaluator", ["run-closed"], "m").poll(0)

    def steps(work: Callable[[EmbeddedBus], object]) -> int:
        counted = [0]

        class Counting(EmbeddedBus):
            def _connection(self) -> sqlite3.Connection:
                connection = super()._connection()
                connection.set_progress_handler(lambda: counted.__setitem__(0, counted[0] + 1), 100)
                return connection

        work(Counting(tmp_path / "bus.sqlite"))
        return 100 * counted[0]

    assert steps(lambda bus: None) < 2_000
    assert steps(lambda bus: bus.lag("evaluator")) < 5_000
    assert steps(lambda bus: list(bus.replay([TOPIC]))) < 5_000
    assert steps(lambda bus: bus.publish(Progress(run="r", station="trainer", step="s"))) < 5_000
    assert 20_000 < steps(lambda bus: list(bus.replay(["run-closed"]))) < 1_000_000  # so many for each, and no more


def test_threads_that_ended_leave_no_descriptors(tmp_path: Path) -> None:
    bus = EmbeddedBus(tmp_path / "bus.sqlite")
    open_files = []
    for _ in range(30):
        thread = threading.Thread(target=bus.lag, args=("datagen",))
        thread.start()
        thread.join()
        open_files.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
    assert open_files[-1] <= open_files[0] + 3  # SQLite keeps one or two for later
    bus.close()


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    bus = EmbeddedBus(tmp_path / "bus.sqlite")
    bus._connection().execute("PRAGMA user_version = 99")
    with pytest.raises(Fatal, match="newer Understudy"):
        EmbeddedBus(tmp_path / "bus.sqlite")


def test_a_file_of_the_first_version_is_refused(tmp_path: Path) -> None:
    bus = EmbeddedBus(tmp_path / "bus.sqlite")
    bus._connection().execute("PRAGMA user_version = 1")
    with pytest.raises(Fatal) as error:
        EmbeddedBus(tmp_path / "bus.sqlite")
    assert str(error.value) == (
        f"{tmp_path}/bus.sqlite was written by an Understudy before version 0.3."
        " Choose another data folder with --data, or remove this one."
    )


def test_a_file_that_is_no_bus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bus.sqlite").write_bytes(b"this is not a database, and long enough to look at" * 50)
    with pytest.raises(Fatal, match="cannot be used"):
        EmbeddedBus(tmp_path / "bus.sqlite")


def test_what_is_given_back_while_the_file_is_locked_is_free_once_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody would ever get it again: it is in no hand, and its lease is ours."""
    bus = EmbeddedBus(tmp_path / "bus.sqlite")
    bus.publish(request("a"))
    member = bus.subscribe("datagen", [TOPIC], "m")
    record = taken(member)
    with monkeypatch.context() as locked:

        def refuse() -> None:
            raise Transient("The bus file stays locked")

        locked.setattr(bus, "_transaction", refuse)
        with pytest.raises(Transient):
            member.give_back(record)
    assert not member.holds(record)
    again = taken(member)
    assert (again.offset, again.delivery) == (record.offset, 1)
