"""What inference does with a message: bring one base or adapter to the endpoint.

Each message waits in a worker of its own, so an engine that does not come up holds up only what needs it. An adapter is
tried under a name that nobody else knows, and gets its own when it has passed. Who waits loses nothing when an engine ends;
who is measured meanwhile is measured again, a few times and then alone: a request that ends the engine fails nobody's item.
A redelivered message passes the gate again and gives the same answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from services.inference import gate
from services.inference.client import EngineRefused
from services.inference.engine import Engine
from services.inference.fleet import Fleet
from services.inference.folder import model_name
from services.inference.places import NoPlace
from understudy.bases import Base
from understudy.belt.contracts import ItemServed, Message, ModelServed, Progress, ScoringRequested, ServingRequested
from understudy.belt.delivery import Lane
from understudy.errors import Invalid, Transient
from understudy.interrupt import check
from understudy.plan import Item, Plan
from understudy.store.plans import Plans
from understudy.terms import Artifact, Gate

WIDTH = 24
"""Messages in hand at once, as many as the topic has partitions: nearly all of them wait, and for different engines."""
SAY_AGAIN = 2.0
"""Seconds between two words about what is waited for."""
DEATHS = 5
"""Times that an engine ends while it measures the same adapter, of which all but the first while it does nothing else, after
which that counts as the adapter's doing."""
REMEDY = (
    "Repair that, and half a minute after it was given up replay the dead letter: that starts the engine anew. A base with other"
    " weights is another base: it needs a new run (`understudy run --fresh`)."
)
"""For an engine that does not come up (`fleet.AGAIN`)."""


@dataclass(frozen=True)
class Inference:
    """The lane `inference`."""

    fleet: Fleet
    plans: Plans
    tolerance: float
    """Of the gate."""

    def lane(self) -> Lane:
        return Lane("inference", {ServingRequested: self.serve}, width=WIDTH)

    def serve(self, request: ServingRequested) -> Iterator[Message]:
        """Have the engine up, load and gate the adapter, and say under which name the item answers."""
        plan = self.plans.get(request.plan)
        item = plan.item(request.item)
        engine = yield from self._held(request, *self.fleet.of_plan(plan, item.base))
        try:
            yield from _until(engine.wait_ready, engine, request, "starting the engine")
            base = engine.base.name
            if request.adapter is None:
                name = base
                yield from _answers(request, plan, item, name, parent=None)
            else:
                name = model_name(base, plan.name, item.name, request.adapter)
                measured = yield from self._measured(request, request.adapter, engine, name)
                yield from _answers(request, plan, item, name, parent=base, measured=measured)
            self.fleet.admit(
                name, engine
            )  # last, when nobody can close us any more: what is cancelled never gets there
        finally:
            self.fleet.give_back(engine)

    def _held(self, request: ServingRequested, base: Base, rank: int) -> Generator[Message, None, Engine]:
        """The engine of `base`, once there is a place for it; to be given back."""
        started, said = time.monotonic(), 0.0
        while True:
            try:
                return self.fleet.ensure(base, rank, hold=True)
            except NoPlace as full:
                if time.monotonic() - said >= SAY_AGAIN:
                    said = time.monotonic()
                    step = f"waiting for a place for its engine: {full.what}"
                    yield _progress(request, step, elapsed_seconds=round(said - started, 1))
            check()
            time.sleep(0.2)

    def _measured(
        self, request: ServingRequested, adapter: Artifact, engine: Engine, name: str
    ) -> Generator[Message, None, Gate]:
        """What the gate measured of the adapter once it had its turn; afterwards it answers under its name.

        The turn is kept until an engine that has ended is known to have: nobody else shall be measured on what is left of it. From
        then on until this is over no request is sent to the engine: what else it was asked for is not what ends it again.
        Raises as `_gate`, and `Invalid` when the engine ends each time.
        """
        try:
            for _ in range(DEATHS):
                yield from _until(engine.wait_ready, engine, request, "starting the engine")
                yield from _until(_turn_on(engine), engine, request, "waiting for its turn on the engine")
                try:
                    yield from _until(engine.wait_ready, engine, request, "starting the engine")
                    yield _progress(request, "loading")
                    attempt = self.fleet.folder.attempt(adapter)
                    yield _progress(request, "checking against training")
                    life = engine.lives
                    try:
                        return self._gate(engine, attempt, name)
                    except Transient as error:
                        if not engine.ended(life):
                            raise
                        engine.wary.add(name)
                        last = error
                finally:
                    engine.turn.release()
        finally:
            engine.wary.discard(name)
        raise Invalid(
            f"The engine of `{engine.base.name}` ended {DEATHS} times while it measured this adapter: {last}",
            "The engine's log says why. Train the item again, or replay the dead letter if something else ended the engine.",
        )

    def _gate(self, engine: Engine, attempt: str, name: str) -> Gate:
        """What the gate measured of an adapter, which answers under its name now. Raises `Invalid` when it must not."""
        folder, base = self.fleet.folder, engine.base.name
        path = folder.path(attempt)
        with engine.client() as client:
            try:
                client.answers(attempt)
            except EngineRefused as error:
                raise client.explain(attempt, path) from error
            measured = gate.check(client, base, attempt, path, tolerance=self.tolerance, max_len=engine.max_len)
            client.unload(attempt)
            folder.settle(attempt, name)
            client.answers(name)
        return measured


def _answers(
    request: ServingRequested, plan: Plan, item: Item, model: str, parent: str | None, measured: Gate | None = None
) -> Iterator[Message]:
    """That the model is there, and what comes next."""
    yield ModelServed.answering(
        request,
        model=model,
        base=plan.base_of(item).reference,
        parent=parent,
        rank=item.training.lora.r if item.training else 1,
        adapter=request.adapter,
        gate=measured,
    )
    if item.ends_at == "served":
        yield ItemServed.answering(request, model=model)
    else:
        needs = item.needs.get("evaluator", ())
        yield ScoringRequested.following(request, model=model, adapter=request.adapter, gate=measured, needs=needs)


def _until(ready: Callable[[float], bool], engine: Engine, request: ServingRequested, step: str) -> Iterator[Progress]:
    """Until `ready`, which waits for at most so many seconds; raises `Invalid` when the engine does not come up."""
    started, said = time.monotonic(), 0.0
    while not ready(0.2):
        check()
        if engine.failure:
            raise Invalid(engine.failure, REMEDY)
        if time.monotonic() - said >= SAY_AGAIN:
            said = time.monotonic()
            doing = f"{step} again: {engine.trouble}" if engine.trouble else step
            yield _progress(request, doing, elapsed_seconds=round(said - started, 1))


def _turn_on(engine: Engine) -> Callable[[float], bool]:
    return lambda seconds: engine.turn.acquire(timeout=seconds)


def _progress(request: ServingRequested, step: str, **figures: float) -> Progress:
    return Progress.answering(request, station="inference", step=step, figures=figures)
