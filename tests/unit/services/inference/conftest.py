"""A fleet on a stub engine: real processes, real HTTP, no model."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from services.inference.engine import Engine
from services.inference.fleet import Fleet
from services.inference.launch import log_file
from services.inference.settings import InferenceSettings
from understudy.bases import Base
from understudy.belt.contracts import Artifact, ModelServed, ModelTrained
from understudy.belt.folds.runs import Ledger, RunState
from understudy.recipe import Recipe, parse
from understudy.service.child import Child
from understudy.store.artifacts import FsspecArtifactStore
from understudy.testing import local_store

STUB = Path(__file__).with_name("stub_engine.py")


class Served(Ledger):
    """A ledger that says what the test wants."""

    def __init__(self) -> None:
        self.messages: list[ModelServed] = []
        self.caught_up = True

    def served(self) -> list[ModelServed]:
        return list(self.messages)

    def runs(self) -> list[RunState]:
        return []


@pytest.fixture
def recipe() -> Recipe:
    return parse({"name": "films", "base": "tiny", "datasets": {"d": {"source": "d.csv"}}}, "test")


@pytest.fixture
def settings(tmp_path: Path) -> InferenceSettings:
    base = tmp_path / "models" / "tiny"
    base.mkdir(parents=True)
    (base / "config.json").write_text('{"max_position_embeddings": 512}')
    (base / "chat_template.jinja").write_text("{{ messages }}")
    return InferenceSettings(data=tmp_path, models=tmp_path / "models", hold_seconds=5)


@pytest.fixture
def store(tmp_path: Path) -> FsspecArtifactStore:
    return local_store(tmp_path)


@pytest.fixture
def put(store: FsspecArtifactStore, tmp_path: Path) -> Callable[..., Artifact]:
    """Store an adapter: `put("name", "file in it", ...)`."""

    def put(name: str, **files: str) -> Artifact:
        folder = tmp_path / "made" / name
        folder.mkdir(parents=True)
        for file, content in {"adapter_config": name, **files}.items():
            (folder / file.replace("__", ".")).write_text(content)
        return store.put(f"adapters/{name}", folder)

    return put


@pytest.fixture
def trained(recipe: Recipe) -> Callable[[Artifact | None], ModelTrained]:
    return lambda adapter: ModelTrained(
        run="r", variant="v" if adapter else "base", recipe=recipe, datasets={}, adapter=adapter
    )


@pytest.fixture
def ledger() -> Served:
    return Served()


@pytest.fixture
def processes() -> Iterator[list[Child]]:
    """Every stub engine that was started, in order."""
    started: list[Child] = []
    yield started
    for process in started:
        process.stop()


@pytest.fixture
def launch(processes: list[Child]) -> Callable[..., Child]:
    def launch(base: Base, settings: InferenceSettings, port: int, rank: int) -> Child:
        command = [sys.executable, "-S", str(STUB), str(port), base.name]
        processes.append(Child(command, log=log_file(settings, base)))
        return processes[-1]

    return launch


@pytest.fixture
def fleet(
    settings: InferenceSettings, ledger: Served, store: FsspecArtifactStore, launch: Callable[..., Child]
) -> Iterator[Fleet]:
    fleet = Fleet(settings, ledger, store, engine=partial(Engine, launch=launch, pause=0.01))
    yield fleet
    fleet.close()


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait until something holds."""

    def eventually(holds: Callable[[], object], seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, "never happened"
            time.sleep(0.02)

    return eventually
