"""Engines are warm before the first item comes: of open runs, one for a base, not too many, and whatever their bases are. Those
that do not come up are let go when nobody needs them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from services.inference import fleet as module
from services.inference.fleet import Fleet
from services.inference.keeper import Keeper
from services.inference.settings import InferenceSettings
from understudy.bases import Base
from understudy.belt.contracts import (
    CancelRequested,
    ItemFailed,
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
    monkeypatch.setattr(module, "RECENT", 0.0)


@pytest.mark.usefixtures("keeper")
def test_a_run_that_comes_is_seen_at_once(
    fleet: Fleet, ask: Callable[..., None], plan: Callable[..., Plan], eventually: Eventually
) -> None:
    ask("one", plan("tiny"))
    eventually(fleet.bases, seconds=1)


def test_the_bases_of_an_open_run_are_warm_and_each_has_one_engine(
    fleet: Fleet,
    idle_keeper: Keeper,
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
    assert fleet.engine_of(plan("tiny"), 0).rank == 64, (
        "restarted for the larger adapters before the first of them comes"
    )
    idle_keeper.look()
    assert [state.state for state in fleet.states()] == ["ready", "ready"]
    assert len(processes) == 3


def test_no_more_are_started_than_the_bound_says_and_then_when_they_are_asked_for(
    fleet: Fleet,
    idle_keeper: Keeper,
    ask: Callable[..., None],
    plan: Callable[..., Plan],
    make_base: Callable[..., Base],
) -> None:
    for name in ("b", "c", "d"):
        make_base(name)
    ask("one", plan("tiny", "b", "c", "d"))
    for _ in range(2):
        idle_keeper.look()
        assert fleet.bases() == {"tiny", "b"}, "the fixture's bound is two"
    fleet.engine_of(plan("tiny", "b", "c", "d"), 3)
    assert fleet.bases() == {"tiny", "b", "d"}


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
def test_a_failing_engine_is_let_go_when_the_last_run_that_needs_it_is_over(
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
    """With its thread and its process; one that is up stays."""
    make_base("broken")
    ask("one", plan("broken", "tiny"))
    ask("two", plan("broken"))
    idle_keeper.look()
    eventually(lambda: [state.state for state in fleet.states()] == ["failing", "ready"])
    end("one", how)
    idle_keeper.look()
    assert fleet.bases() == {"broken", "tiny"}
    end("two", how)
    idle_keeper.look()
    assert fleet.bases() == {"tiny"}
    assert [state.base for state in fleet.states()] == ["tiny"]
    eventually(lambda: "engine-broken" not in {thread.name for thread in threading.enumerate()})
    assert sum(process.poll() is None for process in processes) == 1
    assert fleet.route("tiny")


@pytest.mark.usefixtures("long_ago")
def test_a_failing_engine_is_let_go_although_its_run_goes_on_with_other_bases(
    fleet: Fleet,
    idle_keeper: Keeper,
    log: Any,
    ask: Callable[..., None],
    plan: Callable[..., Plan],
    make_base: Callable[..., Base],
    eventually: Eventually,
) -> None:
    make_base("broken")
    made = plan("broken", "tiny")
    ask("one", made)
    idle_keeper.look()
    eventually(lambda: [state.state for state in fleet.states()] == ["failing", "ready"])
    for item in made.items:
        if made.base_of(item).name == "broken":
            log.say(ItemFailed(run="one", item=item.name, station="inference", reason="it does not come up"))
    for _ in range(2):
        idle_keeper.look()
        assert fleet.bases() == {"tiny"}, "nor is it started for that run again"


def test_a_failing_engine_that_was_let_go_is_started_again_for_a_request(
    fleet: Fleet,
    idle_keeper: Keeper,
    served: Callable[..., ModelServed],
    make_base: Callable[..., Base],
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While somebody asks, it stays, and the request hears why there is no answer."""
    broken = make_base("broken")
    served("broken", base="broken")  # it came up once
    engine = fleet.ensure(broken, 8)
    eventually(lambda: engine.failure)
    idle_keeper.look()
    assert fleet.bases() == {"broken"}, "asked for a moment ago"
    monkeypatch.setattr(module, "RECENT", 0.5)
    engine.asked -= 1
    assert fleet.want("broken") == engine.failure
    idle_keeper.look()
    assert fleet.bases() == {"broken"}
    engine.asked -= 1
    idle_keeper.look()
    assert not fleet.bases()
    assert fleet.want("broken") is None
    fleet.settle()
    assert fleet.bases() == {"broken"}
    eventually(lambda: "SafetensorError" in str(fleet.want("broken")))


@pytest.mark.usefixtures("long_ago")
def test_the_engine_of_the_base_in_the_settings_is_tried_for_ever(
    fleet: Fleet, idle_keeper: Keeper, make_base: Callable[..., Base], eventually: Eventually
) -> None:
    """It may be a machine of its own that comes up after an hour."""
    fleet.keep(make_base("broken"), 8)
    eventually(lambda: fleet.states()[0].state == "failing")
    idle_keeper.look()
    assert fleet.bases() == {"broken"}
