"""How a run comes onto the belt, is cancelled and is forgotten: what the doors publish, in one place.

Whoever calls has checked what was asked for. Safe to repeat: folds drop doubles, stations find what is made. Knows no HTTP.
"""

from __future__ import annotations

from understudy.belt.bus import Bus
from understudy.belt.contracts import CancelRequested, ItemPlanned, RunDeleted, RunRequested
from understudy.plan import Plan
from understudy.store import keys
from understudy.store.artifacts import ArtifactStore
from understudy.store.plans import Plans, put_plan

NAMED = 8
"""Bases that a request names, for lists."""


def begin(bus: Bus, store: ArtifactStore, run: str, plan: Plan, generation: int = 1, owner: str = "") -> RunRequested:
    """Put a run onto the belt, or take it up again as the next generation: then with the plan it began with."""
    artifact = put_plan(store, run, plan)
    plan = Plans(store).get(artifact)
    items = [
        ItemPlanned(
            run=run,
            generation=generation,
            item=item.name,
            index=index,
            base=plan.base_of(item).name,
            what=item.what,
            ends_at=item.ends_at,
        )
        for index, item in enumerate(plan.items)
    ]
    request = RunRequested(
        run=run,
        generation=generation,
        plan=artifact,
        name=plan.name,
        bases=tuple(base.name for base in plan.bases[:NAMED]),
        items=len(items),
        owner=owner,
    )
    bus.publish(*items, request)  # the request last: without it nobody sees the items
    return request


def cancel(bus: Bus, run: str, generation: int, item: str | None = None, owner: str = "") -> None:
    """Wish that a run, or one item of it, ends: what is of this generation or an earlier one."""
    bus.publish(CancelRequested(run=run, generation=generation, item=item, owner=owner))


def delete(bus: Bus, store: ArtifactStore, run: str, generation: int, owner: str = "") -> int:
    """Forget a run up to this generation, first on the belt, then in the store; returns the bytes freed."""
    bus.publish(RunDeleted(run=run, generation=generation, owner=owner))
    return store.delete_all(keys.run(run))
