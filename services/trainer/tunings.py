"""The list of OpenAI's fine-tuning jobs, one for each training that a run asked for: found by id, newest first, with what
their plans say of them.

A fold for the ids, which tell nothing of run and item; everything else is read from `folds/runs.py` when asked for, so a
page costs what is on it. Knows no HTTP (`api.py`), and not the folder that a training works in (`job.py`).
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from understudy.belt.bus import Record
from understudy.belt.contracts import ItemPlanned, Message
from understudy.belt.folds.runs import Runs
from understudy.belt.folds.views import ItemState, RunState
from understudy.errors import Fatal, Transient, UnderstudyError
from understudy.plan import Plan
from understudy.service.web import no_such_place
from understudy.store.plans import Plans

RUNS_AT_ONCE = 20
AGAIN_SECONDS = 30.0
"""After which a plan that could not be read, or a store that did not answer, is tried again."""
_STORE = ""
"""Stands for all plans, where single ones go by their digests."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """One item that is trained, as it stands."""

    run: RunState
    item: str

    @property
    def id(self) -> str:
        """As the API has it."""
        return job_id(self.run.id, self.item)

    @property
    def state(self) -> ItemState:
        """Where it is."""
        return self.run.items[self.item]


@dataclass(frozen=True)
class Settings:
    """What the plan says of a training, as far as the API shows it."""

    batch_size: int
    epochs: int
    """Begun ones count."""
    seed: int
    source: str | None
    """Of the dataset it begins with."""


class Tunings:
    """Every training. `runs` must be fed by the same reader."""

    topics = ("item-planned",)

    def __init__(self, runs: Runs, plans: Plans) -> None:
        self._runs, self._plans = runs, plans
        self._ids: dict[str, tuple[str, str]] = {}
        """Id -> run and item, also of runs that are deleted: those are found nowhere else."""
        self._settings: dict[str, dict[str, Settings]] = {}
        """Digest of a plan -> item -> settings."""
        self._not_before: defaultdict[str, float] = defaultdict(float)

    def read(self, message: Message, record: Record) -> None:
        if isinstance(message, ItemPlanned) and message.what:
            self._ids[job_id(message.run, message.item)] = message.run, message.item

    def get(self, job: str) -> Training | None:
        """The training with this id."""
        run, item = self._ids.get(job, ("", ""))
        state = self._runs.get(run)
        return Training(state, item) if state and item in state.items else None

    def newest_first(self, after: str | None = None) -> Iterator[Training]:
        """The trainings behind the one with this id, those of one run in the order of its plan; raises `NotFound`."""
        run = None
        if after is not None:
            last = self.get(after)
            if last is None:
                raise no_such_place(after)
            run = last.run.id
            names = _trained(last.run)
            yield from (Training(last.run, name) for name in names[names.index(last.item) + 1 :])
        more = True
        while more:
            summaries, more = self._runs.page(run, RUNS_AT_ONCE) or ([], False)
            for summary in summaries:
                run = summary.id
                if state := self._runs.get(run):
                    yield from (Training(state, name) for name in _trained(state))

    def settings(self, training: Training) -> Settings | None:
        """What its plan says; None when that cannot be read now. A plan is read once."""
        plan = training.run.plan
        wait = max(self._not_before[plan.sha256], self._not_before[_STORE])
        if plan.sha256 not in self._settings and time.monotonic() >= wait:
            try:
                self._settings[plan.sha256] = _settings(self._plans.get(plan))
            except (UnderstudyError, OSError) as error:
                log.warning("the plan of %s: %s", training.run.id, error)
                whose = _STORE if isinstance(error, Transient | Fatal) else plan.sha256
                self._not_before[whose] = time.monotonic() + AGAIN_SECONDS
        return self._settings.get(plan.sha256, {}).get(training.item)


def job_id(run: str, item: str) -> str:
    """The id of a training."""
    return f"ftjob-{hashlib.sha256(f'{run}/{item}'.encode()).hexdigest()[:24]}"


def _trained(run: RunState) -> list[str]:
    return [name for name, item in run.items.items() if item.what]


def _settings(plan: Plan) -> dict[str, Settings]:
    found = {}
    for item in plan.items:
        if item.training:
            first = next((name for stage in item.stages for name in stage), "")
            found[item.name] = Settings(
                batch_size=item.training.batch_size,
                epochs=math.ceil(item.training.epochs),
                seed=item.seed,
                source=plan.datasets[first].source if first in plan.datasets else None,
            )
    return found
