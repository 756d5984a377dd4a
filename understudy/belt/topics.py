"""The topics table: what flows where, who makes it, who takes it, how long it is kept. Topics are created from it.

Does not create anything itself (`bus/` does).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from understudy.belt import contracts as c
from understudy.terms import STATIONS, Station

Group = Literal["datagen", "trainer", "inference", "evaluator", "closer", "reporter"]
"""Who shares the messages of a topic among its members: a service's lane."""
STATION_OF: dict[str, Station] = {
    "datagen": "datagen",
    "trainer": "trainer",
    "inference": "inference",
    "evaluator": "evaluator",
    "closer": "evaluator",
    "reporter": "evaluator",
}
"""Group -> the service it is a lane of."""
DAY = 24 * 3600
DOOR = "the door"
"""Whoever takes requests of users over HTTP."""


@dataclass(frozen=True)
class Topic:
    """One row of the table."""

    name: str
    messages: tuple[type[c.Message], ...]
    producers: tuple[Station | str, ...]
    group: Group | None = None
    """Who works on it; everyone may read along."""
    retention: int | None = None
    """Seconds; None keeps for ever, because what is known is a fold over it."""
    compacted: bool = False
    """Only the latest message of a key matters: earlier ones may be forgotten, and a replay begins near the end."""
    partitions: int = 6
    """So many messages of one topic can be worked on at once."""
    max_bytes: int = 64 * 1024
    """Of one message."""


TABLE: tuple[Topic, ...] = (
    Topic("item-planned", (c.ItemPlanned,), (DOOR,)),
    Topic("run-requested", (c.RunRequested,), (DOOR,), "datagen"),
    # What opens a run, ends its items or wishes them ended: one order per run, so that one place decides whose turn it is.
    Topic(
        "run-control",
        (c.DatasetsMade, c.ItemServed, c.ItemScored, c.ItemFailed, c.CancelRequested, c.RunDeleted),
        (DOOR, *STATIONS),
        "closer",
    ),
    Topic("training-requested", (c.TrainingRequested,), ("evaluator",), "trainer", partitions=12),
    Topic("serving-requested", (c.ServingRequested,), ("evaluator", "trainer"), "inference", partitions=24),
    Topic("scoring-requested", (c.ScoringRequested,), ("evaluator", "inference"), "evaluator", partitions=12),
    Topic("report-requested", (c.ReportRequested,), ("evaluator",), "reporter"),
    Topic("model-served", (c.ModelServed,), ("inference",)),
    Topic("run-closed", (c.RunClosed,), STATIONS),
    Topic("keys", (c.KeyMade, c.KeyEnded), (DOOR,), partitions=1),
    Topic("progress", (c.Progress,), STATIONS, retention=7 * DAY, compacted=True),
    # A message of the largest size that is garbage grows up to six times when it becomes a JSON string.
    Topic("dead-letters", (c.DeadLetter,), STATIONS, max_bytes=512 * 1024),
)
BY_NAME = {topic.name: topic for topic in TABLE}
BY_MESSAGE = {message: topic for topic in TABLE for message in topic.messages}


def topic_of(message: c.Message) -> Topic:
    """The one topic a message belongs on."""
    return BY_MESSAGE[type(message)]
