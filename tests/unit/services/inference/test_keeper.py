"""Engines are warm before the first item comes: of open runs, one for a base, not too many, and whatever their bases are."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from services.inference.fleet import Fleet
from services.inference.keeper import Keeper
from services.inference.settings import InferenceSettings
from understudy.bases import Base
from understudy.belt.contracts import CancelRequested, ItemPlanned, RunClosed, RunRequested
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


def test_the_bases_of_an_open_run_are_warm_and_each_has_one_engine(
    fleet: Fleet,
    keeper: Keeper,
    ask: Callable[..., None],
    plan: Callable[..., Plan],
    make_base: Callable[..., Base],
    processes: list[Child],
    eventually: Eventually,
) -> None:
    make_base("other")
    ask("one", plan("tiny", "other"))
    eventually(lambda: fleet.route("tiny") and fleet.route("other"))
    ask("two", plan("tiny", rank=64))
    eventually(lambda: len(processes) == 3)
    assert fleet.engine_of(plan("tiny"), 0).rank == 64, (
        "restarted for the larger adapters before the first of them comes"
    )
    time.sleep(0.3)
    assert len(processes) == 3


def test_no_more_are_started_than_the_bound_says_and_then_when_they_are_asked_for(
    fleet: Fleet, keeper: Keeper, ask: Callable[..., None], plan: Callable[..., Plan], make_base: Callable[..., Base]
) -> None:
    for name in ("b", "c", "d"):
        make_base(name)
    ask("one", plan("tiny", "b", "c", "d"))
    deadline = time.monotonic() + 5
    while len(fleet.bases()) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    assert fleet.bases() == {"tiny", "b"}, "the fixture's bound is two"
    fleet.engine_of(plan("tiny", "b", "c", "d"), 3)
    assert fleet.bases() == {"tiny", "b", "d"}


def test_a_run_that_is_over_warms_nothing(
    fleet: Fleet, keeper: Keeper, log: Any, ask: Callable[..., None], plan: Callable[..., Plan], eventually: Eventually
) -> None:
    log.caught_up = False
    ask("over", plan("tiny"))
    log.say(CancelRequested(run="over"))
    log.say(RunClosed(run="over", status="cancelled", outcome=outcome(log.control.book("over"))))
    assert not log.runs.open()
    log.caught_up = True
    fleet.wake.set()
    time.sleep(0.5)
    assert not fleet.bases()


def test_a_base_or_plan_that_cannot_be_used_is_logged_and_holds_up_nothing(
    fleet: Fleet,
    keeper: Keeper,
    ask: Callable[..., None],
    plan: Callable[..., Plan],
    settings: InferenceSettings,
    make_base: Callable[..., Base],
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_base("gone")
    made = plan("gone", "tiny")
    (settings.models / "gone" / "config.json").unlink()
    ask("no-plan", plan("tiny"), Artifact(sha256="0" * 64))
    with caplog.at_level(logging.WARNING):
        ask("one", made)
        eventually(lambda: fleet.route("tiny"))
    assert fleet.bases() == {"tiny"}
    time.sleep(2.5)
    said = sorted(record.getMessage() for record in caplog.records if record.name == "services.inference.keeper")
    assert len(said) == 2, "said once, not at every look"
    assert said[0].startswith("run no-plan: ")
    assert said[1].startswith("run one, base `gone`: ")


def test_a_base_whose_engine_does_not_come_up_warms_no_second_one(
    fleet: Fleet,
    keeper: Keeper,
    ask: Callable[..., None],
    plan: Callable[..., Plan],
    make_base: Callable[..., Base],
    eventually: Eventually,
) -> None:
    make_base("broken")
    ask("one", plan("broken", "tiny"))
    eventually(lambda: fleet.route("tiny"))
    eventually(lambda: [state.state for state in fleet.states()] == ["failing", "ready"])
