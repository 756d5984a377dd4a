"""The topics table: what flows where, who makes it, who takes it, how long it is kept. Topics are created from it.

Does not create anything itself (`bus/` does).
"""

from __future__ import annotations

from dataclasses import dataclass

from understudy.belt import contracts as c

DAY = 24 * 3600


@dataclass(frozen=True)
class Topic:
    """One row of the table."""

    name: str
    messages: tuple[type[c.Message], ...]
    producers: tuple[c.Station | str, ...]
    consumers: tuple[c.Station, ...]
    """Stations whose group works on it; everyone may read along."""
    retention: int | None = None
    """Seconds; None keeps for ever, because the ledger is a fold over it."""
    compacted: bool = False
    """Only the latest message of a key matters; Kafka may forget the earlier ones."""
    partitions: int = 6
    """As many variants of one topic can be worked on at once."""
    max_bytes: int = 1024**2
    """Of one message."""


TABLE: tuple[Topic, ...] = (
    Topic("run-requested", (c.RunRequested,), ("api",), ("datagen", "inference")),
    Topic("training-requested", (c.TrainingRequested,), ("datagen",), ("trainer",)),
    Topic("model-trained", (c.ModelTrained,), ("trainer",), ("inference",)),
    Topic("model-served", (c.ModelServed,), ("inference",), ("evaluator",)),
    Topic("variant-finished", (c.VariantScored, c.VariantFailed), c.STATIONS, ("evaluator",)),
    Topic("report-published", (c.ReportPublished, c.RunFailed), ("evaluator", *c.STATIONS), ()),
    Topic("progress", (c.Progress,), c.STATIONS, (), retention=7 * DAY, compacted=True),
    # A message of the largest size that is garbage grows up to six times when it becomes a JSON string.
    Topic("dead-letters", (c.DeadLetter,), c.STATIONS, (), max_bytes=8 * 1024**2),
)
BY_NAME = {topic.name: topic for topic in TABLE}
BY_MESSAGE = {message: topic for topic in TABLE for message in topic.messages}


def topic_of(message: c.Message) -> Topic:
    """The one topic a message belongs on."""
    return BY_MESSAGE[type(message)]
