"""All engines: which model is on which, started when somebody wants one of its models, ended when another needs the place.

The one object that gateway, handlers and API share. What is served is read from the log (`folds/served.py`), so that a
restart on an empty disk serves the same models: an adapter is put into the engines' folder (`folder.py`) when it is first
asked for, and only names that were put there are let through to an engine. An engine that comes up stays until its place is
needed (`places.py`); one that does not is given up, and started anew for whoever asks later. `route` and `want` are for the
event loop: look-ups, however many models there are. What takes longer, they leave to `settle` and `tidy`, which the keeper
calls (`keeper.py`).
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from services.inference.engine import Engine
from services.inference.folder import Folder, may_be_on
from services.inference.places import NoPlace, Places
from services.inference.settings import InferenceSettings
from understudy.bases import Base, as_planned, resolve
from understudy.belt.folds.served import Models
from understudy.errors import Invalid, NotFound, Transient, UnderstudyError
from understudy.interrupt import Interrupted
from understudy.plan import Plan
from understudy.store.artifacts import ArtifactStore
from understudy.terms import Artifact

log = logging.getLogger(__name__)

LOOK_AGAIN, TIDY = 3.0, 60.0
"""Seconds between two looks at what lies in the folders of bundled bases and adapters, and at what is to be removed."""
AGAIN, FORGOTTEN = 30.0, 600.0
"""Seconds after which an engine that was given up may be started anew for whoever asks, and after which nobody is told of it
any more when nobody does."""
DOWN = "it does not come up; GET /v1/engines says why"
"""To whoever asked for one of its models: the reason itself may speak of other people's things."""


class Model(NamedTuple):
    """A model of the endpoint."""

    name: str
    created: int
    """Seconds since the epoch: when it was first served, or of the bundled base."""
    parent: str | None = None
    """The base of an adapter; None for a base."""
    adapter: Artifact | None = None


@dataclass(frozen=True)
class EngineState:
    """How an engine is doing."""

    base: str
    state: str
    """starting | ready | failing | ending."""
    seconds: float
    """Since its present start."""
    models: int
    """Those that were asked for, or gated, since we know it: base and adapters."""
    reason: str | None
    """Why its last start came to nothing."""


