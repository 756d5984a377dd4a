"""What users see of runs: a fold over all topics, rebuilt by replay when a service starts on an empty disk.

The bus promises order within a topic for the messages of one run, not between topics. So where a variant is comes from
counting: every message that a station took was answered by exactly one, its output or a failure, hence a variant is at
the station that took more than it answered. That also holds for a message that an operator publishes again after a
failure: the variant is then on its way once more, and its run goes on until a report says what it came to. Does not
publish and decides nothing."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel

from understudy.belt.bus import Bus
from understudy.belt.contracts import (
    Artifact,
    Message,
    ModelServed,
    ModelTrained,
    Progress,
    ReportPublished,
    RunFailed,
    RunRequested,
    Station,
    TrainingRequested,
    VariantFailed,
    VariantScored,
    decode,
)
from understudy.belt.topics import TABLE
from understudy.errors import Invalid
from understudy.recipe import Recipe

Stage = Literal["waiting", "training", "serving", "evaluating", "scored", "failed"]
AT: dict[Stage, Station] = {
    "waiting": "datagen",
    "training": "trainer",
    "serving": "inference",
    "evaluating": "evaluator",
}
"""Stage of a variant on the belt -> the station that has it, in the order of the belt."""
_MOVES: dict[type[Message], tuple[Station, Station | None]] = {
    TrainingRequested: ("datagen", "trainer"),
    ModelTrained: ("trainer", "inference"),
    ModelServed: ("inference", "evaluator"),
    VariantScored: ("evaluator", None),
}
"""A variant's message -> the station it leaves, the one it goes to."""


class VariantState(BaseModel):
    """Where one variant is on the belt."""

    stage: Stage = "waiting"
    progress: Progress | None = None
    """The latest word of the station that has it."""
    model: str | None = None
    """Name on the endpoint, once served."""
    reason: str | None = None
    """Why it failed."""


class RunState(BaseModel):
    """What is known about one run."""

    id: str
    name: str
    status: Literal["queued", "running", "finished", "failed"] = "queued"
    created_at: int
    recipe: Recipe
    progress: Progress | None = None
    """The latest word about the run as a whole (making datasets, the report)."""
    variants: dict[str, VariantState]
    report: Artifact | None = None
    reason: str | None = None
    """Why the run failed."""

    @classmethod
    def queued(cls, run: str, recipe: Recipe, timestamp: float) -> RunState:
        """A run that was just asked for."""
        variants = {name: VariantState() for name in recipe.all_variants()}
        return cls(id=run, name=recipe.name, created_at=int(timestamp), recipe=recipe, variants=variants)


@dataclass
class _Variant:
    """What was read about one variant."""

    taken: Counter[Station] = field(default_factory=Counter)
    """Messages for a station, less its answers. Less than nothing after an operator published one that it did not make."""
    scored: bool = False
    reason: str | None = None
    """Of its latest failure."""

    def stage(self) -> Stage:
        """A score is never lost again; a failure holds until the variant is on its way once more."""
        if self.scored:
            return "scored"
        here = [stage for stage, station in AT.items() if self.taken[station] > 0]
        return here[-1] if here else "failed" if self.reason is not None else "waiting"


@dataclass
class _Run:
    """The state of a run, and what was read about it."""

    state: RunState
    variants: dict[str, _Variant]
    requests: int = 0
    refusals: Counter[Station] = field(default_factory=Counter)
    """Requests that a station could not handle."""
    refusal: RunFailed | None = None
    """The latest of them."""
    end: ReportPublished | RunFailed | None = None
    """The evaluator's latest word on what the run came to."""
    others: bool = False
    """Whether anything but requests was read."""

    def status(self) -> Literal["queued", "running", "finished", "failed"]:
        """Over is what has an end, and nothing that failed before it may still come through."""
        if self.end and not self._tried_again() and self._known(self.end):
            return "finished" if isinstance(self.end, ReportPublished) else "failed"
        if self.end is None and any(count >= self.requests for count in self.refusals.values()):
            return "failed"  # whatever the other stations still do
        return "running" if self.others else "queued"

    def _tried_again(self) -> bool:
        """Whether a variant that failed is on the belt once more."""
        return any(variant.reason is not None and variant.stage() in AT for variant in self.variants.values())

    def _known(self, end: ReportPublished | RunFailed) -> bool:
        """Whether `end` knows what every variant came to. A dead letter's names no variant, and is the last word."""
        failed = {name: v.reason for name, v in self.variants.items() if not v.scored and v.reason is not None}
        return end.failed == failed or (isinstance(end, RunFailed) and not end.failed)


