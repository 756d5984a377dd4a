"""Engines are warm before the first item comes: of open runs, one for a base, not too many, and whatever their bases are. Those
that do not come up are let go when nobody needs them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.inference import fleet as module
from services.inference.fleet import Fleet
from services.inference.keeper import Keeper
from services.inference.settings import InferenceSettings
from understudy.bases import Base
from understudy.belt.contracts import (
    CancelRequested,
    ItemPlanned,
    ModelServed,
    RunClosed,
    RunDeleted,
    RunRequested,
)
from understudy.belt.turns import outcome
from understudy.plan import Plan
from understudy.service.child import Child
from understudy.store.artifacts import FsspecArtifactStore
from understudy.store.plans import put_plan
from understudy.terms import Artifact

Eventually = Callable[..., None]


@pytest.fixture
def ask(log: Any, store: FsspecArtifactStore) -> Callable[..., None]:
    """What the door publishes for a run."""

    def ask(run: str, plan: Plan, artifact: Artifact | None = None) -> None:
        for index, item in enumerate(plan.items):
            log.say(ItemPlanned(run=run, item=item.name, index=index, base=plan.base_of(item).name))
        bases = tuple(base.name for base in plan.bases)
        stored = artifact or put_plan(store, run, plan)
        log.say(RunRequested(run=run, plan=stored, name=run, bases=bases, items=len(plan.items)))

    return ask


@pytest.fixture
def end(log: Any) -> Callable[..., None]:
    """What ends a run."""

    def end(run: str, how: str = "cancelled") -> None:
        if how == "deleted":
            log.say(RunDeleted(run=run))
        else:
            log.say(CancelRequested(run=run))
            log.say(RunClosed(run=run, status="cancelled", outcome=outcome(log.control.book(run))))

    return end


@pytest.fixture
def long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was asked for before now."""
    monkeypatch.setattr(module, "FORGOTTEN", 0.0)


@pytest.mark.usefixtures("keeper")
def test_a_run_that_comes_is_seen_at_once(
    fleet: Fleet, ask: Callable[..., None], plan: Callable[..., Plan], eventually: Eventually
) -> None:
    ask("one", plan("tiny"))
    eventually(fleet.bases, seconds=1)


def test_the_bases_of_an_open_run_are_warm_and_each_has_one_engine(
    fleet: Fleet,
    idle_keeper: Keeper,
    base: Base,
    ask: Callable[..., None],
    plan: Callable[..., Plan],
    make_base: Callable[..., Base],
    processes: list[Child],
    eventually: Eventually,
) -> None:
    make_base("other")
    ask("one", plan("tiny", "other"))
    idle_keeper.look()
    eventually(lambda: fleet.route("tiny") and fleet.route("other"))
    ask("two", plan("tiny", rank=64))
    idle_keeper.look()
    eventually(lambda: len(processes) == 3 and fleet.route("tiny"))
    assert fleet.ensure(base, 8).rank == 64, "restarted for the larger adapters before the first of them comes"
    idle_keeper.look()
    assert [state.state for state in fleet.states()] == ["ready", "ready"]
    assert len(processes) == 3


