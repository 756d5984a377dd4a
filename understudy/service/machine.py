"""What this process may use of the machine: cores and memory, bounded by its control group as a container sees it.

Linux only, and of control groups only version 2: where there is none, or no limit, the machine counts. Starts nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

GROUP = Path("/sys/fs/cgroup")
MEMINFO, VMSTAT = Path("/proc/meminfo"), Path("/proc/vmstat")


def cores(group: Path = GROUP) -> int:
    """Whole cores this process may keep busy, at least 1."""
    count = len(os.sched_getaffinity(0))
    try:
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return count
    return count if quota == "max" else max(1, min(count, int(quota) // int(period)))


def memory(group: Path = GROUP, meminfo: Path = MEMINFO) -> int:
    """Bytes this process could ever take: the machine's, or its control group's limit where that is less."""
    limit = _number(group / "memory.max")
    total = _line(meminfo, "MemTotal:")
    return total if limit is None else min(total, limit)


def available_memory(group: Path = GROUP, meminfo: Path = MEMINFO) -> int:
    """Bytes it may still take now; what the group holds only to remember files counts as free, as it does of the machine."""
    free = _line(meminfo, "MemAvailable:")
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is None or used is None:
        return free
    used -= _line(group / "memory.stat", "inactive_file", unit=1)
    return min(free, max(0, limit - used))


def memory_kills(statistics: Path = VMSTAT) -> int:
    """Processes that the kernel killed for want of memory since boot; tells such a SIGKILL from anybody else's."""
    return _line(statistics, "oom_kill", unit=1)


def _line(path: Path, name: str, unit: int = 1024) -> int:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(words[1]) * unit for line in lines if (words := line.split())[:1] == [name]), 0)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
