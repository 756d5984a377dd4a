"""A number of engines, whoever asks for how many bases: who goes, who stays, who waits and is told so, and that all come through."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import httpx
import pytest

from services.inference import fleet as fleet_module
from services.inference import places
from services.inference.fleet import Fleet
from services.inference.handlers import Inference
from services.inference.places import NoPlace
from services.inference.settings import InferenceSettings
from understudy.bases import Base
from understudy.belt.contracts import (
    ItemPlanned,
    ItemScored,
    ModelServed,
    Progress,
    RunRequested,
    ScoringRequested,
    ServingRequested,
)
from understudy.errors import Invalid
from understudy.interrupt import Interrupted
from understudy.plan import Plan
from understudy.service.child import Child
from understudy.service.token import internal_token
from understudy.terms import Artifact
from understudy.testing import drain

MakeBase = Callable[..., Base]
MakePlan = Callable[..., Plan]
RequestOf = Callable[..., ServingRequested]
Eventually = Callable[..., None]
one = pytest.mark.parametrize("settings", [1], indirect=True)
two = pytest.mark.parametrize("settings", [2], indirect=True)


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine counts as idle at once."""
    monkeypatch.setattr(places, "REST", 0.0)


def alive(processes: list[Child]) -> int:
    return sum(process.poll() is None for process in processes)


