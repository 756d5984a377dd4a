"""A child ends with its command, its parent or its keeper, with everything it started."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from understudy.service.child import Child

# A command that starts a grandchild in a session of its own, which ignores SIGTERM: the worst kind.
STUBBORN = """
import subprocess, sys, time, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import time, signal; signal.signal(15, signal.SIG_IGN); time.sleep(600)"],
                              start_new_session=True)
open(sys.argv[1], "w").write(f"{__import__('os').getpid()} {grandchild.pid} ")
time.sleep(600)
"""
# A command whose first thread has ended, so that it shows as a zombie while another thread and its child live on.
HEADLESS = """
import ctypes, platform, signal, subprocess, sys, threading, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def work():
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    open(sys.argv[1], "w").write(f"{grandchild.pid} ")
    time.sleep(600)
threading.Thread(target=work).start()
ctypes.CDLL(None).syscall(60 if platform.machine() == "x86_64" else 93, 0)  # exit(2): of this thread alone
"""
PARENT = """
import sys, time; from pathlib import Path; from understudy.service.child import Child
child = Child([sys.executable, "-c", sys.argv[1], sys.argv[2]], log=Path(sys.argv[3]))
print(child.pid, flush=True); time.sleep(600)
"""


def pids(path: Path) -> list[int]:
    deadline = time.monotonic() + 10
    while not path.exists() or not path.read_text().endswith(" "):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [int(pid) for pid in path.read_text().split()]


def gone(processes: list[int], within: float = 8) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not any(alive(pid) for pid in processes):
            return True
        time.sleep(0.05)
    return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("code", "expected"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9), ("", 0)]
)
def test_the_exit_code_is_the_commands(tmp_path: Path, code: str, expected: int) -> None:
    assert Child([sys.executable, "-c", code], log=tmp_path / "log").wait(20) == expected


def test_output_goes_to_the_log(tmp_path: Path) -> None:
    child = Child(
        [sys.executable, "-c", "import os; print(os.environ['COLOUR'])"], log=tmp_path / "l/log", env={"COLOUR": "blue"}
    )
    assert child.wait(20) == 0
    assert (tmp_path / "l/log").read_text() == "blue\n"


def test_stop_asks_first(tmp_path: Path) -> None:
    polite = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True); time.sleep(600)"
    )
    child = Child([sys.executable, "-c", polite], log=tmp_path / "log")
    while "up" not in (tmp_path / "log").read_text():
        time.sleep(0.02)
    child.stop()
    assert child.poll() == 7


def test_a_dying_command_that_looks_like_a_zombie_does_not_leave_its_offspring(tmp_path: Path) -> None:
    child = Child([sys.executable, "-c", HEADLESS, str(tmp_path / "pids")], log=tmp_path / "log")
    (grandchild,) = pids(tmp_path / "pids")
    child.stop(grace=0.5)
    assert gone([child.pid, grandchild])


def test_stop_ends_the_stubborn_with_their_offspring(tmp_path: Path) -> None:
    child = Child([sys.executable, "-c", STUBBORN, str(tmp_path / "pids")], log=tmp_path / "log")
    family = pids(tmp_path / "pids")
    child.stop(grace=0.5)
    assert gone([child.pid, *family])


NESTED = """
import sys, time; from pathlib import Path; from understudy.service.child import Child
child = Child([sys.executable, "-c", sys.argv[1], *sys.argv[2:]], log=Path(sys.argv[-1] + ".log")); time.sleep(600)
"""
HEAVY = "ballast = bytearray(200_000_000)\n" + STUBBORN
"""A process with that much memory takes a while to die, and hands its own children over only then."""


def test_kill_9_at_the_top_ends_children_of_children_every_time(tmp_path: Path) -> None:
    """A service under a supervisor has an engine under itself: two keepers end one tree at the same time."""
    for number in range(6):
        path = tmp_path / f"pids{number}"
        top = subprocess.Popen([sys.executable, "-c", NESTED, NESTED, HEAVY, str(path)])
        family = pids(path)
        top.kill()
        top.wait()
        assert gone(family), f"orphans in round {number}"


@pytest.mark.parametrize("victim", ["parent", "keeper", "command"])
def test_kill_9_of_anyone_ends_them_all(tmp_path: Path, victim: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, STUBBORN, str(tmp_path / "pids"), str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout
    keeper = int(parent.stdout.readline())
    family = pids(tmp_path / "pids")
    os.kill({"parent": parent.pid, "keeper": keeper, "command": family[0]}[victim], signal.SIGKILL)
    if victim == "keeper":  # the command dies with it; what it left behind is swept by the parent, or with the parent
        assert gone([keeper, family[0]])
    else:
        assert gone([keeper, *family])
    parent.kill()
    parent.wait()
    for pid in family:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_parent_with_thousands_of_open_files_has_children_all_the_same(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        child = Child([sys.executable, "-c", "raise SystemExit(3)"], log=tmp_path / "log")
        deadline = time.monotonic() + 20
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert child.poll() == 3
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_who_polls_and_who_stops_may_find_the_end_together(tmp_path: Path) -> None:
    """A descriptor that is closed twice may be somebody else's by then."""
    for _ in range(30):
        child = Child([sys.executable, "-c", ""], log=tmp_path / "log")
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda turn, child=child: child.stop() if turn % 2 else child.wait(5), range(8)))
