"""What was read about one run, apart from its book: requests, plan, moves, progress, closings. Values and pure functions.

An item is where its latest request says, by (generation, attempt, place on the belt). Every field is a maximum or a set, so
nothing depends on the order of reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from understudy.belt.contracts import (
    ItemPlanned,
    Message,
    ModelServed,
    OnBelt,
    Progress,
    RunClosed,
    RunRequested,
    ScoringRequested,
    ServingRequested,
    TrainingRequested,
)
from understudy.belt.turns import order
from understudy.terms import Station

Stage = Literal["waiting", "training", "serving", "evaluating", "served", "scored", "failed", "cancelled"]
AT: dict[Stage, Station] = {
    "waiting": "datagen",
    "training": "trainer",
    "serving": "inference",
    "evaluating": "evaluator",
}
"""Stage of an item on the belt -> the station that has it, in the order of the belt."""
STAGES: tuple[tuple[type[OnBelt], Stage], ...] = (
    (TrainingRequested, "training"),
    (ServingRequested, "serving"),
    (ScoringRequested, "evaluating"),
)
"""What asks for an item, and the stage it is in then, in the order of the belt."""
_RANK = {kind: rank for rank, (kind, _) in enumerate(STAGES)}


@dataclass(frozen=True)
class Move:
    """The latest request about an item."""

    generation: int
    attempt: int
    rank: int
    """Of its station on the belt."""
    since: float
    """When it was first read to have been published."""


@dataclass(frozen=True)
class Run:
    """What was read about one run, apart from its book."""

    request: RunRequested | None = None
    """The latest."""
    requested: Mapping[int, float] = field(default_factory=dict)
    """Generation -> when it was first asked for."""
    planned: Mapping[str, ItemPlanned] = field(default_factory=dict)
    moves: Mapping[str, Move] = field(default_factory=dict)
    served: Mapping[str, ModelServed] = field(default_factory=dict)
    progress: Mapping[str, Progress] = field(default_factory=dict)
    """By item; the run's own under the empty name."""
    closings: Mapping[str | None, RunClosed] = field(default_factory=dict)
    """By outcome: the latest."""

    @property
    def created(self) -> float:
        """Seconds since the epoch; 0 before a request was read."""
        return min(self.requested.values(), default=0.0)


NO_RUN = Run()


def apply(run: Run, message: Message, at: float) -> Run:
    """The run with one more message taken into account, published at `at`."""
    match message:
        case RunRequested():
            newer = run.request is None or order(message) > order(run.request)
            first = min(at, run.requested.get(message.generation, at))
            return replace(
                run,
                request=message if newer else run.request,
                requested={**run.requested, message.generation: first},
            )
        case ItemPlanned():
            return _later(run, "planned", message.item, message)
        case OnBelt():
            rank = _RANK[type(message)]
            before = run.moves.get(message.item)
            new = (*order(message), rank)
            old = (before.generation, before.attempt, before.rank) if before else (0, 0, 0)
            if new < old or (new == old and before and before.since <= at):
                return run
            return replace(run, moves={**run.moves, message.item: Move(*new, since=at)})
        case ModelServed():
            return _later(run, "served", message.item, message)
        case Progress():
            key = message.item or ""
            last = run.progress.get(key)
            if last and (*order(last), last.at) >= (*order(message), message.at):
                return run
            return replace(run, progress={**run.progress, key: message})
        case RunClosed():
            return _later(run, "closings", message.outcome, message)
    return run


def forget(run: Run, generation: int) -> Run:
    """What remains of a run that is deleted up to a generation."""

    def left(mapping: Mapping[Any, Any]) -> Mapping[Any, Any]:
        return {key: each for key, each in mapping.items() if each.generation > generation}

    return Run(
        request=run.request if run.request and run.request.generation > generation else None,
        requested={number: at for number, at in run.requested.items() if number > generation},
        planned=left(run.planned),
        moves=left(run.moves),
        served=left(run.served),
        progress=left(run.progress),
        closings=left(run.closings),
    )


def _later(run: Run, name: str, key: Any, message: Message) -> Run:
    """Of two messages about the same the later one counts."""
    known: Mapping[Any, Message] = getattr(run, name)
    if key in known and order(known[key]) >= order(message):
        return run
    changes: dict[str, Any] = {name: {**known, key: message}}
    return replace(run, **changes)
