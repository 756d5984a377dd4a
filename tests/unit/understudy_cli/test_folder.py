"""What the command line does on a data folder when no stack is up: on a real bus and a real store."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import pytest

from understudy.belt import contracts as c
from understudy.belt import requests, turns
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.errors import Transient
from understudy.plan import PlannedBase, make
from understudy.recipe import parse
from understudy.report import Cell
from understudy.service.token import internal_token
from understudy.settings import Settings
from understudy.store import keys
from understudy.store.artifacts import FsspecArtifactStore
from understudy.store.place import Entry
from understudy.testing import report_of
from understudy_cli.folder import store_of

Alone = Callable[..., tuple[int, str, str]]
RECIPE = {
    "name": "r",
    "datasets": {"d": {"source": "hf:x@1"}},
    "variants": {"mine": {"train": "d"}, "other": {"train": "d"}},
}
PLAN = make(parse(RECIPE, "r"), lambda base: PlannedBase(name=base, reference=base))
RUN = "r-0123456789"
NOTHING = c.Artifact(sha256="0")
MODEL = "ft:seedling:r:mine:00000000"


@dataclass
class World:
    """A data folder that a stack left."""

    data: Path
    bus: EmbeddedBus
    store: FsspecArtifactStore

    def put(self, key: str, **files: str) -> c.Artifact:
        with self.store.draft() as folder:
            for name, content in files.items():
                (folder / name.replace("_", ".", 1)).write_text(content)
            return self.store.put(key, folder)

    def begin(self, run: str = RUN, generation: int = 1) -> None:
        requests.begin(self.bus, self.store, run, PLAN, generation)
        request = c.DatasetsMade(run=run, generation=generation, plan=self.plan(run), datasets=c.Artifact(sha256="0"))
        self.bus.publish(request)

    def plan(self, run: str) -> c.Artifact:
        found = self.store.find(keys.plan(run))
        assert found
        return found

    def serve(self, run: str = RUN) -> None:
        adapter = self.put(keys.adapter(run, "mine"), README_md="# card", weights_bin="w" * 1000)
        served = c.ModelServed(run=run, item="mine", model=MODEL, base="seedling", parent="seedling", adapter=adapter)
        base = c.ModelServed(run=run, item="base", model="seedling", base="seedling")
        self.bus.publish(served, base)

    def close(self, status: str = "finished", report: bool = True, run: str = RUN) -> None:
        """Every item ends, and the run with the outcome that follows."""
        for item in PLAN.items:
            self.bus.publish(c.ItemScored(run=run, item=item.name, answers=NOTHING, measures=NOTHING))
        said = [c.decode(record.value) for record in self.bus.replay(["run-control"]) if record]
        book = reduce(turns.apply, (message for message in said if message.run == run), turns.Book())
        outcome = turns.outcome(book)
        made = None
        if report:
            cells = {"base": Cell(n=100, value=0.5, low=0.4, high=0.6)}
            made = self.put(keys.report(run, outcome), report_json=report_of(PLAN, cells, run=run).model_dump_json())
        self.bus.publish(c.RunClosed.model_validate({"run": run, "status": status, "outcome": outcome, "report": made}))

    def control(self) -> list[c.Message]:
        return [c.decode(record.value) for record in self.bus.replay(["run-control"]) if record]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    data = tmp_path / "data"
    bus = EmbeddedBus(data / "bus.sqlite")
    yield World(data, bus, store_of(data))
    bus.close()


def test_runs_and_reports_are_read_from_the_folder(alone: Alone, world: World) -> None:
    """The list with the stages, the table of a run that is over, and exit code 0."""
    world.begin()
    world.serve()
    world.close()
    out = alone("runs")[1]
    row = next(line for line in out.splitlines() if RUN in line)
    assert "finished" in row
    assert "3 scored" in row
    code, out, err = alone("report", RUN)
    assert (code, err) == (0, "")
    assert f"Talk to it: understudy chat {MODEL}" in out
    assert "50.0 % [40.0 – 60.0]" in out
    assert "What was gained, what was lost" in (world.data / "reports" / f"{RUN}.html").read_text()


def test_of_an_open_run_watch_says_that_nothing_goes_on(alone: Alone, world: World) -> None:
    world.begin()
    code, _, err = alone("watch", RUN)
    assert code == 1
    assert "is not over and no stack is up" in err
    code, _, err = alone("report", RUN)
    assert code == 1
    assert "has no report yet" in err


def test_cancel_puts_the_wish_on_the_bus_of_the_folder(alone: Alone, world: World) -> None:
    """Of the run's own generation; for an item its name; once only, and for nothing that is not there."""
    world.begin(generation=2)
    code, out, _ = alone("cancel", RUN, "mine")
    assert (code, out) == (
        0,
        f"Item mine of run {RUN} is cancelled. Its report is made when a stack is up again: `understudy up`.\n",
    )
    assert world.control()[-1] == c.CancelRequested(run=RUN, generation=2, item="mine")
    assert "over (cancelled)" in alone("cancel", RUN, "mine")[1]
    assert alone("cancel", RUN)[0] == 0
    assert world.control()[-1] == c.CancelRequested(run=RUN, generation=2)
    before = len(world.control())
    code, _, err = alone("cancel", RUN, "mime")
    assert code == 1
    assert "did you mean `mine`?" in err
    code, _, err = alone("cancel", "nobody")
    assert code == 1
    assert "There is no run `nobody`" in err
    assert len(world.control()) == before


