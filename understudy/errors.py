"""The kinds of error that decide everything.

    UnderstudyError            says what was wrong, where, and what to do
    ├── Invalid                the input is wrong and will stay wrong  -> dead letter, the item or run fails, life goes on
    │   └── NotFound           what was asked for does not exist
    ├── Transient              the world is in the way for a while     -> retry with backoff, then treated as Invalid
    ├── Unsupported            this replica is too old for it          -> left for a newer one, never done differently
    └── Fatal                  this process cannot go on               -> exit code 70, the platform restarts or reports

Does not: log, retry or exit. Those who catch do (`belt/loop.py`, `understudy_cli`).
"""

from __future__ import annotations

import errno
from pathlib import Path

FATAL_EXIT = 70
"""Exit code of a process that ended by `Fatal` (EX_SOFTWARE of sysexits.h): restarting it at once will not help."""


class UnderstudyError(Exception):
    """Root of all expected errors.

    `str(error)` is one paragraph for a person: "<what and where>. <remedy>".
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what.rstrip('.')}. {remedy}".strip() if remedy else what)
        self.what = what
        self.remedy = remedy


class Invalid(UnderstudyError):
    """The input is wrong; trying again gives the same result."""


class NotFound(Invalid):
    """What was asked for does not exist."""


class Transient(UnderstudyError):
    """Something outside is not available right now; trying again may help."""


class Unsupported(UnderstudyError):
    """What is asked for is sound, but made for a newer version or another build than this process."""


class Fatal(UnderstudyError):
    """This process cannot go on: a full disk, a missing dependency, a bus that refuses us."""


def disk_full(error: BaseException, where: str | Path) -> Fatal | None:
    """The `Fatal` to raise when `error` says that the disk (or quota) under `where` is full, else None."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "disk is full" in str(error):  # sqlite3.OperationalError carries no errno
        return Fatal(
            f"The disk that holds {where} is full", "Free some space there and run the same command: it resumes."
        )
    return None
