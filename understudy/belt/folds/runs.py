"""What users see of runs: where each item is, what it waits for, and what the run came to.

An item is where its latest request says, by (generation, attempt, place on the belt); what ended it is in the run's book
(`control.py`), and a `RunClosed` counts when it speaks of exactly the ends that are known here (`turns.outcome`). So
nothing depends on which topic was read first. Does not publish and decides nothing.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from understudy.belt import turns
from understudy.belt.bus import Record
from understudy.belt.contracts import (
    ItemFailed,
    ItemPlanned,
    ItemScored,
    ItemServed,
    Message,
    ModelServed,
    OnBelt,
    Progress,
    RunClosed,
    RunDeleted,
    RunRequested,
    ScoringRequested,
    ServingRequested,
    TrainingRequested,
)
from understudy.belt.folds.control import Control
from understudy.belt.turns import Book, order
from understudy.errors import NotFound
from understudy.hints import nearest
from understudy.terms import Artifact, Station

Stage = Literal["waiting", "training", "serving", "evaluating", "served", "scored", "failed", "cancelled"]
AT: dict[Stage, Station] = {
    "waiting": "datagen",
    "training": "trainer",
    "serving": "inference",
    "evaluating": "evaluator",
}
"""Stage of an item on the belt -> the station that has it, in the order of the belt."""
Status = Literal["queued", "running", "finished", "failed", "cancelled"]
OVER: tuple[Status, ...] = ("finished", "failed", "cancelled")
_STAGES: tuple[tuple[type[OnBelt], Stage], ...] = (
    (TrainingRequested, "training"),
    (ServingRequested, "serving"),
    (ScoringRequested, "evaluating"),
)
_RANK = {kind: rank for rank, (kind, _) in enumerate(_STAGES)}


class ItemState(BaseModel):
    """Where one item is."""

    model_config = ConfigDict(frozen=True)

    stage: Stage = "waiting"
    base: str = ""
    """Name of its base model."""
    what: str = ""
    """What it is trained on, in a few words."""
    place: int | None = None
    """How many go before it, while it waits for somebody."""
    reason: str | None = None
    """What it waits for, or why it failed."""
    progress: Progress | None = None
    """The latest word of the station that has it."""
    model: str | None = None
    """Name on the endpoint, once served."""


class RunSummary(BaseModel):
    """One run in a list."""

    model_config = ConfigDict(frozen=True)

    id: str
    object: Literal["run"] = "run"
    name: str
    status: Status
    generation: int
    created_at: int
    owner: str = ""
    bases: tuple[str, ...]
    stages: dict[Stage, int]
    """How many items are in each."""
    report: Artifact | None = None
    reason: str | None = None
    """Why the run failed."""


class RunState(RunSummary):
    """What is known about one run."""

    plan: Artifact
    progress: Progress | None = None
    """The latest word about the run as a whole (making datasets, the report)."""
    items: dict[str, ItemState]
    """In the order of the plan."""

    def check_item(self, item: str) -> None:
        """Raises `NotFound` when the run has no such item."""
        if item not in self.items:
            raise NotFound(f"Run `{self.id}` has no item `{item}`{nearest(item, self.items)}")


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


class Runs:
    """All runs; `control` must be fed by the same reader, before this one."""

    topics = (
        "run-control",
        "item-planned",
        "run-requested",
        "training-requested",
        "serving-requested",
        "scoring-requested",
        "model-served",
        "run-closed",
        "progress",
    )

    def __init__(self, control: Control) -> None:
        self._control = control
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}
        self._by_age: list[tuple[float, str]] = []
        """(created, run), oldest first."""
        self._open: set[str] = set()
        """Runs that may have something on the belt; some of them may be over meanwhile."""
        self._views: dict[str, tuple[Run, Book, _View]] = {}

    def read(self, message: Message, record: Record) -> None:
        name = message.run
        deleted = self._control.book(name).deleted
        before = self._runs.get(name, NO_RUN)
        if isinstance(message, RunDeleted):
            run = forget(before, deleted)
        elif message.generation <= deleted:
            return
        else:
            run = apply(before, message, record.timestamp)
        if run is before and record.topic != "run-control":
            return
        if run.created != before.created:
            self._place(name, before.created, run.created)
        with self._lock:
            if run == NO_RUN:
                self._runs.pop(name, None)
                self._views.pop(name, None)
                self._open.discard(name)
            else:
                self._runs[name] = run
                self._open.add(name)

    def get(self, run: str) -> RunState | None:
        """One run, with all its items."""
        view = self._view(run)
        return view.state(self._queue()) if view else None

    def page(self, after: str | None, limit: int, newest_first: bool = True) -> tuple[list[RunSummary], bool] | None:
        """At most `limit` runs behind the one called `after`, and whether there are more; None when there is no such run."""
        ages, count = self._by_age, len(self._by_age)
        if after is None:
            at = count if newest_first else -1
        else:
            run = self._runs.get(after)
            if run is None or not run.created:
                return None
            at = bisect.bisect_left(ages, (run.created, after))
        places = range(at - 1, -1, -1) if newest_first else range(at + 1, count)
        found = [view.summary for place in places[:limit] if (view := self._view(ages[place][1]))]
        return found, len(places) > limit

    def open(self) -> list[RunState]:
        """Every run that is not over."""
        queue = self._queue()
        return [view.state(queue) for view in self._open_views()]

    def deleted(self, run: str) -> int:
        """Up to which generation a run is forgotten; 0 when it never was."""
        return self._control.book(run).deleted

    def _view(self, name: str) -> _View | None:
        run, book = self._runs.get(name), self._control.book(name)
        if run is None or run.request is None:
            return None
        cached = self._views.get(name)
        if cached and cached[0] is run and cached[1] is book:
            return cached[2]
        view = _View(name, run, run.request, book)
        self._views[name] = (run, book, view)
        return view

    def _open_views(self) -> list[_View]:
        views = []
        for name in list(self._open):
            view = self._view(name)
            if view and view.summary.status not in OVER:
                views.append(view)
            elif view:
                with self._lock:  # whatever reopens it adds it again
                    if self._view(name) is view:
                        self._open.discard(name)
        return views

    def _queue(self) -> dict[Stage, list[float]]:
        """When each item that waits at a station came there, oldest first."""
        waiting: dict[Stage, list[float]] = {stage: [] for stage in AT}
        for view in self._open_views():
            for stage, since in view.waiting.values():
                waiting[stage].append(since)
        return {stage: sorted(times) for stage, times in waiting.items()}

    def _place(self, name: str, before: float, now: float) -> None:
        """Put a run where its age says; whoever pages through the list meanwhile goes on undisturbed."""
        if not before and (not self._by_age or (now, name) > self._by_age[-1]):
            self._by_age.append((now, name))
            return
        ages = [age for age in self._by_age if age != (before, name)] if before else self._by_age
        if now:
            place = bisect.bisect_left(ages, (now, name))
            ages = [*ages[:place], (now, name), *ages[place:]]
        self._by_age = ages


class _View:
    """A run as users see it, computed once for a state of run and book."""

    def __init__(self, name: str, run: Run, request: RunRequested, book: Book) -> None:
        self._run, self._request, self._book = run, request, book
        planned = sorted(run.planned.values(), key=lambda item: item.index)
        self._names = [item.item for item in planned]
        closing = self._closing()
        self.waiting: dict[str, tuple[Stage, float]] = {}
        """Item that nobody works on yet -> where it waits, since when."""
        self._items = {item.item: self._item(item, over=closing is not None) for item in planned}
        stages: dict[Stage, int] = {}
        for item in self._items.values():
            stages[item.stage] = stages.get(item.stage, 0) + 1
        status: Status = closing.status if closing else "running" if self._begun() else "queued"
        self.summary = RunSummary(
            id=name,
            name=request.name,
            status=status,
            generation=request.generation,
            created_at=int(run.created),
            owner=request.owner,
            bases=request.bases,
            stages=stages,
            report=self._report(closing),
            reason=closing.reason if closing else None,
        )

    def state(self, queue: Mapping[Stage, list[float]]) -> RunState:
        """With the place of what waits."""
        ahead = 0
        items: dict[str, ItemState] = {}
        for name in self._names:
            item = self._items[name]
            if item.stage == "waiting" and self.summary.status not in OVER:
                item = item.model_copy(update=self._before_its_turn(ahead))
                ahead += 1
            elif name in self.waiting:
                stage, since = self.waiting[name]
                place = bisect.bisect_left(queue[stage], since)
                word = "it is next" if place == 0 else f"{place} before it"
                item = item.model_copy(update={"place": place, "reason": f"waits for the {AT[stage]}: {word}"})
            items[name] = item
        own = self._run.progress.get("")
        fresh = own is not None and own.generation >= self._request.generation and self.summary.status not in OVER
        return RunState(**dict(self.summary), plan=self._request.plan, progress=own if fresh else None, items=items)

    def _before_its_turn(self, ahead: int) -> dict[str, Any]:
        if self._book.generation < self._request.generation:
            return {"reason": "waits for the datasets of the run"}
        word = "it is next" if ahead == 0 else f"{ahead} of this run before it"
        return {"place": ahead, "reason": f"waits for its turn: {word}"}

    def _closing(self) -> RunClosed | None:
        """What the run came to; None while something of it may still move."""
        book, closings, request = self._book, self._run.closings, self._request
        if any(self._tried_again(name) for name in self._names):
            return None
        end = closings.get(turns.outcome(book))
        if end and end.generation >= request.generation:
            return end
        refusal = closings.get(None)
        return refusal if refusal and order(refusal) >= order(request) else None

    def _report(self, closing: RunClosed | None) -> Artifact | None:
        """Of this closing; where it has none, and while the run goes on, the latest there is."""
        if closing and closing.report:
            return closing.report
        made = [earlier for earlier in self._run.closings.values() if earlier.report]
        return max(reversed(made), key=order).report if made else None

    def _tried_again(self, name: str) -> bool:
        """Whether an item that failed is on the belt once more."""
        end, move = self._book.end_of(name), self._run.moves.get(name)
        return isinstance(end, ItemFailed) and move is not None and (move.generation, move.attempt) > order(end)

    def _begun(self) -> bool:
        generation = self._request.generation
        own = self._run.progress.get("")
        return self._book.generation >= generation or (own is not None and own.generation >= generation)

    def _item(self, planned: ItemPlanned, over: bool) -> ItemState:
        name, generation = planned.item, self._request.generation
        end, move = self._book.end_of(name), self._run.moves.get(name)
        served = self._run.served.get(name)
        about = {"base": planned.base, "what": planned.what, "model": served.model if served else None}
        if isinstance(end, ItemScored):
            return ItemState(stage="scored", **about)
        if isinstance(end, ItemServed):
            return ItemState(stage="served", **about)
        again = self._tried_again(name)
        if isinstance(end, ItemFailed) and end.generation >= generation and not again:
            return ItemState(stage="failed", reason=end.reason, **about)
        if self._book.cancels(name, generation):
            return ItemState(stage="cancelled", **about)
        if move is None or (move.generation < generation and not again) or (over and not again):
            return ItemState(**about)
        stage = _STAGES[move.rank][1]
        progress = self._run.progress.get(name)
        at_work = progress and progress.station == AT[stage] and order(progress) >= (move.generation, move.attempt)
        if not at_work:
            self.waiting[name] = (stage, move.since)
        return ItemState(stage=stage, progress=progress if at_work else None, **about)
