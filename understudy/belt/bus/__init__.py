"""The bus port: what services need of Kafka or of the embedded log, and nothing more.

Two adapters (`embedded.py`, `kafka.py`) pass one inherited contract suite. Both give: order per key, consumer groups
whose members share partitions, redelivery of what was not committed, and publishing that is atomic with the commit of
the message it answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from understudy.belt.contracts import Message, encode
from understudy.belt.topics import topic_of
from understudy.errors import Invalid

ENVELOPE = 200
"""Bytes that Kafka adds to a message and its key."""


def packed(message: Message) -> bytes:
    """A message as it lies on a bus; raises `Invalid` when it is too large for its topic, before any broker does: a producer
    that is refused one sends no other."""
    topic, value = topic_of(message), encode(message)
    if (size := len(value) + len(message.key.encode()) + ENVELOPE) > topic.max_bytes:
        raise Invalid(
            f"A message of {size:,} bytes is too large for {topic.name}", f"At most {topic.max_bytes:,} are taken."
        )
    return value


@dataclass(frozen=True)
class Record:
    """One message as it lies on the bus."""

    topic: str
    partition: int
    offset: int
    timestamp: float
    """Seconds since the epoch, when it was published."""
    value: bytes
    delivery: int = 1
    """How many times this record was handed to the group since it last got further, this time included; 1 in a replay."""
    furthest: int = 0
    """The mark it had got to before (`Subscription.furthest`)."""


class Fenced(Exception):
    """The partition went to another member meanwhile; drop the work, the other one does it."""


class Subscription(Protocol):
    """One member of a group, used by one thread. It may have several records in hand, of different partitions."""

    def poll(self, timeout: float) -> Record | None:
        """The oldest next record over all partitions this member may take one from, or None after `timeout` seconds.

        It is in hand from here on, and with it its partition, until it is committed, given back or lost.
        """

    def keep_alive(self) -> None:
        """Say that this member lives while it has records in hand; call at least every second."""

    def holds(self, record: Record) -> bool:
        """Whether the record is still ours, as far as the latest `keep_alive` could see."""

    def furthest(self, record: Record, mark: int) -> None:
        """The work on `record` got to `mark`, further than ever: its deliveries are counted from 1 again, also by whoever
        has it next. Does nothing for a record that is not ours any more."""

    def commit(self, record: Record, outputs: Sequence[Message] = ()) -> None:
        """Publish `outputs` and mark `record` done, both or neither. Raises `Fenced`."""

    def give_back(self, record: Record) -> None:
        """Let go of it in order: it is handed out again, to whomever, and this delivery does not count."""

    def decline(self, record: Record) -> None:
        """Let go of it in order, because this member cannot do it: others may get it, this member only after `reconsider`."""

    def reconsider(self) -> None:
        """What was declined may be handed out to this member again: its run may have been cancelled meanwhile."""

    def close(self) -> None:
        """Give back what is in hand and leave the group; all of it goes to the others at once."""


class Bus(Protocol):
    """A connection to the bus; safe to share between threads."""

    def publish(self, *messages: Message) -> None:
        """Append messages, in this order; they are on the bus when this returns. Together only if nothing goes wrong."""

    def subscribe(self, group: str, topics: Sequence[str], member: str) -> Subscription:
        """Join `group`; a member of the same name that vanished is replaced at once, one that lives is `Fenced`."""

    def replay(self, topics: Sequence[str], follow: bool = False) -> Iterator[Record | None]:
        """All records from the beginning, in publishing order per key, without a group; of a compacted topic recent ones only.

        Ends at the present, or with `follow` goes on for ever, yielding None several times a second while there is nothing
        new; the first None comes as soon as everything that was there at the start has been read, however much is
        published meanwhile.
        """

    def lag(self, group: str) -> dict[str, int]:
        """Topic -> messages on it that `group` has not committed, for every topic it ever subscribed to.

        0 once everything is done and a member has polled since. Never less than there are; on Kafka it may be up to twice as
        much, because a transaction leaves a mark beside its messages, and to tell them apart is to download them.
        """

    def close(self) -> None:
        """Release the connection."""