@pytest.mark.parametrize("settings", [2], indirect=True)
def test_no_more_are_started_than_there_are_places_and_none_that_a_run_needs_makes_room(
    fleet: Fleet,
    idle_keeper: Keeper,
    ask: Callable[..., None],
    end: Callable[..., None],
    plan: Callable[..., Plan],
    make_base: Callable[..., Base],
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once no open run needs it, it does."""
    monkeypatch.setattr("services.inference.places.REST", 0.0)
    for name in ("b", "c", "d"):
        make_base(name)
    ask("one", plan("tiny", "b", "c"))
    ask("two", plan("d"))
    for _ in range(3):
        idle_keeper.look()
        assert fleet.bases() == {"tiny", "b"}, "the oldest run's come first"
    end("one")

    def looked() -> bool:
        idle_keeper.look()
        return "d" in fleet.bases()

    eventually(looked)
    assert len(fleet.bases()) == 2


def test_a_run_that_is_over_warms_nothing(
    fleet: Fleet,
    idle_keeper: Keeper,
    log: Any,
    ask: Callable[..., None],
    end: Callable[..., None],
    plan: Callable[..., Plan],
) -> None:
    ask("over", plan("tiny"))
    end("over")
    assert not log.runs.open()
    idle_keeper.look()
    assert not fleet.bases()


def test_a_base_or_plan_that_cannot_be_used_is_logged_and_holds_up_nothing(
    fleet: Fleet,
    idle_keeper: Keeper,
    ask: Callable[..., None],
    plan: Callable[..., Plan],
    settings: InferenceSettings,
    make_base: Callable[..., Base],
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_base("gone")
    made = plan("gone", "tiny")
    (settings.models / "gone" / "config.json").unlink()
    ask("no-plan", plan("tiny"), Artifact(sha256="0" * 64))
    with caplog.at_level(logging.WARNING):
        ask("one", made)
        for _ in range(3):
            idle_keeper.look()
    assert fleet.bases() == {"tiny"}
    said = sorted(record.getMessage() for record in caplog.records if record.name == "services.inference.keeper")
    assert len(said) == 2, "said once, not at every look"
    assert said[0].startswith("run no-plan: ")
    assert said[1].startswith("run one, base `gone`: ")


def test_a_base_whose_engine_does_not_come_up_warms_no_second_one(
    fleet: Fleet,
    idle_keeper: Keeper,
    ask: Callable[..., None],
    plan: Callable[..., Plan],
    make_base: Callable[..., Base],
    eventually: Eventually,
) -> None:
    make_base("broken")
    ask("one", plan("broken", "tiny"))
    idle_keeper.look()
    eventually(lambda: [state.state for state in fleet.states()] == ["failing", "ready"])
    idle_keeper.look()
    assert fleet.bases() == {"broken", "tiny"}


@pytest.mark.usefixtures("long_ago")
@pytest.mark.parametrize("how", ["cancelled", "deleted"])
def test_a_failing_engine_is_forgotten_and_one_that_is_up_stays_when_their_run_is_over(
    fleet: Fleet,
    idle_keeper: Keeper,
    ask: Callable[..., None],
    end: Callable[..., None],
    plan: Callable[..., Plan],
    make_base: Callable[..., Base],
    processes: list[Child],
    eventually: Eventually,
    how: str,
) -> None:
    """With its thread and its process, whether an open run has items that are not there yet or not: these have it started anew."""
    make_base("broken")
    ask("one", plan("broken", "tiny"))
    idle_keeper.look()
    eventually(lambda: [state.state for state in fleet.states()] == ["failing", "ready"])
    idle_keeper.look()
    idle_keeper.look()
    assert fleet.bases() == {"tiny"}, "nor is it started for that run again"
    end("one", how)
    idle_keeper.look()
    assert [state.base for state in fleet.states()] == ["tiny"]
    eventually(lambda: "engine-broken" not in {thread.name for thread in threading.enumerate()})
    assert sum(process.poll() is None for process in processes) == 1
    assert fleet.route("tiny")


def test_a_failing_engine_is_started_anew_for_a_request_and_not_for_each(
    fleet: Fleet,
    idle_keeper: Keeper,
    served: Callable[..., ModelServed],
    make_base: Callable[..., Base],
    processes: list[Child],
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it died of is told where keys for runs are asked for, not to whoever may ask a model."""
    broken = make_base("broken")
    served("broken", base="broken")  # it came up once
    engine = fleet.ensure(broken, 8)
    eventually(lambda: engine.gave_up)
    tries = len(processes)
    for _ in range(20):
        assert "GET /v1/engines says why" in str(fleet.want("broken"))
        fleet.settle()
        idle_keeper.look()
    assert len(processes) == tries
    (state,) = fleet.states()
    assert state.state == "failing"
    assert "SafetensorError" in str(state.reason)
    (Path(broken.path) / "repaired").touch()
    monkeypatch.setattr(module, "AGAIN", 0.0)
    fleet.want("broken")
    fleet.settle()
    eventually(lambda: fleet.route("broken"))
    assert len(processes) == tries + 1


@pytest.mark.usefixtures("long_ago")
def test_the_engine_of_the_base_in_the_settings_is_told_of_for_ever(
    fleet: Fleet, idle_keeper: Keeper, make_base: Callable[..., Base], eventually: Eventually
) -> None:
    """It may be a machine of its own that comes up after an hour."""
    fleet.keep(make_base("broken"), 8)
    eventually(lambda: fleet.states()[0].state == "failing")
    idle_keeper.look()
    assert fleet.bases() == {"broken"}
