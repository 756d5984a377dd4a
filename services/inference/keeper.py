"""Two threads beside the fleet: they have engines warm before the first item needs one, and do what must not be done on the
event loop; what waits for engines has a thread of its own, so that one that hangs holds up nobody's models.

It looks at the runs that are open and starts the engines of their bases, so that these come up while datagen and trainer
work, as long as there are places for them; and it tells the fleet which bases are needed, and which have items that are scored.
A base that cannot be used is only logged: its items will say so when they come. Decides nothing about models (`fleet.py` does).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from services.inference.fleet import Fleet
from services.inference.places import NoPlace
from understudy.belt.bus import Record
from understudy.belt.contracts import Message, RunDeleted, RunRequested
from understudy.belt.folds.run import AT
from understudy.belt.folds.runs import Runs
from understudy.belt.folds.views import RunState
from understudy.errors import Transient, UnderstudyError
from understudy.interrupt import Interrupted, interruptible
from understudy.store.plans import Plans

log = logging.getLogger(__name__)

PAUSE = 2.0
"""Seconds between two looks when nothing wakes it."""


class Keeper:
    """`keeper.start()`; ends with `keeper.close()`. As a fold, it hears when a run comes or goes."""

    topics = ("run-requested", "run-control")

    def __init__(self, fleet: Fleet, runs: Runs, plans: Plans, caught_up: Callable[[], bool]) -> None:
        self._fleet, self._runs, self._plans, self._caught_up = fleet, runs, plans, caught_up
        self._warmed: set[tuple[str, int]] = set()
        """Runs, with generation, that need no more warming."""
        self._looked = -PAUSE
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._keep, name="keeper", daemon=True),
            threading.Thread(target=self._tidy, name="tidier", daemon=True),
        ]

    def read(self, message: Message, record: Record) -> None:
        if isinstance(message, RunRequested | RunDeleted) and self._caught_up():
            self._looked = -PAUSE
            self._fleet.wake.set()

    def start(self) -> None:
        """Begin; returns at once."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End, within a second."""
        self._stop.set()
        self._fleet.wake.set()
        for thread in self._threads:
            if thread.ident:
                thread.join()

    def look(self) -> None:
        """Tell the fleet what open runs need, and start the engines that they will, of the oldest run first."""
        runs = sorted(self._runs.open(), key=lambda run: (run.created_at, run.id))
        scoring = [item for run in runs for item in run.items.values() if item.stage == "evaluating"]
        scored = {item.base for item in scoring if item.progress}
        self._fleet.note(set().union(*map(_needed, runs)), scored, {item.base for item in scoring} - scored)
        self._fleet.let_go()
        self._warmed &= {(run.id, run.generation) for run in runs}
        for run in runs:
            if (run.id, run.generation) not in self._warmed and self._warm_for(run):
                self._warmed.add((run.id, run.generation))

    def _warm_for(self, run: RunState) -> bool:
        """Whether the run needs no more warming."""
        needed = _needed(run)
        try:
            plan = self._plans.get(run.plan)
        except UnderstudyError as error:
            log.warning("run %s: %s", run.id, error)
            return not isinstance(error, Transient)
        for number, base in enumerate(plan.bases):
            if base.name in needed:
                try:
                    self._fleet.ensure(*self._fleet.of_plan(plan, number), warm=True)
                except NoPlace:
                    return False
                except UnderstudyError as error:
                    log.warning("run %s, base `%s`: %s", run.id, base.name, error)
        return True

    def _keep(self) -> None:
        with interruptible(self._stop):
            while not self._stop.is_set():
                self._fleet.wake.wait(PAUSE)
                self._fleet.wake.clear()
                try:
                    self._fleet.settle()
                    if self._caught_up() and time.monotonic() - self._looked >= PAUSE:
                        self._looked = time.monotonic()
                        self.look()
                except Interrupted:
                    return
                except Exception:
                    log.exception("the keeper goes on")

    def _tidy(self) -> None:
        with interruptible(self._stop):
            while not self._stop.wait(PAUSE):
                try:
                    self._fleet.tidy()
                except Interrupted:
                    return
                except Exception:
                    log.exception("the keeper goes on")


def _needed(run: RunState) -> set[str]:
    """Names of the bases that have items which are not over."""
    return {item.base for item in run.items.values() if item.stage in AT}
