"""What users see of runs: a fold over all topics, rebuilt by replay when a service starts on an empty disk.

Order between topics is not promised by the bus, so the fold depends only on what each message says: a later stage
never goes back to an earlier one. Does not publish and decides nothing."""

from __future__ import annotations

import threading
from typing import Literal

from pydantic import BaseModel

from understudy.bus import Bus
from understudy.contracts import (
    Artifact,
    Message,
    ModelServed,
    ModelTrained,
    Progress,
    ReportPublished,
    RunFailed,
    RunRequested,
    TrainingRequested,
    VariantFailed,
    VariantScored,
    decode,
)
from understudy.errors import Invalid
from understudy.recipe import Recipe
from understudy.topics import TABLE

Stage = Literal["waiting", "training", "serving", "evaluating", "scored", "failed"]
STAGES: tuple[Stage, ...] = ("waiting", "training", "serving", "evaluating", "scored", "failed")
_REACHED: dict[type[Message], Stage] = {
    TrainingRequested: "training",
    ModelTrained: "serving",
    ModelServed: "evaluating",
    VariantScored: "scored",
}


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


class Ledger:
    """Follows the bus in one thread, answers from any."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lock = threading.Lock()
        self._runs: dict[str, RunState] = {}
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
            state = self._runs.get(run)
            return state.model_copy(deep=True) if state else None

    def runs(self) -> list[RunState]:
        """Snapshots of all runs, newest first."""
        with self._lock:
            return [state.model_copy(deep=True) for state in sorted(self._runs.values(), key=lambda s: -s.created_at)]

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
            if isinstance(message, RunRequested):
                if message.run not in self._runs:
                    self._runs[message.run] = RunState.queued(message.run, message.recipe, timestamp)
                    for early in self._early.pop(message.run, []):
                        _fold(self._runs[message.run], early)
            elif message.run in self._runs:
                _fold(self._runs[message.run], message)
            else:
                self._early.setdefault(message.run, []).append(message)


def _fold(run: RunState, message: Message) -> None:
    """Apply one message to the state of its run; applying it twice changes nothing more."""
    if run.status == "queued":
        run.status = "running"
    match message:
        case ReportPublished():
            run.status, run.report = "finished", message.report
        case RunFailed():
            if run.status != "finished":
                run.status, run.reason = "failed", message.reason
        case Progress(variant=None):
            run.progress = message
        case Progress():
            if variant := run.variants.get(message.variant or ""):
                variant.progress = message
        case VariantFailed():
            if (variant := run.variants.get(message.variant)) and variant.stage != "scored":
                variant.stage, variant.reason = "failed", message.reason
        case TrainingRequested() | ModelTrained() | ModelServed() | VariantScored():
            if variant := run.variants.get(message.variant):
                stage = _REACHED[type(message)]
                if STAGES.index(stage) > STAGES.index(variant.stage):
                    variant.stage, variant.progress = stage, None
                if isinstance(message, ModelServed):
                    variant.model = message.model
