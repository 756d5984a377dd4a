"""What is known, read from the topics alone: folds, each a pure `apply` on immutable values, one value per run.

Every value is a maximum or a set of what was read, so any order between topics, and doubles, give the same. A process has
one reader (`reader.py`) that feeds the folds it needs; answers are look-ups, nothing is copied for them.
"""

from __future__ import annotations

from typing import Protocol

from understudy.belt.bus import Record
from understudy.belt.contracts import Message


class Fold(Protocol):
    """`fold.read` is called by one thread; everything else may be called from any."""

    @property
    def topics(self) -> tuple[str, ...]:
        """What it must be fed with."""

    def read(self, message: Message, record: Record) -> None:
        """Take one message into account."""
