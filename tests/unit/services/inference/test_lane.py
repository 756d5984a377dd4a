"""Inference under the real loop on a real bus: many items at once, an engine that does not come up, items that are cancelled."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.inference.engine import Engine
from services.inference.fleet import Fleet
from services.inference.handlers import DEATHS, WIDTH, Inference
from services.inference.keeper import Keeper
from understudy.bases import Base
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import (
    CancelRequested,
    DeadLetter,
    ItemFailed,
    ModelServed,
    Progress,
    RunDeleted,
    ScoringRequested,
    ServingRequested,
    decode,
)
from understudy.belt.folds.reader import Reader
from understudy.belt.loop import Loop
from understudy.plan import Plan
from understudy.service.child import Child
from understudy.terms import Artifact

MakePlan = Callable[..., Plan]
RequestOf = Callable[..., ServingRequested]
Put = Callable[..., Artifact]
Eventually = Callable[..., None]
TOPICS = ["model-served", "scoring-requested", "run-control", "progress", "dead-letters"]


@pytest.fixture
def bus(tmp_path: Path) -> EmbeddedBus:
    return EmbeddedBus(tmp_path / "bus.sqlite")


@pytest.fixture
def lane(bus: EmbeddedBus, inference: Inference, fleet: Fleet, keeper: Keeper, log: Any) -> Iterator[Loop]:
    """Inference's loop at work, with the folds that it obeys."""
    stop, reader = threading.Event(), Reader(bus, [log.control, log.runs, log.models, keeper])
    loop = Loop(
        bus,
        inference.lane(),
        log.control,
        ready=reader.caught_up.wait,
        stop=stop,
        backoff=0.05,
    )
    threads = [threading.Thread(target=reader.follow, args=(stop,)), threading.Thread(target=loop.run)]
    for thread in threads:
        thread.start()
    yield loop
    stop.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def said(bus: EmbeddedBus, kind: type) -> list[Any]:
    messages = [decode(record.value) for record in bus.replay(TOPICS) if record]
    return [message for message in messages if isinstance(message, kind)]


def waiting(bus: EmbeddedBus) -> int:
    return sum(bus.lag("inference").values())


@pytest.mark.usefixtures("lane")
def test_a_base_that_does_not_come_up_fails_its_items_and_holds_up_nobody_else(
    bus: EmbeddedBus,
    make_base: Callable[..., Base],
    plan: MakePlan,
    request_of: RequestOf,
    put: Put,
    eventually: Eventually,
) -> None:
    make_base("broken-late")
    made, adapter = plan("broken-late", "tiny"), put("one")
    runs = [f"r{number}" for number in range(4)]
    for run in runs:
        bus.publish(request_of(made, "base@broken-late", run=run), request_of(made, "v@broken-late", adapter, run=run))
        bus.publish(request_of(made, "base@tiny", run=run), request_of(made, "v@tiny", adapter, run=run))
    eventually(lambda: len(said(bus, ModelServed)) == 2 * len(runs), 15)
    assert not said(bus, ItemFailed), "served while the other engine is still tried"
    eventually(lambda: not waiting(bus), 15)
    failed = said(bus, ItemFailed)
    assert sorted((fact.run, fact.item) for fact in failed) == sorted(
        (run, item) for run in runs for item in ("base@broken-late", "v@broken-late")
    )
    assert all("SafetensorError: incomplete metadata" in fact.reason for fact in failed)
    assert len(said(bus, ScoringRequested)) == 2 * len(runs)


@pytest.mark.usefixtures("lane")
def test_many_items_of_one_base_at_once_are_each_served_and_measured_one_after_the_other(
    bus: EmbeddedBus,
    fleet: Fleet,
    base: Base,
    plan: MakePlan,
    request_of: RequestOf,
    put: Put,
    probes: Callable[[float], str],
    eventually: Eventually,
) -> None:
    made = plan("tiny")
    adapters = [put(f"a{number}", probe__json=probes(-2.0)) for number in range(WIDTH)]
    bus.publish(*(request_of(made, "v@tiny", each, run=f"r{number}") for number, each in enumerate(adapters)))
    eventually(lambda: not waiting(bus), 30)
    served = said(bus, ModelServed)
    assert {message.adapter for message in served} == set(adapters)
    assert len(served) == len(adapters)
    assert not said(bus, DeadLetter)
    eventually(lambda: all(fleet.route(message.model) for message in served))
    most = httpx.get(f"{fleet.ensure(base, 8).url}/most", trust_env=False).json()["most"]
    assert most == 1


