"""A fleet on stub engines: real processes, real HTTP, real folds and store, no model."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from services.inference.fleet import Fleet
from services.inference.handlers import Inference
from services.inference.keeper import Keeper
from services.inference.launch import log_file
from services.inference.local import Local
from services.inference.settings import InferenceSettings
from understudy.bases import Base, planned, resolve
from understudy.belt.bus import Record
from understudy.belt.contracts import Message, ModelServed, ServingRequested
from understudy.belt.folds.control import Control
from understudy.belt.folds.runs import Runs
from understudy.belt.folds.served import Models
from understudy.belt.topics import topic_of
from understudy.plan import Item, Plan
from understudy.recipe import Lora, Training
from understudy.service.child import Child
from understudy.service.token import internal_token
from understudy.store.artifacts import FsspecArtifactStore
from understudy.store.plans import Plans, put_plan
from understudy.terms import Artifact
from understudy.testing import local_store

STUB = Path(__file__).with_name("stub_engine.py")
BROKEN = """
import sys, time
print('loading', flush=True); time.sleep(1.5 if sys.argv[1] == 'broken-late' else 0)
print('SafetensorError: incomplete metadata'); raise SystemExit(1)
"""


class Log:
    """Folds, and what was published so far; `log.say(message)` is read at once."""

    def __init__(self) -> None:
        self.control, self.models = Control(), Models()
        self.runs = Runs(self.control)
        self.caught_up = True
        self.listeners: list[Keeper] = []
        self._offset = 0

    def say(self, *messages: Message) -> None:
        for message in messages:
            self._offset += 1
            topic = topic_of(message).name
            record = Record(topic, 0, self._offset, time.time(), b"")
            for fold in (self.control, self.runs, self.models, *self.listeners):
                if topic in fold.topics:
                    fold.read(message, record)


@pytest.fixture
def probes() -> Callable[[float], str]:
    """`probe.json` for a stub engine: it gives -1 per token for its base and -2 for an adapter."""

    def probes(adapter_logprob: float) -> str:
        probe = {"token_ids": [1, 2, 3], "base_logprobs": [-1, -1], "adapter_logprobs": [adapter_logprob] * 2}
        return json.dumps({"probes": [probe]})

    return probes


@pytest.fixture
def make_base(tmp_path: Path) -> Callable[..., Base]:
    """Put a base into the models folder, or into another one."""

    def make_base(name: str, models: Path = tmp_path / "models") -> Base:
        folder = models / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"max_position_embeddings": 512}')
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        return resolve(str(folder), models)

    return make_base


@pytest.fixture
def settings(tmp_path: Path, make_base: Callable[..., Base], request: pytest.FixtureRequest) -> InferenceSettings:
    """Its parameter is how many engines there may be."""
    make_base("tiny")
    most = getattr(request, "param", 4)
    return InferenceSettings(data=tmp_path, models=tmp_path / "models", hold_seconds=5, max_engines=most)


@pytest.fixture
def base(settings: InferenceSettings) -> Base:
    return resolve("tiny", settings.models)


@pytest.fixture
def store(tmp_path: Path) -> FsspecArtifactStore:
    return local_store(tmp_path)


@pytest.fixture
def put(store: FsspecArtifactStore, tmp_path: Path) -> Callable[..., Artifact]:
    """Store an adapter: `put("name", "file in it", ...)`."""

    def put(name: str, **files: str) -> Artifact:
        folder = tmp_path / "made" / name
        folder.mkdir(parents=True)
        for file, content in {"adapter_config__json": name, **files}.items():
            (folder / file.replace("__", ".")).write_text(content)
        return store.put(f"adapters/{name}", folder)

    return put


@pytest.fixture
def plan(settings: InferenceSettings) -> Callable[..., Plan]:
    """A plan on these bases, each with an item of its own name and some adapters of rank 8."""

    def plan(*bases: str, name: str = "films", rank: int = 8, **more: object) -> Plan:
        training = Training(lora=Lora.model_validate({"r": rank}))
        items = []
        for number, base in enumerate(bases):
            items.append(Item(name=f"base@{base}", base=number))
            items += [
                Item.model_validate({"name": f"{v}@{base}", "base": number, "training": training, **more})
                for v in ("v", "w", "x", "y")
            ]
        planned_bases = tuple(planned(base, settings.models) for base in bases)
        return Plan(name=name, bases=planned_bases, items=tuple(items))

    return plan


@pytest.fixture
def request_of(store: FsspecArtifactStore) -> Callable[..., ServingRequested]:
    """The message that brings an item of a plan, with this adapter, to inference."""

    def request_of(plan: Plan, item: str, adapter: Artifact | None = None, run: str = "r", **more: object) -> object:
        index = [each.name for each in plan.items].index(item)
        about = {"run": run, "item": item, "index": index, "base": plan.items[index].base, "adapter": adapter}
        return ServingRequested.model_validate(about | {"plan": put_plan(store, run, plan)} | more)

    return request_of  # type: ignore[return-value]


@pytest.fixture
def served(log: Log) -> Callable[..., ModelServed]:
    """Say that a model is served."""

    def served(model: str, adapter: Artifact | None = None, **more: object) -> ModelServed:
        about = {"run": "r", "item": "v", "model": model, "base": "tiny", "adapter": adapter}
        message = ModelServed.model_validate(about | {"parent": "tiny" if adapter else None, "rank": 8} | more)
        log.say(message)
        return message

    return served


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def processes() -> Iterator[list[Child]]:
    """Every stub engine that was started, in order."""
    started: list[Child] = []
    yield started
    for process in started:
        process.stop()


@pytest.fixture
def launch(processes: list[Child]) -> Callable[..., Child]:
    """Starts a stub engine; for a base called `broken...` one that ends, until there is a file `repaired` in its folder, for
    `slow...` one that never answers."""

    def launch(base: Base, settings: InferenceSettings, port: int, rank: int) -> Child:
        command = [sys.executable, "-S", str(STUB), str(port), base.name, str(settings.adapters())]
        if base.name.startswith("broken") and not (Path(base.path) / "repaired").exists():
            command = [sys.executable, "-S", "-c", BROKEN, base.name]
        if base.name.startswith("slow"):
            command = ["sleep", "600"]
        env = {"VLLM_API_KEY": internal_token(settings)}
        processes.append(Child(command, log=log_file(settings, base), env=env))
        return processes[-1]

    return launch


@pytest.fixture
def fleet(
    settings: InferenceSettings, log: Log, store: FsspecArtifactStore, launch: Callable[..., Child]
) -> Iterator[Fleet]:
    engine = partial(Local, launch=launch, pause=0.01, patience=0.5)
    fleet = Fleet(settings, log.models, lambda: log.caught_up, store, engine)
    yield fleet
    fleet.close()


@pytest.fixture
def plans(store: FsspecArtifactStore) -> Plans:
    return Plans(store)


@pytest.fixture
def idle_keeper(fleet: Fleet, log: Log, plans: Plans) -> Keeper:
    """A keeper that does what it is told to: `look`, once for each call."""
    keeper = Keeper(fleet, log.runs, plans, lambda: log.caught_up)
    log.listeners.append(keeper)
    return keeper


@pytest.fixture
def keeper(idle_keeper: Keeper) -> Iterator[Keeper]:
    """A keeper at work."""
    idle_keeper.start()
    yield idle_keeper
    idle_keeper.close()


@pytest.fixture
def inference(fleet: Fleet, plans: Plans) -> Inference:
    return Inference(fleet, plans, tolerance=0.1)


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait until something holds."""

    def eventually(holds: Callable[[], object], seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, "never happened"
            time.sleep(0.02)

    return eventually
