"""Kills processes of a stack at random with `kill -9`, and starts the command again where it was the victim.

A process is whatever belongs to the data folder: the command with its supervisor, the four services, the engine with its core,
a training, and the keeper that stands above each of them. Every one is as likely as the next. The times and the order of
the victims follow from a seed; how far the run has come by then does not, so a failure repeats often, not always.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field

from belt import Belt

PAUSE = 3.0
"""Seconds between two kills, on average."""
PATIENCE = 900.0
"""Seconds for a run to end by itself once nobody disturbs it any more."""
ROLES = {
    "keeper": r"child\.py ",
    "training": r"services\.trainer\.train ",
    "engine core": r"VLLM::EngineCore",
    "engine": r"services\.inference\.launch|vllm",
    "service": r"-m services\.(?P<name>\w+)",
    "command": r"understudy run",
}


@dataclass
class Storm:
    """A run in its folder, and what was killed of it."""

    belt: Belt
    dice: random.Random
    killed: list[str] = field(default_factory=list)
    """Second, role."""

    def over(self, kills: int, calm: float) -> str:
        """Start the run, wait `calm` seconds, kill so many processes of it, wait until it ends; what the command said.

        Raises `AssertionError` when it does not end, or not well.
        """
        said = self.belt.data.parent / "said"
        with said.open("ab") as output:
            began = time.monotonic()
            command = self._start(output.fileno())
            try:
                due = began + calm
                while command.poll() is None and len(self.killed) < kills:
                    time.sleep(0.05)
                    if time.monotonic() >= due:
                        due += self.dice.expovariate(1 / PAUSE)
                        self._kill_one(command.pid, time.monotonic() - began)
                        if command.poll() == -signal.SIGKILL:
                            command = self._start(output.fileno())
                command.wait(PATIENCE)
            finally:
                command.kill()
                command.wait()
        words = said.read_text()
        assert command.returncode == 0, words
        return words

    def _start(self, output: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.belt.command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def _kill_one(self, command: int, second: float) -> None:
        processes = self.belt.processes() | {command: "understudy run"}
        roles = {pid: role_of(line) for pid, line in processes.items()}
        pid = self.dice.choice(sorted(roles, key=lambda pid: (roles[pid], pid)))
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        if pid == command:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        self.killed.append(f"{second:6.1f} s {roles[pid]}")


def role_of(line: str) -> str:
    """What a process is, by its command line; the name of what a keeper keeps goes with it."""
    for role, pattern in ROLES.items():
        if found := re.search(pattern, line):
            if role == "keeper":
                return f"keeper of {role_of(line[found.end() :])}"
            return found.groupdict().get("name", role)
    return line[:60]


def left_over(belt: Belt, patience: float = 15) -> dict[int, str]:
    """Processes of the folder that are still there after `patience` seconds."""
    deadline = time.monotonic() + patience
    while (left := belt.processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left