def ensured(fleet: Fleet, base: Base, seconds: float = 10) -> None:
    """Have the engine of `base`, as soon as there is a place, and wait for it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            assert fleet.ensure(base, 8).wait_ready(10)
            return
        except NoPlace:
            assert time.monotonic() < deadline, "no place"
            time.sleep(0.02)


@two
@pytest.mark.usefixtures("restless")
def test_the_least_recently_used_makes_room_and_is_gone_before_the_next_starts(
    fleet: Fleet, base: Base, make_base: MakeBase, processes: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    other, third = make_base("other"), make_base("third")
    most: list[int] = []
    start = fleet._engine

    def started(*arguments: Any) -> Any:
        most.append(alive(processes))
        return start(*arguments)

    monkeypatch.setattr(fleet, "_engine", started)
    ensured(fleet, base)
    ensured(fleet, other)
    assert fleet.route("tiny"), "which makes it the one that was used last"
    ensured(fleet, third)
    assert fleet.bases() == {"tiny", "third"}
    assert most == [0, 1, 1], "its memory is free by then"
    assert alive(processes) == 2
    assert fleet.route("other") is None


@one
@pytest.mark.usefixtures("restless")
def test_one_that_is_kept_or_held_or_scored_on_does_not_go_however_long_one_waits(
    fleet: Fleet, base: Base, make_base: MakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_base("other")
    ensured(fleet, base)
    monkeypatch.setattr(places, "PATIENT", 0.0)
    held = fleet.ensure(base, 8, hold=True)
    with pytest.raises(NoPlace, match=r"the one engine that there may be is in use \(UNDERSTUDY_MAX_ENGINES\)"):
        fleet.ensure(other, 8)
    fleet.give_back(held)
    fleet.note(needed=set(), scored={"tiny"}, queued=set())
    with pytest.raises(NoPlace):
        fleet.ensure(other, 8)
    fleet.note(needed=set(), scored=set(), queued=set())
    fleet.keep(base, 8)
    with pytest.raises(Invalid, match=r"those of tiny stay.*Raise that number"):
        fleet.ensure(other, 8)
    assert fleet.bases() == {"tiny"}


@one
def test_one_that_was_asked_a_moment_ago_or_has_items_to_be_scored_goes_only_for_who_waited_long(
    fleet: Fleet, base: Base, make_base: MakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_base("other")
    ensured(fleet, base)
    for queued, rest in ((set(), 60.0), ({"tiny"}, 0.0)):
        monkeypatch.setattr(places, "REST", rest)
        fleet.note(needed=set(), scored=set(), queued=queued)
        for _ in range(3):
            with pytest.raises(NoPlace):
                fleet.ensure(other, 8)
        assert fleet.bases() == {"tiny"}
    monkeypatch.setattr(places, "PATIENT", 0.0)
    ensured(fleet, other)


@one
@pytest.mark.usefixtures("restless")
def test_a_request_that_is_under_way_is_answered_before_its_engine_ends(
    fleet: Fleet,
    base: Base,
    make_base: MakeBase,
    put: Callable[..., Artifact],
    settings: InferenceSettings,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = make_base("other")
    ensured(fleet, base)
    engine = fleet.ensure(base, 8)
    fleet.folder.put("ft:tiny:slow", put("slow", slow="3"))
    answered: list[int] = []

    def ask() -> None:
        key = {"authorization": f"Bearer {internal_token(settings)}"}
        body = {"model": "ft:tiny:slow", "prompt": [[1, 2]], "prompt_logprobs": 0}
        url = f"{engine.url}/v1/completions"
        answered.append(httpx.post(url, json=body, headers=key, trust_env=False, timeout=20).status_code)

    asking = Thread(target=ask)
    asking.start()
    eventually(lambda: engine.under_way == 1)
    with pytest.raises(NoPlace):
        fleet.ensure(other, 8)
    assert fleet.bases() == {"tiny"}, "it has something in hand"
    monkeypatch.setattr(places, "PATIENT", 0.0)
    with pytest.raises(NoPlace):
        fleet.ensure(other, 8)
    assert fleet.route("tiny") is None, "nobody is sent to it any more"
    assert [state.state for state in fleet.states()] == ["ending"]
    assert not answered
    ensured(fleet, other)
    asking.join()
    assert answered == [200]


@two
def test_many_runs_on_invented_bases_start_no_more_engines_and_each_is_told_why(
    fleet: Fleet,
    inference: Inference,
    make_base: MakeBase,
    plan: MakePlan,
    request_of: RequestOf,
    processes: list[Child],
    eventually: Eventually,
) -> None:
    """Sixteen at once, one after the other in two places: those that are given up make room."""
    names = [f"broken{number}" for number in range(16)]
    for name in names:
        make_base(name)
    requests = [request_of(plan(name), f"base@{name}", run=name) for name in names]
    said: list[str] = []
    most: list[int] = []

    def served(request: ServingRequested) -> str:
        try:
            for message in inference.serve(request):
                if isinstance(message, Progress):
                    said.append(message.step)
                most.append(alive(list(processes)))
        except Invalid as error:
            return str(error)
        return "served"

    with ThreadPoolExecutor(16) as pool:
        assert all("SafetensorError: incomplete metadata" in why for why in pool.map(served, requests))
    assert max(most) <= 2
    assert (
        "waiting for a place for its engine: all 2 engines that there may be are in use (UNDERSTUDY_MAX_ENGINES)"
        in said
    )
    assert {state.state for state in fleet.states()} == {"failing"}
    eventually(lambda: alive(processes) == 0)


@one
@pytest.mark.usefixtures("keeper")
def test_two_runs_on_two_bases_share_one_place_and_each_item_is_scored_while_its_engine_stays(
    fleet: Fleet,
    inference: Inference,
    log: Any,
    make_base: MakeBase,
    plan: MakePlan,
    request_of: RequestOf,
    put: Callable[..., Artifact],
    processes: list[Child],
    ride: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(places, "REST", 2.5)  # more than what passes until the keeper has seen what is scored
    make_base("other")
    adapter = put("one")
    items = [(name, item) for item in ("base", "v", "w") for name in ("tiny", "other")]
    ride(
        fleet,
        inference,
        log,
        [request_of(plan(b, name=b), f"{i}@{b}", adapter if i != "base" else None, run=b) for b, i in items],
    )
    assert len(processes) <= 6, "not one start for each item"
    assert alive(processes) == 1


@pytest.fixture
def ride(put: Callable[..., Artifact], store: Any) -> Callable[..., None]:
    """Have these items served all at once, and score them one after the other as an evaluator does."""
    from queue import SimpleQueue

    def ride(fleet: Fleet, inference: Inference, log: Any, requests: list[ServingRequested]) -> None:
        for run in {request.run for request in requests}:
            mine = [request for request in requests if request.run == run]
            log.say(*(ItemPlanned(run=run, item=r.item, index=r.index, base=run) for r in mine))
            log.say(RunRequested(run=run, plan=mine[0].plan, name=run, bases=(run,), items=len(mine)))
        log.say(*requests)
        to_score: SimpleQueue[Any] = SimpleQueue()

        def serve(request: ServingRequested) -> None:
            served = drain(inference.serve(request))
            log.say(*served)
            to_score.put(served[1])

        for request in requests:
            Thread(target=serve, args=(request,), daemon=True).start()
        for _ in requests:
            scoring = to_score.get(timeout=60)
            assert isinstance(scoring, ScoringRequested)
            log.say(Progress.answering(scoring, station="evaluator", step="in-domain"))
            deadline = time.monotonic() + 30
            while not fleet.route(scoring.model):
                fleet.want(scoring.model)
                assert time.monotonic() < deadline, f"{scoring.model} is not asked any more"
                time.sleep(0.05)
            for _ in range(60):
                assert scoring.run in fleet.bases(), "its engine went while it was scored"
                time.sleep(0.05)
            log.say(
                ItemScored.answering(
                    scoring, answers=put(scoring.run + scoring.item), measures=put("m" + scoring.run + scoring.item)
                )
            )

    return ride


@one
@pytest.mark.usefixtures("keeper", "restless")
def test_requests_wait_for_a_place_and_hear_of_it(
    fleet: Fleet, base: Base, make_base: MakeBase, eventually: Eventually
) -> None:
    make_base("other")
    eventually(lambda: fleet.model("other"))
    ensured(fleet, base)
    held = fleet.ensure(base, 8, hold=True)
    eventually(lambda: "is in use (UNDERSTUDY_MAX_ENGINES)" in str(fleet.want("other")))
    fleet.give_back(held)

    def asked() -> bool:
        return bool(fleet.route("other") or fleet.want("other"))

    eventually(lambda: asked() and fleet.route("other"))


@one
@pytest.mark.usefixtures("restless")
def test_who_waited_long_has_the_place_before_more_items_of_the_other_base(
    fleet: Fleet, base: Base, make_base: MakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run whose items overlap would keep its engine to its end."""
    other = make_base("other")
    ensured(fleet, base)
    held = fleet.ensure(base, 8, hold=True)
    with pytest.raises(NoPlace):
        fleet.ensure(other, 8, hold=True)
    second = fleet.ensure(base, 8, hold=True)
    monkeypatch.setattr(places, "PATIENT", 0.0)
    with pytest.raises(NoPlace):
        fleet.ensure(base, 8, hold=True)
    fleet.give_back(held)
    fleet.give_back(second)
    ensured(fleet, other)


