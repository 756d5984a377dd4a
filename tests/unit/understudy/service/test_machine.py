"""A container's limits count, not the machine's; without limits, or without control groups, the machine's do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from understudy.service import machine

KIB, GIB = 1 << 10, 1 << 30


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    file = tmp_path / "meminfo"
    file.write_text(f"MemTotal:       {16 * GIB // KIB} kB\nMemFree: 1 kB\nMemAvailable:   {10 * GIB // KIB} kB\n\n")
    return file


@pytest.fixture
def group(tmp_path: Path) -> Path:
    folder = tmp_path / "group"
    folder.mkdir()
    return folder


def limit(group: Path, memory: int | str, used: int = 0, remembered: int = 0) -> None:
    (group / "memory.max").write_text(f"{memory}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 1\ninactive_file {remembered}\nactive_file 5\n")


def test_memory_is_the_lesser_of_the_machines_and_the_groups(group: Path, meminfo: Path) -> None:
    limit(group, 4 * GIB)
    assert machine.memory(group, meminfo) == 4 * GIB
    limit(group, 64 * GIB)
    assert machine.memory(group, meminfo) == 16 * GIB, "a limit above what there is"


def test_a_group_without_a_limit_and_no_group_leave_the_machines(group: Path, meminfo: Path) -> None:
    limit(group, "max", used=3 * GIB)
    for place in (group, group / "none"):
        assert machine.memory(place, meminfo) == 16 * GIB
        assert machine.available_memory(place, meminfo) == 10 * GIB


def test_available_is_what_the_group_has_left_and_files_it_remembers_do_not_count(group: Path, meminfo: Path) -> None:
    limit(group, 4 * GIB, used=3 * GIB)
    assert machine.available_memory(group, meminfo) == 1 * GIB
    limit(group, 4 * GIB, used=3 * GIB, remembered=2 * GIB)
    assert machine.available_memory(group, meminfo) == 3 * GIB
    limit(group, 12 * GIB)
    assert machine.available_memory(group, meminfo) == 10 * GIB, "the machine itself has less"
    limit(group, 4 * GIB, used=5 * GIB)
    assert machine.available_memory(group, meminfo) == 0, "a limit that was lowered below what is used"


@pytest.mark.parametrize(("quota", "whole"), [("100000 100000", 1), ("50000 100000", 1), ("150000 100000", 1)])
def test_cores_of_a_quota_are_whole_and_at_least_one(group: Path, quota: str, whole: int) -> None:
    (group / "cpu.max").write_text(f"{quota}\n")
    assert machine.cores(group) == whole


@pytest.mark.parametrize("quota", ["max 100000", "99900000 100000", None])
def test_cores_are_never_more_than_this_process_may_run_on(group: Path, quota: str | None) -> None:
    if quota:
        (group / "cpu.max").write_text(f"{quota}\n")
    assert machine.cores(group) == len(os.sched_getaffinity(0))


def test_fewer_cores_when_the_process_is_bound_to_fewer(group: Path) -> None:
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert machine.cores(group) == 1
    finally:
        os.sched_setaffinity(0, mine)


def test_kills_for_want_of_memory_are_counted(tmp_path: Path) -> None:
    statistics = tmp_path / "vmstat"
    statistics.write_text("nr_free_pages 12\noom_kill 3\nnr_unstable 0\n")
    assert machine.memory_kills(statistics) == 3
    assert machine.memory_kills(tmp_path / "none") == 0


def test_this_machine_can_be_read() -> None:
    assert 0 < machine.available_memory() <= machine.memory()
    assert machine.cores() >= 1
    assert machine.memory_kills() >= 0
