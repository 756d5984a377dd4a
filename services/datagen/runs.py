"""What the door of runs does: takes up, cancels, deletes and looks at runs.

    desk = Desk(kernel, pools, servable)
    state = desk.begin(document, fresh="")

A recipe is looked at before it is accepted, so that what is wrong with it is heard at once. What was asked for is on the
bus, and in what everybody here is shown, when a method returns. All methods block; several replicas may do the same at
the same time; `owner` is who asks. Knows no HTTP (`api.py`) and remembers nothing: the locks only keep what one process begins and deletes
under the same id apart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from services.datagen.pools import Pools
from services.datagen.servable import Servable
from services.datagen.tasks import wanted
from understudy import bases, plan, recipe
from understudy.belt import history, requests
from understudy.belt.folds.reader import shown
from understudy.belt.folds.views import OVER, RunState, RunSummary
from understudy.errors import NotFound, Transient
from understudy.hints import meant
from understudy.service.host import Kernel
from understudy.service.web import no_such_place
from understudy.store import keys

MOST_KNOWN = 100
"""Runs, the newest, among which the one that was meant is looked for."""
LOCKS = 64
"""Each for many runs: there are always more runs than locks."""


@dataclass(frozen=True)
class Desk:
    """Runs, as users ask for them."""

    kernel: Kernel
    pools: Pools
    servable: Servable
    window: int = plan.WINDOW
    _locks: tuple[threading.Lock, ...] = field(default_factory=lambda: tuple(threading.Lock() for _ in range(LOCKS)))
    """A run's own, or one that it shares with others: what is begun must not lose its plan to a deletion under way."""

    def begin(self, document: object, fresh: str = "", owner: str = "") -> RunState:
        """The run that a recipe asks for: a new one, one that is there, or one that failed or was cancelled and goes on.

        Raises `Invalid` when the recipe, a base or a source is wrong.
        """
        self._caught_up()  # else a run of earlier would be put on the bus once more
        parsed = recipe.parse(document, "the recipe")
        run, runs, store = parsed.run_id(fresh), self.kernel.runs, self.kernel.store
        with self._lock(run):
            state = runs.get(run)
            if state and (not self._ends(state) or _complete(state)):
                return state
            generation = 1 + (state.generation if state else runs.deleted(run))
            if state is None:
                self.servable.check(parsed)
            before = store.find(keys.plan(run))
            planned = self.kernel.plans.get(before) if before else plan.make(parsed, self._planned, self.window)
            if state is None:
                for each in wanted(planned):
                    self.pools.check(each)
            requests.begin(self.kernel.bus, store, run, planned, generation, owner)
            return self._once(run, lambda state: state.generation >= generation)

    def cancel(self, run: str, item: str | None = None, owner: str = "") -> RunState:
        """Wish that a run, or one of its items, ends; nothing happens to a run that is over. Raises `NotFound`."""
        self._caught_up()  # else the wish might be about an earlier generation
        state = self._of(run, item)
        if state.status in OVER:
            return state
        requests.cancel(self.kernel.bus, run, state.generation, item, owner)
        control = self.kernel.control
        return self._once(run, lambda _: control.book(run).cancels(item or "", state.generation))

    def delete(self, run: str, owner: str = "") -> int:
        """Forget a run, also one that is not over; returns how many bytes of the store that freed. Raises `NotFound`.

        One that was deleted before has its store looked through again: perhaps that was away, or a station put something since.
        """
        self._caught_up()
        runs, store = self.kernel.runs, self.kernel.store
        with self._lock(run):
            if runs.get(run) is None and runs.deleted(run):
                return store.delete_all(keys.run(run))
            state = self.get(run)
            freed = requests.delete(self.kernel.bus, store, run, state.generation, owner)
            shown(lambda: runs.deleted(run) >= state.generation)
            return freed

    def get(self, run: str) -> RunState:
        """One run; raises `NotFound`."""
        if state := self.kernel.runs.get(run):
            return state
        self._caught_up()
        if self.kernel.runs.deleted(run):
            raise NotFound(f"Run `{run}` was deleted", "What began it begins it anew.")
        newest, _ = self.kernel.runs.page(None, MOST_KNOWN) or ([], False)
        near = meant(run, [known.id for known in newest])
        raise NotFound(f"There is no run `{run}`{near}", "GET /v1/runs lists those that exist.")

    def page(self, after: str | None, limit: int, newest_first: bool) -> tuple[list[RunSummary], bool]:
        """At most `limit` runs behind the one called `after`, and whether there are more; raises `NotFound`."""
        found = self.kernel.runs.page(after, limit, newest_first)
        if found is None:
            self._caught_up()
            raise no_such_place(str(after))
        return found

    def logs(self, run: str, item: str | None = None) -> str:
        """What happened to a run, or to one of its items, a line for each event. Raises `NotFound`."""
        self._of(run, item)
        return "\n".join(history.told(self.kernel.bus, self.kernel.store, run, item)) + "\n"

    def _lock(self, run: str) -> threading.Lock:
        return self._locks[hash(run) % LOCKS]

    def _ends(self, state: RunState) -> bool:
        """Whether nothing more will come of this generation, though what says so may still be on its way."""
        return state.status in OVER or self.kernel.control.book(state.id).cancelled >= state.generation

    def _of(self, run: str, item: str | None) -> RunState:
        """A run that has that item."""
        state = self.get(run)
        if item is not None:
            state.check_item(item)
        return state

    def _planned(self, base: str) -> plan.PlannedBase:
        return bases.planned(base, self.servable.models)

    def _caught_up(self) -> None:
        if not self.kernel.reader.caught_up.is_set():
            raise Transient("This service is still reading the log", "Try again in a moment.")

    def _once(self, run: str, shows: Callable[[RunState], bool]) -> RunState:
        """The state of a run as soon as it shows what was just published."""
        if not shown(lambda: (state := self.kernel.runs.get(run)) is not None and shows(state)):
            raise Transient(
                f"What was asked of run `{run}` is on the bus, but was not read from it in time",
                "Look at the run, or ask again: that does no harm.",
            )
        return self.get(run)


def _complete(state: RunState) -> bool:
    return all(item.stage in ("scored", "served") for item in state.items.values())
