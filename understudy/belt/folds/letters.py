"""What lies among the dead letters, and which of it still waits for somebody: a fold over topics, as the ledger is.

Nothing is remembered about a replay, because the bus knows: a message that a station could not handle and that was
published again has more copies on its topic than dead letters about it. Does not publish (`cli/deadletters.py`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from understudy.belt.bus import Record
from understudy.belt.contracts import DeadLetter, Message, decode, encode
from understudy.belt.topics import TABLE
from understudy.errors import Invalid

TOPIC = "dead-letters"
TAKEN = tuple(topic.name for topic in TABLE if topic.consumers)
"""Topics that messages die from."""

Status = Literal["open", "replayed", "unreadable"]
"""Waits for somebody; was published again since; cannot be, because it is no message of the belt."""


@dataclass(frozen=True)
class Letter:
    """One dead letter as it lies on the bus."""

    id: str
    """`<partition>-<offset>` of its record."""
    timestamp: float
    """Seconds since the epoch."""
    run: str
    topic: str
    """Where its message had been taken from."""
    station: str
    reason: str
    attempts: int
    value: str
    """Its message as it was, text."""
    message: Message | None
    """What `value` says; None when it is unreadable."""
    status: Status
    partition: int | None = None
    offset: int | None = None
    """Where on `topic` its message lies."""

    @property
    def variant(self) -> str:
        """Empty when the message is about a whole run."""
        return str(getattr(self.message, "variant", ""))


class Letters:
    """Every dead letter of a bus. Reads records in any order between topics.

    letters = Letters()
    for record in bus.replay((*TAKEN, TOPIC)):
        letters.read(record)
    letters.all()
    """

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._copies: Counter[tuple[str, bytes]] = Counter()

    def read(self, record: Record) -> None:
        """Take one record into account."""
        if record.topic == TOPIC:
            self._records.append(record)
        elif record.topic in TAKEN and (message := _decoded(record.value)):
            self._copies[record.topic, encode(message)] += 1

    def all(self) -> list[Letter]:
        """All letters, oldest first."""
        died: Counter[tuple[str, str, bytes]] = Counter()
        letters = []
        for record in sorted(self._records, key=lambda record: (record.partition, record.offset)):
            dead = _fields(record)
            message = _decoded(dead["value"].encode())
            content = encode(message) if message else b""
            copies = self._copies[dead["topic"], content]
            died[dead["topic"], dead["station"], content] += 1
            status: Status = "open" if died[dead["topic"], dead["station"], content] >= copies else "replayed"
            if not copies:  # also what only looks like a message since its bytes were made text
                message, status = None, "unreadable"
            name = f"{record.partition}-{record.offset}"
            letters.append(Letter(id=name, timestamp=record.timestamp, message=message, status=status, **dead))
        return sorted(letters, key=lambda letter: letter.timestamp)


def _decoded(value: bytes) -> Message | None:
    try:
        return decode(value)
    except Invalid:
        return None


def _fields(record: Record) -> dict[str, Any]:
    """What the dead letter in `record` says; when there is none in it, one about `record` itself."""
    message = _decoded(record.value)
    if isinstance(message, DeadLetter):
        return message.model_dump(exclude={"type"})
    value = record.value.decode(errors="replace")
    return {
        "run": "unknown",
        "topic": TOPIC,
        "station": "-",
        "reason": "Not a dead letter",
        "attempts": 0,
        "value": value,
    }
