"""TCP ports on this machine: find free ones, and say who holds one. Linux only (reads /proc)."""

from __future__ import annotations

import contextlib
import errno
import socket
from pathlib import Path

LISTEN = "0A"


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether nobody listens on `port` now. Raises `OSError` when it cannot be listened on anyway."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as servers do: connections in TIME_WAIT are no obstacle
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """`count` different ports that are free now; nobody reserves them, so use them soon."""
    with contextlib.ExitStack() as sockets:
        held = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for probe in held:
            probe.bind((host, 0))
        return [int(probe.getsockname()[1]) for probe in held]


def holder(port: int) -> str | None:
    """Who listens on `port`, as `name (process 123)`; None when nobody does or the system does not tell us."""
    sockets = {
        f"socket:[{inode}]" for table in ("tcp", "tcp6") for inode in _listeners(Path("/proc/net") / table, port)
    }
    for process in Path("/proc").glob("[0-9]*") if sockets else ():
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to look into
            if any(str(fd.readlink()) in sockets for fd in (process / "fd").iterdir()):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                return f"`{command[:80]}` (process {process.name})"
    return None


def _listeners(table: Path, port: int) -> list[str]:
    try:
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []
    return [row[9] for row in rows if row[3] == LISTEN and int(row[1].rsplit(":", 1)[1], 16) == port]
