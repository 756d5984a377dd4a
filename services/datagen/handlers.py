"""What datagen does with a message: makes the datasets of a run, then says that they are made.

Does not read (`pools.py`) or make (`build.py`) a dataset itself.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass

from services.datagen.build import Builder
from services.datagen.pools import Pools
from services.datagen.tasks import wanted
from understudy.belt.contracts import DatasetsMade, Message, Progress, RunRequested
from understudy.belt.delivery import Lane
from understudy.errors import Unsupported, disk_full
from understudy.plan import Plan
from understudy.store import keys
from understudy.store.artifacts import ArtifactStore
from understudy.store.plans import Plans, put_datasets
from understudy.terms import Artifact

HAS = frozenset(("providers",))
"""Features that this station has and not every one of its versions."""
SIDE_BY_SIDE = 4
"""Runs whose datasets are made at once: a language model is waited for most of the time."""


@dataclass(frozen=True)
class Datagen:
    """The station at the head of the belt; several threads may be in it, each with another run."""

    store: ArtifactStore
    plans: Plans
    pools: Pools
    builder: Builder

    def lane(self) -> Lane:
        return Lane("datagen", {RunRequested: self.make}, width=SIDE_BY_SIDE)

    def make(self, request: RunRequested) -> Iterator[Message]:
        """Make what is missing of the run's datasets; yields Progress, and DatasetsMade at the end.

        A dataset that an earlier delivery or generation finished is not made again.
        """
        try:
            made = yield from self._datasets(request, self.plans.get(request.plan))
            datasets = put_datasets(self.store, request.run, made)
            if self.plans.datasets(datasets) != made:  # of the run before it was deleted, stored when that was done
                self.store.delete(keys.datasets(request.run))
                datasets = put_datasets(self.store, request.run, made)
        except OSError as error:
            raise disk_full(error, self.builder.work) or error from error
        yield DatasetsMade.answering(request, plan=request.plan, datasets=datasets)

    def _datasets(self, request: RunRequested, plan: Plan) -> Generator[Message, None, dict[str, Artifact]]:
        if lacking := set(plan.needs.get("datagen", ())) - HAS:
            raise Unsupported(f"Run {request.run} needs {', '.join(sorted(lacking))}", "Upgrade this replica.")
        run, names = request.run, [each.name for each in wanted(plan)]
        made = {name: there for name in names if (there := self.store.find(keys.dataset(run, name)))}
        if len(made) < len(names):
            for dataset in plan.datasets.values():
                self.builder.models.check(dataset.generator)  # before hours of reading
            say, pools = _Telling(request), []
            for each in wanted(plan):
                pools.append((yield from self.pools.read(each, plan.seed, say)))
                say.before += pools[-1].read
            held_out = frozenset(candidate.key for pool in pools for candidate in pool.test)
            for pool in pools:
                if (name := pool.wanted.name) not in made:
                    folder = yield from self.builder.build(run, pool, held_out, plan.seed, say)
                    made[name] = self.store.put(keys.dataset(run, name), folder, linked=True)
                    self.builder.forget(run, name)
                say.before += pool.most
            self.builder.forget(run)
        return made


@dataclass
class _Telling:
    """Makes the Progress of one message.

    Its mark counts the rows read and written, those of datasets that were there already too: so it is the same in every
    delivery, and a delivery that gets further is seen to.
    """

    request: RunRequested
    before: int = 0
    """Rows of all that was done before what is done now."""
    mark: int = 0

    def __call__(
        self, step: str, done: int = 0, total: int = 0, figures: Mapping[str, float] | None = None
    ) -> Progress:
        self.mark = max(self.mark, self.before + done)
        return Progress.answering(
            self.request,
            station="datagen",
            step=step,
            done=done,
            total=total,
            figures=dict(figures or {}),
            mark=self.mark,
        )