class Fleet:
    """Safe to call from any thread; nothing here but `tidy` waits for an engine."""

    def __init__(
        self,
        settings: InferenceSettings,
        models: Models,
        caught_up: Callable[[], bool],
        store: ArtifactStore,
        engine: Callable[[Base, InferenceSettings], Engine],
    ) -> None:
        self._settings, self._models, self._caught_up, self._engine = settings, models, caught_up, engine
        self.folder = Folder(settings.adapters(), store)
        self.wake = threading.Event()
        """Set when `settle` has something to do."""
        self._lock = threading.Lock()
        self._engines: dict[str, Engine] = {}
        self._of_model: dict[str, Engine] = {}
        """Models whose engine is known: bases, and adapters that lie in the folder, gated or asked for since the start."""
        self._places = Places(settings.max_engines)
        self._asked: set[str] = set()
        """Models to bring up."""
        self._refused: dict[str, str] = {}
        """Why a model cannot be brought up."""
        self._crowded: dict[str, str] = {}
        """Why a model is not brought up yet."""
        self._bundled: dict[str, int] = {}
        """Base in the models folder -> when it changed."""
        self._looked = self._tidied = -TIDY
        self._closed = False
        self._look_at_bundled()

    def route(self, model: str) -> str | None:
        """URL of the engine that serves `model` now, else None. On the path of every request: two look-ups and the time."""
        engine = self._of_model.get(model)
        if engine is None or engine.wary:
            return None
        engine.used = time.monotonic()
        return engine.url

    def want(self, model: str) -> str | None:
        """Bring `model` up if it is known; why it is not up yet, if there is more to say than that it is starting.

        Raises `NotFound`, and `Invalid` when the model itself is what cannot be brought up.
        """
        engine = self._of_model.get(model)
        if engine is not None:
            engine.used = time.monotonic()
            if engine.gave_up is None:
                return DOWN if engine.failure else None
        elif self._caught_up() and model not in self._bundled and self._models.get(model) is None:
            raise NotFound(f"The model `{model}` does not exist. GET /v1/models lists those that do.")
        self._asked.add(model)
        self.wake.set()
        if reason := self._refused.get(model):
            raise Invalid(reason)
        return DOWN if engine is not None else self._crowded.get(model)

    def admit(self, model: str, engine: Engine) -> None:
        """Let requests for `model` through to `engine`."""
        self._of_model[model] = engine

    def ensure(self, base: Base, rank: int, *, hold: bool = False, warm: bool = False) -> Engine:
        """The engine of `base`, started if it was not, able to load adapters of `rank`.

        One that is held keeps its place until it is given back. To have it `warm` is no use of it, and takes no place from one
        that may be needed. Raises `Invalid` when another base of that name is served, `NoPlace` while there is none.
        """
        with self._lock:
            if self._closed:
                raise Interrupted  # no failure of whoever wanted it: the message comes again
            engine = self._engines.get(base.name)
            if engine and engine.gave_up and time.monotonic() - engine.gave_up > AGAIN:
                self._forget(engine)
                engine = None
            if engine is None:
                if going := self._places.take(base.name, list(self._engines.values()), warm):
                    log.info("engine %s: its place is needed for %s", going.base.name, base.name)
                    self._forget(going)
                    self._places.end(going)
                    raise NoPlace(self._settings.max_engines)
                engine = self._engine(base, self._settings)
                served = [each.message.rank for each in self._models.all() if each.message.parent == base.name]
                engine.require(max([rank, *served]))
                engine.start()
                self._engines[base.name] = self._of_model[base.name] = engine
            elif engine.base != base:
                raise Invalid(
                    f"Base `{base.path}` has the same name as another base that is already served, {engine.base.path}",
                    "Rename one of the folders, or pin the same revision.",
                )
            elif hold:
                self._places.may_hold(engine)
            engine.users += hold
            if not warm:
                engine.used = time.monotonic()
        engine.require(rank)
        return engine

    def give_back(self, engine: Engine) -> None:
        """It was held, and is not any more."""
        with self._lock:
            engine.users -= 1
            engine.used = time.monotonic()

    def keep(self, base: Base, rank: int) -> None:
        """`ensure`, and never end it for another."""
        self._places.kept.add(base.name)
        self.ensure(base, rank)

    def of_plan(self, plan: Plan, base: int) -> tuple[Base, int]:
        """A plan's base, and the rank of every adapter that the plan trains on it. Raises `Invalid`."""
        ranks = [item.training.lora.r for item in plan.items if item.base == base and item.training]
        return as_planned(plan.bases[base], self._settings.models), max(ranks, default=1)

    def note(self, needed: Set[str], scored: Set[str], queued: Set[str]) -> None:
        """Which bases open runs need, which have items that are being scored, and which have some that wait for that."""
        self._places.needed, self._places.scored, self._places.queued = needed, scored, queued

    def settle(self) -> None:
        """Bring up what was asked for, let go of what is gone, and look at the disk. Takes its time, but waits for no engine: in a
        thread."""
        if time.monotonic() - self._looked > LOOK_AGAIN:
            self._look_at_bundled()
            self._look_at_served()
        while self._asked:
            self._bring_up(self._asked.pop())
        for model, engine in list(self._of_model.items()):
            if model != engine.base.name and self._models.gone(model):
                del self._of_model[model]

    def tidy(self) -> None:
        """Now and then, remove from the disk what is gone. Waits for engines: in a thread of its own."""
        if self._caught_up() and time.monotonic() - self._tidied > TIDY:
            self._tidied = time.monotonic()
            self.folder.retire({each.message.model for each in self._models.all()}, self._unloading())

    def let_go(self) -> None:
        """Forget every failing engine that nobody asked for lately; whoever asks for one of its models has it started anew."""
        now = time.monotonic()
        with self._lock:
            for name, engine in list(self._engines.items()):
                if engine.failure and name not in self._places.kept and now - engine.used > FORGOTTEN:
                    self._forget(engine)
                    engine.close(wait=False)

    def _forget(self, engine: Engine) -> None:
        """Nobody is sent to it any more."""
        del self._engines[engine.base.name]
        for model in [model for model, on in list(self._of_model.items()) if on is engine]:
            del self._of_model[model]

    def models(self) -> list[Model]:
        """Bundled and served bases, then adapters, oldest first."""
        cards = {name: Model(name, created) for name, created in self._bundled.items()}
        for message, created in ((served.message, served.created) for served in self._models.all()):
            if message.model not in cards:
                cards[message.model] = Model(message.model, created, message.parent, message.adapter)
        return sorted(cards.values(), key=lambda card: (card.parent is not None, card.created, card.name))

    def version(self) -> object:
        """Another one whenever `models` may have changed."""
        return self._models.version, tuple(self._bundled.items())

    def model(self, name: str) -> Model | None:
        """One of them."""
        if (created := self._bundled.get(name)) is not None:
            return Model(name, created)
        served = self._models.get(name)
        return Model(name, served.created, served.message.parent, served.message.adapter) if served else None

    def states(self) -> list[EngineState]:
        """How every engine is doing."""
        on = Counter(engine.base.name for engine in list(self._of_model.values()))
        return [
            EngineState(
                base=engine.base.name,
                state=_state(engine),
                seconds=round(time.monotonic() - engine.since, 1),
                models=on[engine.base.name],
                reason=engine.failure or engine.trouble,
            )
            for engine in [*list(self._engines.values()), *self._places.ending()]
        ]

    def bases(self) -> frozenset[str]:
        """Those that have an engine."""
        return frozenset(self._engines)

    def close(self) -> None:
        """End all engines."""
        with self._lock:
            self._closed = True
            engines = [*self._engines.values(), *self._places.ending()]
        for wait in (False, True):  # ask all before waiting for the first
            for engine in engines:
                engine.close(wait)

    def _bring_up(self, model: str) -> None:
        served = self._models.get(model)
        try:
            if served:
                if served.message.adapter:
                    self.folder.put(model, served.message.adapter)
                engine = self.ensure(resolve(served.message.base, self._settings.models), served.message.rank)
            elif model in self._bundled:
                engine = self.ensure(resolve(model, self._settings.models), 1)
            else:
                return
        except NoPlace as full:
            self._crowded[model] = full.what
            return
        except (UnderstudyError, OSError) as error:
            log.warning("%s cannot be brought up: %s", model, error)
            self._refused[model] = _for_strangers(error)
        else:
            self._refused.pop(model, None)
            self.admit(model, engine)
        self._crowded.pop(model, None)

    def _unloading(self) -> Callable[[str], None]:
        """Have every engine that may know a model forget it; one that does not answer is not asked again. Raises `Transient`."""
        silent: set[Engine] = set()

        def unload(model: str) -> None:
            for engine in list(self._engines.values()):
                if engine.url and may_be_on(model, engine.base.name):
                    if engine in silent:
                        raise Transient(f"The engine of `{engine.base.name}` does not answer")
                    try:
                        with engine.client() as client:
                            client.unload(model)
                    except Transient:
                        silent.add(engine)
                        raise

        return unload

    def _look_at_served(self) -> None:
        """What somebody removed from the folder is put there again; until then nobody asks an engine for it."""
        for model, engine in list(self._of_model.items()):
            if model != engine.base.name and not self.folder.has(model):
                log.warning("%s is gone from the adapters' folder: it is put there again", model)
                self._of_model.pop(model, None)
                self._asked.add(model)

    def _look_at_bundled(self) -> None:
        self._looked = time.monotonic()
        found = sorted(self._settings.models.glob("*/config.json"))
        self._bundled = {path.parent.name: _changed(path) for path in found}


def _state(engine: Engine) -> str:
    if engine.stopping.is_set():
        return "ending"
    return "ready" if engine.url else "failing" if engine.failure else "starting"


def _for_strangers(error: UnderstudyError | OSError) -> str:
    """What is wrong, without the folders of this machine."""
    what = error.what if isinstance(error, UnderstudyError) else error.strerror or type(error).__name__
    return re.sub(r"(?<![\w.~-])/(?:[^\s/`]+/)+", "", what)


def _changed(path: Path) -> int:
    try:
        return int(path.stat().st_mtime)
    except FileNotFoundError:
        return 0