def test_a_run_that_is_over_has_nothing_to_cancel(alone: Alone, world: World) -> None:
    world.begin()
    world.close()
    assert "is over (finished): there is nothing to cancel" in alone("cancel", RUN)[1]
    assert not any(isinstance(message, c.CancelRequested) for message in world.control())


def test_delete_forgets_the_run_and_what_it_made_here(alone: Alone, world: World) -> None:
    """On the bus, in the store, its unfinished work and its page; another run stays; asked for again it is told from one that never was."""
    world.begin()
    world.serve()
    world.close()
    world.begin("other-run")
    work = world.data / "work" / "trainer" / "0"
    for run in (RUN, "other-run"):
        (work / run / "mine").mkdir(parents=True)
    assert alone("report", RUN)[0] == 0
    code, out, err = alone("delete", RUN, "--yes")
    assert (code, err) == (0, "")
    assert out.startswith(f"Run {RUN} is deleted; ")
    assert out.endswith("KiB were freed.\n"), "the adapter, the report and the plan are more than a KiB"
    assert world.control()[-1] == c.RunDeleted(run=RUN, generation=1)
    assert world.store.find(keys.adapter(RUN, "mine")) is None
    assert world.store.find(keys.plan("other-run"))
    assert [path.name for path in work.iterdir()] == ["other-run"]
    assert not (world.data / "reports" / f"{RUN}.html").exists()
    assert [line.split()[0] for line in alone("runs")[1].splitlines()[1:]] == ["other-run"]
    code, _, err = alone("report", RUN)
    assert code == 1
    assert f"Run `{RUN}` was deleted" in err