@pytest.mark.usefixtures("keeper")
def test_a_model_that_nobody_serves_starts_nothing(fleet: Fleet, log: Any, processes: list[Child]) -> None:
    """Nor before it is known what is served."""
    log.caught_up = False
    for name in ("nobody", "ft:nobody", "owner/name@main", "/etc"):
        assert fleet.want(name) is None
    time.sleep(0.3)
    assert not fleet.bases()
    assert not processes


@pytest.mark.usefixtures("keeper")
def test_what_is_said_of_a_base_that_is_gone_names_no_folder(
    fleet: Fleet,
    served: Callable[..., ModelServed],
    put: Callable[..., Artifact],
    tmp_path: Path,
    eventually: Eventually,
) -> None:
    served("ft:one", put("one"), base=str(tmp_path / "deep" / "mine"), parent="mine")

    def why() -> str:
        try:
            fleet.want("ft:one")
        except Invalid as error:
            return str(error)
        return ""

    eventually(why)
    assert why() == "There is no base model `mine`"


def test_a_service_that_ends_fails_no_message(
    fleet: Fleet, inference: Inference, plan: MakePlan, request_of: RequestOf
) -> None:
    """It is given back: neither an error of the message nor one more try of it."""
    fleet.close()
    with pytest.raises(Interrupted):
        list(inference.serve(request_of(plan("tiny"), "base@tiny")))


@pytest.mark.usefixtures("keeper")
def test_a_request_that_ends_the_engine_each_time_fails_nobodys_item(
    fleet: Fleet,
    inference: Inference,
    base: Base,
    plan: MakePlan,
    request_of: RequestOf,
    put: Callable[..., Artifact],
    processes: list[Child],
    settings: InferenceSettings,
    eventually: Eventually,
) -> None:
    """Somebody sends it as soon as the engine is back, for as long as items are measured."""
    ensured(fleet, base)
    fleet.folder.put("ft:tiny:deadly", put("deadly", deadly=""))
    stop = Event()

    def attack() -> None:
        key = {"authorization": f"Bearer {internal_token(settings)}"}
        body = {"model": "ft:tiny:deadly", "prompt": [[1, 2]]}
        while not stop.is_set():
            if url := fleet.route("tiny"):
                try:
                    httpx.post(f"{url}/v1/completions", json=body, headers=key, trust_env=False)
                except httpx.HTTPError:
                    pass
            time.sleep(0.01)

    attacker = Thread(target=attack)
    attacker.start()
    try:
        for number in range(3):
            adapter = put(f"a{number}", slow="0.3")
            served = drain(inference.serve(request_of(plan("tiny", name=f"n{number}"), "v@tiny", adapter)))
            assert [type(message) for message in served] == [ModelServed, ScoringRequested]
    finally:
        stop.set()
        attacker.join()
    assert len(processes) > 3
    assert [state.state for state in fleet.states()] != ["failing"]


def test_an_engine_that_was_given_up_is_not_told_of_for_ever(
    fleet: Fleet, make_base: MakeBase, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = fleet.ensure(make_base("broken"), 8)
    eventually(lambda: engine.gave_up)
    fleet.let_go()
    assert [state.state for state in fleet.states()] == ["failing"]
    monkeypatch.setattr(fleet_module, "FORGOTTEN", 0.0)
    fleet.let_go()
    assert not fleet.states()
