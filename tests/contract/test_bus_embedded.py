"""The embedded bus keeps the bus contract, and what only it can promise."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bus_contract import TOPIC, BusContract, request, run_of, taken

from understudy.bus.embedded import EmbeddedBus
from understudy.contracts import decode
from understudy.errors import Fatal


class TestEmbedded(BusContract):
    @pytest.fixture
    def connect(self, tmp_path: Path) -> Callable[[], EmbeddedBus]:
        return lambda: EmbeddedBus(tmp_path / "bus.sqlite")


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


def test_a_slow_member_stalls_only_its_own_key(tmp_path: Path) -> None:
    bus = EmbeddedBus(tmp_path / "bus.sqlite")
    bus.publish(*(request(f"r{i}") for i in range(30)))
    held = taken(bus.subscribe("datagen", [TOPIC], "slow"))
    fast, done = bus.subscribe("datagen", [TOPIC], "fast"), 0
    while record := fast.poll(0):
        assert record.partition != held.partition
        fast.commit(record)
        done += 1
    assert done == sum(r.partition != held.partition for r in bus.replay([TOPIC]) if r)


KILLED_PUBLISHER = """
import sys
from understudy.bus.embedded import EmbeddedBus
from understudy.contracts import RunFailed
bus = EmbeddedBus(__import__("pathlib").Path(sys.argv[1]))
for i in range(10**9):
    bus.publish(*(RunFailed(run=str(i), station="trainer", reason=str(k)) for k in range(3)))
    print(i, flush=True)
"""


def test_kill_9_of_a_publisher_leaves_whole_publishes_only(tmp_path: Path) -> None:
    path = tmp_path / "bus.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_PUBLISHER, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        said = [process.stdout.readline() for _ in range(50)]
        time.sleep(0.05)
        process.kill()
        said += process.stdout.readlines()
    runs: dict[str, int] = {}
    for record in EmbeddedBus(path).replay(["report-published"]):
        if record:
            runs[decode(record.value).run] = runs.get(decode(record.value).run, 0) + 1
    assert set(runs.values()) == {3}
    assert len(runs) >= len([line for line in said if line.endswith("\n")])


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    bus = EmbeddedBus(tmp_path / "bus.sqlite")
    bus._connection().execute("PRAGMA user_version = 99")
    with pytest.raises(Fatal, match="newer Understudy"):
        EmbeddedBus(tmp_path / "bus.sqlite")


def test_a_file_that_is_no_bus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bus.sqlite").write_bytes(b"this is not a database, and long enough to look at" * 50)
    with pytest.raises(Fatal, match="cannot be used"):
        EmbeddedBus(tmp_path / "bus.sqlite")
