"""All engines: which model is on which, started when somebody wants one of its models.

The one object that gateway, handlers and API share. What shall be served is read from the ledger, so that a restart on
an empty disk serves the same models. Does not talk HTTP.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.inference.engine import Engine
from services.inference.settings import InferenceSettings
from understudy.bases import Base, resolve
from understudy.belt.contracts import Artifact, ModelServed
from understudy.belt.folds.runs import Ledger
from understudy.errors import Invalid
from understudy.service.web import NotFound
from understudy.store.artifacts import ArtifactStore


@dataclass(frozen=True)
class Model:
    """A model of the endpoint."""

    name: str
    created: int
    """Seconds since the epoch: of its run, or of the bundled base."""
    parent: str | None
    """The base of an adapter; None for a base."""


@dataclass(frozen=True)
class EngineState:
    """How an engine is doing."""

    base: str
    state: str
    """starting | ready | failing."""
    seconds: float
    """Since its present start."""
    models: int
    reason: str | None


class Fleet:
    """Safe to call from any thread; nothing here waits for an engine."""

    def __init__(
        self,
        settings: InferenceSettings,
        ledger: Ledger,
        store: ArtifactStore,
        engine: Callable[..., Engine] = Engine,
    ) -> None:
        self._settings, self._ledger, self._store, self._engine = settings, ledger, store, engine
        self._lock = threading.Lock()
        self._engines: dict[str, Engine] = {}
        self._of_model: dict[str, Engine] = {}
        """Models whose engine is known: bases, and adapters that passed the gate."""
        self._closed = False

    def ensure(self, base: str, rank: int) -> Engine:
        """The engine of `base` (as recipes name it), started if it was not, able to load adapters of `rank`."""
        resolved = resolve(base, self._settings.models)
        with self._lock:
            if self._closed:
                raise NotFound("The service is ending")
            engine = self._engines.get(resolved.name)
            if engine is None:
                engine = self._engine(resolved, self._settings, lambda: self._desired(resolved), self._store.fetch)
                self._engines[resolved.name] = self._of_model[resolved.name] = engine
                engine.require(max([rank, *(m.recipe.training.lora.r for m in self._adapters_of(resolved))]))
                engine.start()
        if engine.base != resolved:
            raise Invalid(
                f"Base `{base}` has the same name as another base that is already served, {engine.base.path}",
                "Rename one of the folders, or pin the same revision.",
            )
        engine.require(rank)
        return engine

    def route(self, model: str) -> str | None:
        """URL of the engine that serves `model` now, else None. On the path of every request: two look-ups."""
        engine = self._of_model.get(model)
        return engine.url if engine is not None and model in engine.serving else None

    def admit(self, model: str, engine: Engine) -> None:
        """Let requests for `model` through to `engine`."""
        self._of_model[model] = engine

    def want(self, model: str) -> str | None:
        """Bring `model` up if it is known; the engine's failure if it does not come up. Raises `NotFound`."""
        if not self._ledger.caught_up and model not in self._of_model:
            return None
        served = next((message for message in self._ledger.served() if message.model == model), None)
        if served:
            engine = self.ensure(served.recipe.base, served.recipe.training.lora.r)
        elif model in self._of_model:
            engine = self._of_model[model]
        elif model in self._bundled():
            engine = self.ensure(model, 1)
        else:
            known = ", ".join(card.name for card in self.models()) or "none yet"
            raise NotFound(f"The model `{model}` does not exist. Models here: {known}")
        self.admit(model, engine)
        if engine.url and model not in engine.serving:
            engine.wake()
        return engine.failure

    def models(self) -> list[Model]:
        """Bundled and served bases, then adapters, oldest first."""
        created = {run.id: run.created_at for run in self._ledger.runs()}
        cards = {name: Model(name, int(path.stat().st_mtime), None) for name, path in self._bundled().items()}
        for message in self._ledger.served():
            parent = resolve(message.recipe.base, self._settings.models).name if message.adapter else None
            cards.setdefault(message.model, Model(message.model, created.get(message.run, 0), parent))
        return sorted(cards.values(), key=lambda card: (card.parent is not None, card.created, card.name))

    def states(self) -> list[EngineState]:
        """How every engine is doing."""
        with self._lock:
            engines = list(self._engines.values())
        return [
            EngineState(
                base=engine.base.name,
                state="ready" if engine.url else "failing" if engine.failure else "starting",
                seconds=round(time.monotonic() - engine.since, 1),
                models=len(engine.serving),
                reason=engine.failure,
            )
            for engine in engines
        ]

    def close(self) -> None:
        """End all engines."""
        with self._lock:
            self._closed = True
            engines = list(self._engines.values())
        for wait in (False, True):  # ask all before waiting for the first
            for engine in engines:
                engine.close(wait)

    def _bundled(self) -> dict[str, Path]:
        return {path.parent.name: path for path in sorted(self._settings.models.glob("*/config.json"))}

    def _adapters_of(self, base: Base) -> list[ModelServed]:
        served = [message for message in self._ledger.served() if message.adapter]
        return [message for message in served if _same(base, message.recipe.base, self._settings.models)]

    def _desired(self, base: Base) -> dict[str, Artifact]:
        return {message.model: message.adapter for message in self._adapters_of(base) if message.adapter}


def _same(base: Base, reference: str, models: Path) -> bool:
    try:
        return resolve(reference, models) == base
    except Invalid:  # a folder that is gone meanwhile
        return False
