"""The bus port: what services need of Kafka or of the embedded log, and nothing more.

Two adapters (`embedded.py`, `kafka.py`) pass one inherited contract suite. Both give: order per key, consumer groups
whose members share partitions, redelivery of what was not committed, and publishing that is atomic with the commit of
the message it answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from understudy.belt.contracts import Message


@dataclass(frozen=True)
class Record:
    """One message as it lies on the bus."""

    topic: str
    partition: int
    offset: int
    timestamp: float
    """Seconds since the epoch, when it was published."""
    value: bytes
    attempt: int = 1
    """How many times this record was handed to the group, this one included; 1 in a replay."""


class Fenced(Exception):
    """The partition went to another member meanwhile; drop the work, the other one does it."""


class Subscription(Protocol):
    """One member of a group, used by one thread."""

    def poll(self, timeout: float) -> Record | None:
        """The next record of a partition this member holds, or None after `timeout` seconds."""

    def keep_alive(self) -> None:
        """Say that this member lives while it works on a record; call at least every second. Raises `Fenced`."""

    def commit(self, record: Record, outputs: Sequence[Message] = ()) -> None:
        """Publish `outputs` and mark `record` done, both or neither. Raises `Fenced`."""

    def close(self) -> None:
        """Leave the group; what is uncommitted goes to the others at once."""


class Bus(Protocol):
    """A connection to the bus; safe to share between threads."""

    def publish(self, message: Message) -> None:
        """Append a message; it is on the bus when this returns."""

    def subscribe(self, group: str, topics: Sequence[str], member: str) -> Subscription:
        """Join `group`; a member of the same name that vanished is replaced at once, one that lives is `Fenced`."""

    def replay(self, topics: Sequence[str], follow: bool = False) -> Iterator[Record | None]:
        """All records from the beginning, in publishing order per key, without a group.

        Ends at the present, or with `follow` goes on for ever, yielding None several times a second while there is nothing
        new; the first None comes when everything that was there at the start has been read.
        """

    def lag(self, group: str) -> dict[str, int]:
        """Topic -> messages on it that `group` has not committed, for every topic it ever subscribed to."""

    def close(self) -> None:
        """Release the connection."""
