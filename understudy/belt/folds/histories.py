"""What was said about each run, in order: for the closer, who must know a run's book as it was at one record.

The messages of `run-control`, which lie in one order for each run, until the run is deleted; and which of them the closer gave
up.
"""

from __future__ import annotations

from collections import defaultdict

from understudy.belt.bus import Record
from understudy.belt.contracts import DeadLetter, Message, RunDeleted, decode, encode
from understudy.errors import Invalid, Unsupported


class Histories:
    """Messages by run, with their offsets."""

    topics = ("run-control", "dead-letters")

    def __init__(self) -> None:
        self._given_up: set[bytes] = set()
        self._said: defaultdict[str, list[tuple[int, Message]]] = defaultdict(list)

    def read(self, message: Message, record: Record) -> None:
        if isinstance(message, DeadLetter):
            if message.topic == "run-control":
                self._given_up.add(_content(message.value.encode()))
            return
        said = self._said[message.run]
        if said and record.offset <= said[-1][0]:  # a reader that began anew reads again what we have
            return
        if isinstance(message, RunDeleted):
            said[:] = [(offset, old) for offset, old in said if old.generation > message.generation]
        said.append((record.offset, message))

    def between(self, run: str, after: int, until: int) -> list[Message]:
        """The messages about a run at offsets in (after, until] of its partition."""
        return [message for offset, message in tuple(self._said.get(run, ())) if after < offset <= until]

    def was_given_up(self, message: Message) -> bool:
        """Whether an earlier attempt at this very message lies among the dead letters."""
        return message.attempt > 1 and _content(encode(message)) in self._given_up


def _content(value: bytes) -> bytes:
    """What a message says, whichever attempt it is."""
    try:
        return encode(decode(value).model_copy(update={"attempt": 1}))
    except (Invalid, Unsupported):
        return value
