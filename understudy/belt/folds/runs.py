"""All runs: found by name, listed by age, with what waits before what.

What was read about one is `run.py`, what users see of it `views.py`. Does not publish and decides nothing.
"""

from __future__ import annotations

import bisect
import threading

from understudy.belt.bus import Record
from understudy.belt.contracts import (
    Message,
    RunDeleted,
)
from understudy.belt.folds.control import Control
from understudy.belt.folds.run import AT, NO_RUN, Run, Stage, apply, forget
from understudy.belt.folds.views import OVER, RunState, RunSummary, View
from understudy.belt.turns import Book


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
        self._views: dict[str, tuple[Run, Book, View]] = {}

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

    def _view(self, name: str) -> View | None:
        run, book = self._runs.get(name), self._control.book(name)
        if run is None or run.request is None:
            return None
        cached = self._views.get(name)
        if cached and cached[0] is run and cached[1] is book:
            return cached[2]
        view = View(name, run, run.request, book)
        self._views[name] = (run, book, view)
        return view

    def _open_views(self) -> list[View]:
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
