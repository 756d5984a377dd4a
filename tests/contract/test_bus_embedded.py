"""The embedded bus keeps the bus contract, and what only it can promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from bus_contract import TOPIC, BusContract, request, run_of, taken

from understudy.belt.bus import Bus
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.errors import Fatal


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
    assert record.attempt == 2


def test_keep_alive_holds_the_lease_for_hours(tmp_path: Path) -> None:
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


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    bus = EmbeddedBus(tmp_path / "bus.sqlite")
    bus._connection().execute("PRAGMA user_version = 99")
    with pytest.raises(Fatal, match="newer Understudy"):
        EmbeddedBus(tmp_path / "bus.sqlite")


def test_a_file_that_is_no_bus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bus.sqlite").write_bytes(b"this is not a database, and long enough to look at" * 50)
    with pytest.raises(Fatal, match="cannot be used"):
        EmbeddedBus(tmp_path / "bus.sqlite")
