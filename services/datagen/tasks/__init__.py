"""The tasks of datasets, one per file; the kernel names them (`Dataset.task`), and each is found by its name.

Which datasets a run needs, and how each is made. Does not read sources (`pools.py`) or write files (`build.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module

from services.datagen.tasks import prompts
from services.datagen.tasks.task import Task
from understudy.errors import Unsupported
from understudy.plan import Plan, prompts_dataset
from understudy.recipe import TASKS, Dataset, Rows


@dataclass(frozen=True)
class Wanted:
    """A dataset to make: one of the plan's, or the prompts of a panel."""

    name: str
    source: str
    kind: str
    """Name of the task, as on the dataset's card."""
    task: Task
    rows: Rows | None = None
    """None where all rows are test rows, and nothing about them is in the recipe."""

    def counts(self) -> dict[str, int]:
        """Rows asked for per split, the split that is filled first first; empty when all are test rows."""
        return {split: getattr(self.rows, split) for split in ("test", "validation", "train")} if self.rows else {}


def wanted(plan: Plan) -> tuple[Wanted, ...]:
    """All datasets of a run; none when all its items need none."""
    return tuple(_wanted(plan))


def _wanted(plan: Plan) -> Iterator[Wanted]:
    for name, dataset in plan.datasets.items():
        yield Wanted(name, dataset.source, dataset.task, task(dataset), dataset.rows)
    for name, panel in plan.panels.items():
        if panel.prompts:
            yield Wanted(prompts_dataset(name), panel.prompts, "prompts", prompts.TASK)


def task(dataset: Dataset) -> Task:
    """The task of a dataset of the plan; raises `Unsupported` when only a newer version knows it."""
    if dataset.task not in TASKS:
        raise Unsupported(f"The task `{dataset.task}` is newer than this replica", "Upgrade it.")
    found: Task = import_module(f"{__name__}.{dataset.task}").task(dataset)
    return found
