"""What was said about each run, in order: for the closer, who must know a run's book as it was at one record.

The messages of `run-control`, which lie in one order for each run, until the run is deleted.
"""

from __future__ import annotations

from collections import defaultdict

from understudy.belt.bus import Record
from understudy.belt.contracts import Message, RunDeleted


class Histories:
    """Messages by run, with their offsets."""

    topics = ("run-control",)

    def __init__(self) -> None:
        self._said: defaultdict[str, list[tuple[int, Message]]] = defaultdict(list)

    def read(self, message: Message, record: Record) -> None:
        said = self._said[message.run]
        if said and record.offset <= said[-1][0]:  # a reader that began anew reads again what we have
            return
        if isinstance(message, RunDeleted):
            said[:] = [(offset, old) for offset, old in said if old.generation > message.generation]
        said.append((record.offset, message))

    def between(self, run: str, after: int, until: int) -> list[Message]:
        """The messages about a run at offsets in (after, until] of its partition."""
        return [message for offset, message in tuple(self._said.get(run, ())) if after < offset <= until]
