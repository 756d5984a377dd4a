"""What lies among the dead letters, and which of it still waits for somebody: a fold over topics.

Nothing is remembered about a replay, because the bus knows: a replay publishes the message with a higher `attempt`, so a
letter was replayed when its topic holds the same message with a higher one. Does not publish (the command line does).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from understudy.belt.bus import Record
from understudy.belt.contracts import DeadLetter, Message, decode, encode
from understudy.belt.folds.control import Control
from understudy.belt.topics import BY_NAME, TABLE
from understudy.errors import Invalid, Unsupported

TOPIC = "dead-letters"
TAKEN = tuple(topic.name for topic in TABLE if topic.group)
"""Topics that messages die from."""

UNHEEDED = ("closer", "reporter")
"""Groups that work for what is cancelled too: it gets its report."""

Status = Literal["open", "replayed", "cancelled", "deleted", "unreadable"]
"""Waits for somebody; was published again since; needs nobody, because its generation was cancelled, or its run deleted;
cannot be published again, because it is no message of the belt."""


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
    def item(self) -> str:
        """Empty when the message is about a whole run."""
        return str(getattr(self.message, "item", None) or "")


class Letters:
    """Every dead letter of a bus. Reads records in any order between topics.

    letters = Letters()
    for record in bus.replay((*TAKEN, TOPIC)):
        letters.read(record)
    letters.all()
    """

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._attempts: dict[tuple[str, bytes], int] = {}
        """Message on a topic, whatever its attempt -> the highest attempt of it there."""
        self._control = Control()

    def read(self, record: Record) -> None:
        """Take one record into account."""
        if record.topic == TOPIC:
            self._records.append(record)
        elif record.topic in TAKEN and (message := _decoded(record.value)):
            same = record.topic, _content(message)
            self._attempts[same] = max(message.attempt, self._attempts.get(same, 0))
            if record.topic in self._control.topics:
                self._control.read(message, record)

    def all(self) -> list[Letter]:
        """All letters, oldest first."""
        letters = []
        for record in sorted(self._records, key=lambda record: (record.timestamp, record.partition, record.offset)):
            dead = _fields(record)
            message = _decoded(dead["value"].encode())
            status = self._status(dead["topic"], message)
            readable = None if status == "unreadable" else message
            name = f"{record.partition}-{record.offset}"
            letters.append(Letter(id=name, timestamp=record.timestamp, message=readable, status=status, **dead))
        return letters

    def _status(self, topic: str, message: Message | None) -> Status:
        attempt = self._attempts.get((topic, _content(message))) if message else None
        if message is None or attempt is None:  # also what only looks like a message since its bytes were made text
            return "unreadable"
        verdict = self._control.verdict(message)
        if verdict == "deleted":
            return verdict
        if attempt > message.attempt:
            return "replayed"
        return "cancelled" if verdict and BY_NAME[topic].group not in UNHEEDED else "open"


def _content(message: Message) -> bytes:
    return encode(message.model_copy(update={"attempt": 1}))


def _decoded(value: bytes) -> Message | None:
    try:
        return decode(value)
    except (Invalid, Unsupported):
        return None


def _fields(record: Record) -> dict[str, Any]:
    """What the dead letter in `record` says; when there is none in it, one about `record` itself."""
    message = _decoded(record.value)
    if isinstance(message, DeadLetter):
        return message.model_dump(exclude={"type", "generation", "attempt"})
    value = record.value.decode(errors="replace")
    return {
        "run": "unknown",
        "topic": TOPIC,
        "station": "-",
        "reason": "Not a dead letter",
        "attempts": 0,
        "value": value,
    }
