"""What datagen does with a message: makes the datasets of a run, then asks for every variant.

Does not read (`pools.py`) or make (`build.py`) a dataset itself.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial

from services.datagen.build import Builder
from services.datagen.pools import Pool, Pools, wanted
from understudy.belt.contracts import Artifact, Message, Progress, RunRequested, TrainingRequested
from understudy.belt.loop import Handlers
from understudy.errors import disk_full
from understudy.store.artifacts import ArtifactStore


@dataclass(frozen=True)
class Datagen:
    """The station at the head of the belt."""

    store: ArtifactStore
    pools: Pools
    builder: Builder

    def make(self, request: RunRequested) -> Iterator[Message]:
        """Make what is missing of the run's datasets; yields Progress, and TrainingRequested per variant at the end.

        A dataset that an earlier delivery finished is not made again.
        """
        try:
            datasets = yield from self._datasets(request)
        except OSError as error:
            raise disk_full(error, self.builder.work) or error from error
        for variant in request.recipe.all_variants():
            yield TrainingRequested(run=request.run, variant=variant, recipe=request.recipe, datasets=datasets)

    def _datasets(self, request: RunRequested) -> Generator[Message, None, dict[str, Artifact]]:
        recipe, say = request.recipe, partial(Progress, run=request.run, station="datagen")
        keys = {each.name: f"runs/{request.run}/datasets/{each.name}" for each in wanted(recipe)}
        made = {name: artifact for name, key in keys.items() if (artifact := self.store.find(key))}
        if len(made) < len(keys):
            pools: list[Pool] = []
            for each in wanted(recipe):
                pools.append((yield from self.pools.read(each, recipe.seed, say)))
            held_out = frozenset(candidate.key for pool in pools for candidate in pool.test)
            for pool in pools:
                if (name := pool.wanted.name) not in made:
                    folder = yield from self.builder.build(request.run, pool, held_out, recipe.seed, say)
                    made[name] = self.store.put(keys[name], folder)
                    self.builder.forget(request.run, name)
        return {name: made[name] for name in keys}

    def handlers(self) -> Handlers:
        """The service's table of contents."""
        return {RunRequested: self.make}
