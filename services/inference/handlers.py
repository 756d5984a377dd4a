"""What inference does with a message: warm the engine for a run, load and gate a variant.

Nothing here is stored: a redelivered message finds the adapter loaded, passes the gate again and gives the same answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from services.inference import gate
from services.inference.adapters import model_name
from services.inference.engine import Engine
from services.inference.fleet import Fleet
from understudy.belt.contracts import Message, ModelServed, ModelTrained, Progress, RunRequested
from understudy.belt.loop import Handlers
from understudy.errors import Invalid


@dataclass(frozen=True)
class Inference:
    """The handlers of inference and what they need."""

    fleet: Fleet
    tolerance: float
    """Of the gate, in nats."""

    def warm(self, request: RunRequested) -> Iterator[Message]:
        """Start the engine of the run's base; it comes up while datagen and trainer work."""
        self.fleet.ensure(request.recipe.base, request.recipe.training.lora.r)
        yield from ()

    def serve(self, trained: ModelTrained) -> Iterator[Message]:
        """Load one variant beside its base, gate it, and say under which name it answers."""
        engine = self.fleet.ensure(trained.recipe.base, trained.recipe.training.lora.r)
        yield from _wait_ready(engine, trained)
        base = engine.base.name
        if trained.adapter is None:
            self.fleet.admit(base, engine)
            yield ModelServed.following(trained, model=base, adapter=None)
            return
        name = model_name(base, trained, trained.adapter)
        yield _progress(trained, "loading")
        folder = engine.load(name, trained.adapter)
        yield _progress(trained, "checking against training")
        try:
            with engine.client() as client:
                gate.check(client, base, name, folder, tolerance=self.tolerance, max_len=engine.max_len)
        except Invalid:
            engine.drop(name)
            raise
        self.fleet.admit(name, engine)
        yield ModelServed.following(trained, model=name, adapter=trained.adapter)

    def handlers(self) -> Handlers:
        return {RunRequested: self.warm, ModelTrained: self.serve}


def _wait_ready(engine: Engine, trained: ModelTrained) -> Iterator[Progress]:
    """Until the engine answers; raises `Invalid` when it does not come up."""
    started = time.monotonic()
    while not engine.wait_ready(1.0):
        if engine.failure:
            raise Invalid(engine.failure, "Repair that, then replay the dead letter once the engine is up.")
        yield _progress(trained, "starting the engine", elapsed_seconds=round(time.monotonic() - started, 1))


def _progress(trained: ModelTrained, step: str, **figures: float) -> Progress:
    return Progress(run=trained.run, station="inference", variant=trained.variant, step=step, figures=figures)
