"""A child process that cannot outlive us, with everything it starts.

Between parent and command stands a keeper (this file, run as a script with nothing imported but the standard
library). It holds the read end of a pipe whose write end only the parent has, and is the subreaper of all that the
command starts. When the parent dies in any way, even by SIGKILL, the pipe closes and the keeper kills the whole tree;
when the command ends, so do its leftovers. A killed keeper takes the command with it (parent-death signal), and
`Child.poll` sweeps the process group.

Does not restart anything or read output (it goes to a log file). Linux only.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class Child:
    """`child = Child([...], log=path)`; ends with `child.stop()`, with its command, or with this process."""

    def __init__(
        self, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        lifeline, self._lifeline = os.pipe()
        self._once = threading.Lock()
        try:
            with log.open("ab") as output:
                self._keeper = subprocess.Popen(
                    [sys.executable, "-ISE", __file__, str(lifeline), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, **(env or {})},
                    cwd=cwd,
                    pass_fds=(lifeline,),
                    start_new_session=True,  # its own group: Ctrl-C in the terminal reaches us alone, and we end the child in order
                )
        finally:
            os.close(lifeline)
        self.log = log

    @property
    def pid(self) -> int:
        """The keeper's process id, which is also the id of the process group."""
        return self._keeper.pid

    def poll(self) -> int | None:
        """Exit code of the command (negative: the signal that ended it), or None while it runs."""
        code = self._keeper.poll()
        if code is not None:
            self._sweep()
            return 128 - code if code > 128 else code
        return None

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end; the exit code, or None after `timeout` seconds."""
        try:
            self._keeper.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        return self.poll()

    def stop(self, grace: float = 5.0) -> None:
        """SIGTERM to the command, after `grace` seconds the end of the whole tree. Safe to call twice."""
        if self._keeper.poll() is None:
            self._keeper.terminate()
            if self.wait(grace) is None:
                self._close_lifeline()  # the keeper kills the tree
                if self.wait(grace) is None:
                    self._keeper.kill()
                    self._keeper.wait()
        self._close_lifeline()
        self._sweep()

    def _sweep(self) -> None:
        self._close_lifeline()
        try:
            os.killpg(self._keeper.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass

    def _close_lifeline(self) -> None:
        with self._once:  # who polls and who stops may find the end at the same time
            if self._lifeline >= 0:
                os.close(self._lifeline)
                self._lifeline = -1


def _keep(lifeline: int, command: Sequence[str]) -> int:
    """The keeper: run `command` until it ends, we are told to stop, or the parent is gone."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    keeper = os.getpid()
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)

    def die_with_keeper() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != keeper:
            os._exit(1)

    signal.signal(signal.SIGCHLD, lambda *_: None)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_keeper)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.send_signal(signal.SIGTERM))
    signs = (
        select.poll()
    )  # not select(), which ends at descriptor 1024: the lifeline has the number it has in the parent
    signs.register(lifeline, select.POLLIN)
    signs.register(wake_read, select.POLLIN)
    code: int | None = None
    while code is None:
        ready = {descriptor for descriptor, _ in signs.poll()}
        if wake_read in ready:
            os.read(wake_read, 512)
        if lifeline in ready:  # nothing is ever written there: readable means closed
            break
        code = process.poll()
    # Not `process` any more: its status may be the first that the reaping below collects.
    status = _end_descendants(process.pid)
    if code is None:
        code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _end_descendants(command: int) -> int:
    """Kill and reap until no child is left, not even a dead one; returns the wait status of `command`, 0 if reaped before.

    Orphans of a child become ours before the child can be reaped, so having no child at all means that the tree is gone. Asking
    whether the children look dead would not do: between the look and the answer one may die and hand us its own.
    """
    status, deadline = 0, time.monotonic() + 15
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while time.monotonic() < deadline:
        for pid in children.read_text().split():
            os.kill(int(pid), signal.SIGKILL)  # ours and not reaped, so the number is nobody else's
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                status = ended[1] if ended[0] == command else status
        except ChildProcessError:
            break
        time.sleep(0.01)
    return status


if __name__ == "__main__":
    sys.exit(_keep(int(sys.argv[1]), sys.argv[2:]))
