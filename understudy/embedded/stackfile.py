"""What a running stack leaves in its data folder: the lock (who is up), `stack.json` (where), and the logs.

    <data>/stack.lock     held by flock while a stack is up, so it dies with the process, however that ends; holds the pid
    <data>/stack.json     {version, url, endpoint, pid, ports}, there only while the stack is ready
    <data>/logs/*.log     what each service said; one older generation is kept

Does not start anything (`stack.py`).
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from understudy.errors import Fatal, disk_full

VERSION = 1
"""Of the form of `stack.json`. Whoever reads it ignores what it does not know."""


def lock(data: Path) -> int:
    """Take the data folder; closing the returned descriptor lets it go. Raises `Fatal` when it is taken or cannot be written."""
    try:
        (data / "logs").mkdir(parents=True, exist_ok=True)
        descriptor = os.open(data / "stack.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        problem = Fatal(f"Cannot write in the data folder {data}: {error.strerror}", "Choose another with --data.")
        raise disk_full(error, data) or problem from error
    for _ in range(20):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            forget(data)  # a stack that was killed left its file
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            return descriptor
        except BlockingIOError:
            time.sleep(0.05)  # who only looks (`running`) holds it for a moment
    os.close(descriptor)
    raise Fatal(f"A stack is already up on {data}", "Use it, stop it, or choose another folder with --data.")


def announce(data: Path, url: str, endpoint: str, ports: Mapping[str, int]) -> None:
    """Tell everyone where the stack answers: who is on this machine (`url`), and its users (`endpoint`)."""
    partial = data / "stack.partial"
    content = {"version": VERSION, "url": url, "endpoint": endpoint, "pid": os.getpid(), "ports": dict(ports)}
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(data / "stack.json")


def forget(data: Path) -> None:
    """The stack no longer answers."""
    (data / "stack.json").unlink(missing_ok=True)


def running(data: Path, whose: Literal["url", "endpoint"] = "url") -> str | None:
    """URL of the stack that is up on `data`; empty while it starts or stops; None when there is none."""
    try:
        descriptor = os.open(data / "stack.lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None  # nobody holds it; closing lets go
    except BlockingIOError:
        try:
            where = json.loads((data / "stack.json").read_text(encoding="utf-8"))
            owner = os.pread(descriptor, 32, 0).decode()
            return str(where[whose]) if str(where["pid"]) == owner else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""
    finally:
        os.close(descriptor)
