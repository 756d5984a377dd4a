"""What the command line asks of a data folder when no stack is up on it: the folds are read from its bus, everything else
from its artifact store.

Makes no folder where there is none. Does not print.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from understudy.belt import requests, scratch
from understudy.belt.bus import Bus
from understudy.belt.bus.connect import connect
from understudy.belt.folds.control import Control
from understudy.belt.folds.reader import Reader
from understudy.belt.folds.runs import Runs
from understudy.belt.folds.served import Models
from understudy.belt.folds.views import RunState, RunSummary
from understudy.belt.history import told
from understudy.errors import Invalid, NotFound
from understudy.report import Report
from understudy.settings import Settings
from understudy.store.artifacts import FsspecArtifactStore
from understudy.store.plans import Plans
from understudy.terms import STATIONS, Artifact
from understudy_cli.client import Deleted, ModelFile

PIECE = 1 << 20
"""Bytes."""


@dataclass(frozen=True)
class Known:
    """What a bus says, as far as it was read."""

    control: Control
    runs: Runs
    models: Models


class Folder:
    """The data folder of a stack that is down; see `Source` for its methods."""

    def __init__(self, data: Path) -> None:
        self._settings = Settings(data=data)

    def run(self, run: str) -> RunState:
        with known(self._settings.data) as there:
            state = there.runs.get(run)
            deleted = there.runs.deleted(run)
        if state is None:
            remedy = "`understudy runs` lists those there are."
            if deleted:
                raise Deleted(f"Run `{run}` was deleted", remedy)
            raise NotFound(f"There is no run `{run}` in {self._settings.data}", remedy)
        return state

    def runs(self, limit: int = 100) -> list[RunSummary]:
        with known(self._settings.data) as there:
            found, _ = there.runs.page(None, limit) or ([], False)
        return found

    def report(self, state: RunState, baseline: str | None = None) -> tuple[Report, str]:
        from services.evaluator import page  # with numpy, which nothing else here needs
        from services.evaluator.reports import Reports

        assert state.report
        store = self._store()
        reports = Reports(store, Plans(store))
        report = reports.read(reports.against(state.report, baseline) if baseline else state.report)
        return report, page.render(report, state)

    def cancel(self, state: RunState, item: str | None) -> None:
        with bus_of(self._settings.data) as bus:
            assert bus
            requests.cancel(bus, state.id, state.generation, item)

    def delete(self, run: str) -> int:
        with known(self._settings.data) as there:
            state = there.runs.get(run)
            generation = state.generation if state else there.runs.deleted(run)
        with bus_of(self._settings.data) as bus:
            assert bus
            freed = requests.delete(bus, self._store(), run, generation)
        for station in STATIONS:  # services forget only what is deleted while they live
            scratch.forget(self._settings.data / "work" / station / "0", run)
        return freed

    def logs(self, run: str, item: str | None) -> str:
        with bus_of(self._settings.data) as bus:
            assert bus
            return "\n".join(told(bus, self._store(), run, item))

    def files(self, model: str) -> list[ModelFile]:
        files = self._store().files(self._adapter(model))
        return [ModelFile(path=path, bytes=each.bytes, sha256=each.sha256) for path, each in sorted(files.items())]

    def content(self, model: str, file: ModelFile) -> Iterator[bytes]:
        with (self._store().fetch(self._adapter(model)) / file.path).open("rb") as content:
            while piece := content.read(PIECE):
                yield piece

    def _adapter(self, model: str) -> Artifact:
        with known(self._settings.data) as there:
            served = there.models.get(model)
        if served is None:
            raise NotFound(f"The model `{model}` does not exist in {self._settings.data}")
        if served.message.adapter is None:
            raise Invalid(f"`{model}` is a base model, not an adapter", "It lies where the recipe's `base` says.")
        return served.message.adapter

    def _store(self) -> FsspecArtifactStore:
        return store_of(self._settings.data)


@contextmanager
def known(data: Path) -> Iterator[Known]:
    """All that the bus of a data folder says now."""
    control = Control()
    runs, models = Runs(control), Models()
    with bus_of(data) as bus:
        if bus:
            Reader(bus, (control, runs, models)).load()
        yield Known(control, runs, models)


@contextmanager
def bus_of(data: Path) -> Iterator[Bus | None]:
    """The bus that UNDERSTUDY_BUS names, else the one in the data folder; None when there is none, and none is left behind."""
    settings = Settings(data=data)
    if not settings.bus and not (data / "bus.sqlite").exists():
        yield None
        return
    bus = connect(settings)
    try:
        yield bus
    finally:
        bus.close()


def store_of(data: Path) -> FsspecArtifactStore:
    """The artifact store that UNDERSTUDY_ARTIFACTS names, else the one in the data folder."""
    settings = Settings(data=data)
    return FsspecArtifactStore(settings.artifact_url(), settings.cache())