def test_a_deletion_that_failed_half_way_is_finished_by_the_same_command(
    alone: Alone, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.begin()
    world.serve()

    def away(*_: object) -> int:
        raise Transient("The bucket is away")

    with monkeypatch.context() as patch:
        patch.setattr(FsspecArtifactStore, "delete_all", away)
        code, _, err = alone("delete", RUN, "--yes")
        assert code == 1
        assert "The bucket is away" in err
    assert world.store.find(keys.adapter(RUN, "mine"))
    code, out, _ = alone("delete", RUN)
    assert code == 0
    assert out.endswith("KiB were freed.\n")
    assert world.store.find(keys.adapter(RUN, "mine")) is None
    assert alone("delete", "nobody", "--yes")[0] == 1


def test_logs_tell_what_happened(alone: Alone, world: World) -> None:
    """The lines are those of the history: about the run, or about one item and the run."""
    world.begin()
    world.bus.publish(c.ItemFailed(run=RUN, item="mine", station="trainer", reason="out of ideas"))
    code, out, err = alone("logs", RUN)
    assert (code, err) == (0, "")
    assert "asked for" in out.splitlines()[0]
    assert [line for line in out.splitlines() if "  mine: " in line and line.endswith("out of ideas")]
    assert "out of ideas" not in alone("logs", RUN, "other")[1]
    assert alone("logs", "nobody")[0] == 1


def test_pull_brings_an_adapter_from_the_store(alone: Alone, world: World, tmp_path: Path) -> None:
    """Base models and unknown names are told apart."""
    world.begin()
    world.serve()
    code, out, _ = alone("pull", MODEL, "mine")
    assert code == 0
    assert (tmp_path / "mine" / "weights.bin").read_text() == "w" * 1000
    assert f"Its card: {tmp_path / 'mine' / 'README.md'}" in out
    code, _, err = alone("pull", "seedling", "base")
    assert code == 1
    assert "is a base model, not an adapter" in err
    assert "The model `nobody` does not exist" in alone("pull", "nobody", "x")[2]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two days pass: everything that is there is old, and what is written from now on is not seen."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 48 * 3600)


def test_clean_shows_and_then_removes_what_nobody_needs(
    alone: Alone, world: World, request: pytest.FixtureRequest
) -> None:
    """Bytes without a name, work on a run that is over, copies beyond the size; runs, reports and open work stay."""
    world.begin("over-run")
    world.serve("over-run")
    world.close(run="over-run")
    world.begin("open-run")
    lost = world.put("runs/x/lost", data_bin="lost bytes " * 500)
    world.store.place.remove(["refs/runs/x/lost.json"])
    adapter = world.store.find(keys.adapter("over-run", "mine"))
    assert adapter
    copy = world.store.fetch(adapter)
    work = world.data / "work" / "trainer" / "0"
    for run in ("over-run", "open-run", "never-heard-of"):
        (work / run / "mine").mkdir(parents=True)
        (work / run / "mine" / "checkpoint").write_text("c" * 100)
    token = internal_token(Settings(data=world.data))
    assert "nothing to clean" in alone("clean")[2], "all of it is young"
    request.getfixturevalue("later")
    code, out, err = alone("clean", "--cache", "500")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:]}
    assert rows["artifacts"][0] == "2", "one file and its manifest"
    assert rows["work"][:3] == ["2", "200", "bytes"]
    assert rows["cache"][0] == "2", "the adapter, and the plan that was read"
    assert "Nothing was removed" in err
    assert copy.exists()
    code, out, _ = alone("clean", "--cache", "500", "--yes")
    assert code == 0
    assert "were freed" in out
    assert [path.parent.name for path in work.glob("*/*")] == ["open-run"]
    assert internal_token(Settings(data=world.data)) == token, "services that are up still know each other"
    assert not copy.exists()
    assert not _stored(world, f"manifests/{lost.sha256}.json")
    assert alone("report", "over-run")[0] == 0
    assert (world.store.fetch(adapter) / "weights.bin").read_text() == "w" * 1000


def test_clean_takes_what_a_station_put_for_a_deleted_run(
    alone: Alone, world: World, request: pytest.FixtureRequest
) -> None:
    """It came after the deletion; a run of the same id that was asked for again keeps its own."""
    for run in ("gone", "again"):
        world.begin(run)
        assert alone("delete", run, "--yes")[0] == 0
        late = world.put(keys.adapter(run, "mine"), late_bin=f"late of {run}")
        assert world.store.find(keys.adapter(run, "mine")) == late
    world.begin("again", generation=2)
    request.getfixturevalue("later")
    assert alone("clean", "--yes")[0] == 0
    assert world.store.find(keys.adapter("gone", "mine")) is None
    assert world.store.find(keys.adapter("again", "mine"))


def test_clean_refuses_a_size_that_is_none(alone: Alone) -> None:
    assert "within the last hour stay" in " ".join(alone("clean", "--help")[1].split())
    for size in ("much", "10 parsecs", "1.2.3GB", "-5", "-5GB", "-0.1", "1" * 400):
        code, _, err = alone("clean", "--cache", size)
        assert code == 2
        assert "--cache" in err
    assert alone("clean", "--grace", "0")[0] == 2


def test_a_folder_of_an_older_version_is_one_sentence(alone: Alone, tmp_path: Path) -> None:
    """Whether it is looked at or a stack shall be started on it: exit code 1, one line, and nothing was started."""
    data = tmp_path / "data"
    data.mkdir()
    with contextlib.closing(sqlite3.connect(data / "bus.sqlite")) as db:
        db.execute("PRAGMA user_version = 1")
    (tmp_path / "d.csv").write_text("text,label\na,1\n")
    (tmp_path / "r.yaml").write_text("datasets: {d: {source: d.csv}}")
    for command in (["runs"], ["run", "r.yaml"], ["up"], ["logs", "x"], ["clean"]):
        code, _, err = alone(*command)
        assert code == 1
        (line,) = err.strip().splitlines()
        assert "bus.sqlite was written by an Understudy before version 0.3" in line
    assert not list((data / "logs").glob("*.log"))


def _stored(world: World, path: str) -> dict[str, Entry]:
    return world.store.place.entries([path])