@pytest.mark.usefixtures("lane")
def test_an_item_that_waits_for_its_engine_is_let_go_when_its_run_is_cancelled(
    bus: EmbeddedBus, make_base: Callable[..., Base], plan: MakePlan, request_of: RequestOf, eventually: Eventually
) -> None:
    make_base("slow")
    bus.publish(request_of(plan("slow"), "base@slow"))
    eventually(lambda: said(bus, Progress))
    started = time.monotonic()
    bus.publish(CancelRequested(run="r"))
    eventually(lambda: not waiting(bus), 3)
    assert time.monotonic() - started < 2
    assert not said(bus, ItemFailed) + said(bus, ModelServed) + said(bus, DeadLetter)


@pytest.mark.usefixtures("lane")
def test_an_item_in_the_gate_is_let_go(
    bus: EmbeddedBus,
    fleet: Fleet,
    base: Base,
    plan: MakePlan,
    request_of: RequestOf,
    put: Put,
    eventually: Eventually,
) -> None:
    """Although the engine would be busy with it for half a minute; and the next one has its turn."""
    engine = fleet.ensure(base, 8)
    assert engine.wait_ready(10)
    bus.publish(request_of(plan("tiny"), "v@tiny", put("one", slow="30")))
    eventually(lambda: [p for p in said(bus, Progress) if p.step == "checking against training"])
    started = time.monotonic()
    bus.publish(CancelRequested(run="r", item="v@tiny"))
    eventually(lambda: not waiting(bus), 3)
    assert time.monotonic() - started < 2
    bus.publish(request_of(plan("tiny", name="other"), "v@tiny", put("two"), run="other"))
    eventually(lambda: said(bus, ModelServed))


@pytest.mark.usefixtures("lane")
def test_a_run_that_is_deleted_while_it_is_served_leaves_nothing(
    bus: EmbeddedBus, fleet: Fleet, base: Base, plan: MakePlan, request_of: RequestOf, put: Put, eventually: Eventually
) -> None:
    engine = fleet.ensure(base, 8)
    assert engine.wait_ready(10)
    made = plan("tiny")
    bus.publish(request_of(made, "v@tiny", put("one")), request_of(made, "w@tiny", put("two", slow="30")))
    eventually(lambda: len(said(bus, ModelServed)) == 1)
    name = said(bus, ModelServed)[0].model
    eventually(lambda: fleet.route(name))
    bus.publish(RunDeleted(run="r"))
    eventually(lambda: not fleet.route(name), 3)
    eventually(lambda: not waiting(bus), 3)
    assert [model.name for model in fleet.models()] == ["tiny"]


@pytest.mark.usefixtures("lane")
def test_an_engine_that_is_killed_again_and_again_fails_nothing_that_is_measured_or_waits(
    bus: EmbeddedBus,
    fleet: Fleet,
    base: Base,
    plan: MakePlan,
    request_of: RequestOf,
    put: Put,
    processes: list[Child],
    eventually: Eventually,
) -> None:
    """Five times, as often as one item is tried; each time somebody is measured, and nobody has passed yet."""
    engine = fleet.ensure(base, 8)
    assert engine.wait_ready(10)
    adapters = [put(f"a{number}", slow="0.5") for number in range(4)]
    bus.publish(*(request_of(plan("tiny"), "v@tiny", each, run=f"r{n}") for n, each in enumerate(adapters)))
    for kills in range(1, 6):
        eventually(lambda life=kills: engine.lives == life and measuring(engine))
        os.killpg(processes[-1].pid, signal.SIGKILL)
    eventually(lambda: not waiting(bus), 30)
    assert {message.adapter for message in said(bus, ModelServed)} == set(adapters)
    assert not said(bus, ItemFailed)


@pytest.mark.usefixtures("lane")
def test_an_adapter_that_ends_the_engine_each_time_fails_alone_and_says_so(
    bus: EmbeddedBus,
    fleet: Fleet,
    base: Base,
    plan: MakePlan,
    request_of: RequestOf,
    put: Put,
    processes: list[Child],
    eventually: Eventually,
) -> None:
    assert fleet.ensure(base, 8).wait_ready(10)
    adapters = [put("deadly", deadly=""), *(put(f"a{number}") for number in range(5))]
    bus.publish(*(request_of(plan("tiny"), "v@tiny", each, run=f"r{n}") for n, each in enumerate(adapters)))
    eventually(lambda: not waiting(bus), 30)
    assert {message.adapter for message in said(bus, ModelServed)} == set(adapters[1:])
    (failed,) = said(bus, ItemFailed)
    assert failed.run == "r0"
    assert "ended 5 times while it measured this adapter" in failed.reason
    assert len(processes) <= DEATHS + 1


def measuring(engine: Engine) -> bool:
    """Whether the engine measures something right now."""
    try:
        return bool(httpx.get(f"{engine.url}/most", trust_env=False).json()["busy"])
    except httpx.HTTPError:
        return False