class Ledger:
    """Follows the bus in one thread, answers from any."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lock = threading.Lock()
        self._runs: dict[str, _Run] = {}
        self._early: dict[str, list[Message]] = {}
        """Messages of runs whose request was not read yet (another partition)."""
        self._served: dict[str, ModelServed] = {}
        self.caught_up = False
        """Whether everything that was on the bus at the start has been read."""

    def follow(self, stop: threading.Event) -> None:
        """Read the bus until `stop`; run this in a thread."""
        for record in self._bus.replay([topic.name for topic in TABLE if topic.name != "dead-letters"], follow=True):
            if stop.is_set():
                return
            if record is None:
                self.caught_up = True
                continue
            self._read(record.value, record.timestamp)

    def load(self) -> Ledger:
        """Read what is there now and return; for a look without a service."""
        for record in self._bus.replay([topic.name for topic in TABLE if topic.name != "dead-letters"]):
            if record:
                self._read(record.value, record.timestamp)
        self.caught_up = True
        return self

    def run(self, run: str) -> RunState | None:
        """A snapshot of one run."""
        with self._lock:
            found = self._runs.get(run)
            return found.state.model_copy(deep=True) if found else None

    def runs(self) -> list[RunState]:
        """Snapshots of all runs, newest first."""
        with self._lock:
            states = sorted((run.state for run in self._runs.values()), key=lambda state: -state.created_at)
            return [state.model_copy(deep=True) for state in states]

    def served(self) -> list[ModelServed]:
        """Every model that passed the gate, one message per model name, oldest first."""
        with self._lock:
            return list(self._served.values())

    def _read(self, value: bytes, timestamp: float) -> None:
        try:
            message = decode(value)
        except Invalid:
            return  # of a newer version; its station will say so
        with self._lock:
            if isinstance(message, ModelServed):
                self._served.setdefault(message.model, message)
            if isinstance(message, RunRequested) and message.run not in self._runs:
                state = RunState.queued(message.run, message.recipe, timestamp)
                run = self._runs[message.run] = _Run(state, {name: _Variant() for name in state.variants})
                for early in self._early.pop(message.run, []):
                    _fold(run, early)
            if message.run in self._runs:
                _fold(self._runs[message.run], message)
            else:
                self._early.setdefault(message.run, []).append(message)


def _fold(run: _Run, message: Message) -> None:
    """Apply one message to its run."""
    variant = run.variants.get(getattr(message, "variant", None) or "")
    match message:
        case RunRequested():
            run.requests += 1
            for each in run.variants.values():
                each.taken["datagen"] += 1
        case RunFailed(station="evaluator") | ReportPublished():
            run.end, run.state.progress = message, None
        case RunFailed():
            run.refusals[message.station] += 1
            run.refusal = message
            for each in run.variants.values() if message.station == "datagen" else ():
                each.taken["datagen"] -= 1
        case Progress(variant=None):
            run.state.progress = message
        case Progress():
            if variant:
                run.state.variants[message.variant or ""].progress = message
        case VariantFailed():
            if variant:
                variant.taken[message.station] -= 1
                variant.reason = message.reason
        case TrainingRequested() | ModelTrained() | ModelServed() | VariantScored():
            if variant:
                left, entered = _MOVES[type(message)]
                variant.taken[left] -= 1
                if entered:
                    variant.taken[entered] += 1
                variant.scored |= isinstance(message, VariantScored)
                if isinstance(message, ModelServed):
                    run.state.variants[message.variant].model = message.model
    run.others |= not isinstance(message, RunRequested)
    _show(run)


def _show(run: _Run) -> None:
    """Bring the state in line with what was read."""
    state = run.state
    for name, variant in run.variants.items():
        shown, stage = state.variants[name], variant.stage()
        if shown.stage != stage:
            shown.stage, shown.progress = stage, None
        shown.reason = variant.reason if stage == "failed" else None
    state.status, last = run.status(), run.end or run.refusal
    if isinstance(last, ReportPublished):
        state.report = last.report
    state.reason = last.reason if isinstance(last, RunFailed) and state.status == "failed" else None
