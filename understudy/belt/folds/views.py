"""A run as users see it: where each item is, what it waits for, and what the run came to.

Computed from what was read about a run (`run.py`) and from its book (`control.py`), once for each state of the two. What ended
an item is in the book, and a `RunClosed` counts when it speaks of exactly the ends that are known here (`turns.outcome`), so
nothing depends on which topic was read first. Follows nothing and decides nothing.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from understudy.belt import turns
from understudy.belt.contracts import (
    ItemFailed,
    ItemPlanned,
    ItemScored,
    ItemServed,
    Progress,
    RunClosed,
    RunRequested,
)
from understudy.belt.folds.run import AT, STAGES, Run, Stage
from understudy.belt.turns import Book, order
from understudy.errors import NotFound
from understudy.hints import nearest
from understudy.terms import Artifact, Gate

Status = Literal["queued", "running", "finished", "failed", "cancelled"]
OVER: tuple[Status, ...] = ("finished", "failed", "cancelled")


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
    gate: Gate | None = None
    """What the gate measured of it."""


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


class View:
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
        if not isinstance(end, ItemFailed) or move is None or self._book.cancels(name, move.generation):
            return False
        return (move.generation, move.attempt) > order(end)

    def _begun(self) -> bool:
        generation = self._request.generation
        own = self._run.progress.get("")
        return self._book.generation >= generation or (own is not None and own.generation >= generation)

    def _item(self, planned: ItemPlanned, over: bool) -> ItemState:
        name, generation = planned.item, self._request.generation
        end, move = self._book.end_of(name), self._run.moves.get(name)
        served = self._run.served.get(name)
        about: dict[str, Any] = {"base": planned.base, "what": planned.what}
        if served:
            about |= {"model": served.model, "gate": served.gate}
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
        stage = STAGES[move.rank][1]
        progress = self._run.progress.get(name)
        at_work = progress and progress.station == AT[stage] and order(progress) >= (move.generation, move.attempt)
        if not at_work:
            self.waiting[name] = (stage, move.since)
        return ItemState(stage=stage, progress=progress if at_work else None, **about)
