"""From ServingRequested to what comes next, with stub engines."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.inference.fleet import Fleet
from services.inference.handlers import Inference
from understudy.bases import Base
from understudy.belt.contracts import ItemServed, Message, ModelServed, Progress, ScoringRequested, ServingRequested
from understudy.errors import Invalid, NotFound
from understudy.plan import Plan
from understudy.terms import Artifact, Gate
from understudy.testing import drain

MakePlan = Callable[..., Plan]
RequestOf = Callable[..., ServingRequested]
Put = Callable[..., Artifact]
Eventually = Callable[..., None]


def served_names(fleet: Fleet) -> set[str]:
    """What lies in the folder under a name of its own."""
    return {path.name for path in fleet.folder.path("x").parent.glob("ft:*")}


def steps(outputs: list[Message]) -> list[str]:
    return [output.step for output in outputs if isinstance(output, Progress)]


def test_an_adapter_is_served_under_its_name_after_the_gate_and_goes_on_to_be_scored(
    inference: Inference, fleet: Fleet, plan: MakePlan, request_of: RequestOf, put: Put, probes: Callable[[float], str]
) -> None:
    made = plan("tiny", needs={"evaluator": ("vision",)})
    request = request_of(made, "v@tiny", put("one", probe__json=probes(-2.0)), generation=3, attempt=2)
    outputs = list(inference.serve(request))
    served, scoring = drain(outputs)
    assert request.adapter
    name = f"ft:tiny:films:v@tiny:{request.adapter.sha256[:8]}"
    about = {"run": "r", "generation": 3, "attempt": 2, "item": "v@tiny", "adapter": request.adapter}
    gate = Gate(tokens=2, effect_nats=1, noise_nats=0, trained_effect_nats=1, slope=1, disagreement=0)
    assert served == ModelServed(**about, model=name, base="tiny", parent="tiny", rank=8, gate=gate)
    ride = {"index": request.index, "base": 0, "plan": request.plan, "needs": ("vision",)}
    assert scoring == ScoringRequested(**about, **ride, model=name, gate=gate)
    assert steps(outputs)[-2:] == ["loading", "checking against training"]
    progress = [output for output in outputs if isinstance(output, Progress)]
    assert {(each.generation, each.attempt, each.item) for each in progress} == {(3, 2, "v@tiny")}
    assert fleet.route(name), "answers at once, before anybody has read the message"
    assert drain(inference.serve(request)) == [served, scoring], "a redelivery gives the same answer"


def test_the_base_is_served_under_its_own_name(
    inference: Inference, fleet: Fleet, plan: MakePlan, request_of: RequestOf
) -> None:
    served, scoring = drain(inference.serve(request_of(plan("tiny"), "base@tiny")))
    assert isinstance(served, ModelServed)
    assert isinstance(scoring, ScoringRequested)
    assert (served.model, served.base, served.parent, served.rank, served.adapter) == ("tiny", "tiny", None, 1, None)
    assert (scoring.model, scoring.adapter) == ("tiny", None)
    assert fleet.route("tiny")


def test_an_item_whose_ride_ends_here_has_ended(
    inference: Inference, plan: MakePlan, request_of: RequestOf, put: Put
) -> None:
    request = request_of(plan("tiny", ends_at="served"), "v@tiny", put("one"), generation=2)
    served, ended = drain(inference.serve(request))
    assert isinstance(served, ModelServed)
    assert ended == ItemServed(run="r", generation=2, item="v@tiny", model=served.model)


def test_an_adapter_that_fails_the_gate_never_gets_its_name(
    inference: Inference,
    fleet: Fleet,
    base: Base,
    plan: MakePlan,
    request_of: RequestOf,
    put: Put,
    probes: Callable[[float], str],
) -> None:
    with pytest.raises(Invalid, match="otherwise than training did"):
        list(inference.serve(request_of(plan("tiny"), "v@tiny", put("one", probe__json=probes(-1.5)))))
    assert not served_names(fleet)
    engine = fleet.ensure(base, 8)
    assert engine.turn.acquire(timeout=1), "the next one has its turn"


def test_an_adapter_that_the_engine_refuses_is_invalid(
    inference: Inference, plan: MakePlan, request_of: RequestOf, put: Put
) -> None:
    with pytest.raises(Invalid, match="cannot be loaded"):
        list(inference.serve(request_of(plan("tiny"), "v@tiny", put("one", bad=""))))


def test_what_the_engine_refuses_of_one_that_it_has_taken_up_is_said_as_it_says_it(
    inference: Inference, plan: MakePlan, request_of: RequestOf, put: Put
) -> None:
    adapter = put("one", refuses="This model's maximum context length is 32 tokens")
    with pytest.raises(Invalid, match="maximum context length is 32 tokens"):
        list(inference.serve(request_of(plan("tiny"), "v@tiny", adapter)))


@pytest.mark.parametrize("outputs", [3, 4])
def test_one_that_is_closed_after_the_gate_is_not_admitted(
    inference: Inference, fleet: Fleet, base: Base, plan: MakePlan, request_of: RequestOf, put: Put, outputs: int
) -> None:
    """Up to the moment of its commit it may be cancelled, and then nobody will ever have heard of it."""
    engine = fleet.ensure(base, 8)
    assert engine.wait_ready(10)
    handling = inference.serve(request_of(plan("tiny"), "v@tiny", put("one")))
    said = [next(handling) for _ in range(outputs)]
    assert isinstance(said[-1], ModelServed if outputs == 3 else ScoringRequested)
    (name,) = served_names(fleet)
    handling.close()  # type: ignore[attr-defined]
    assert fleet.route(name) is None
    with pytest.raises(NotFound):
        fleet.want(name)


def test_waiting_for_the_engine_is_told_at_once_and_then_now_and_again(
    inference: Inference, make_base: Callable[..., Base], plan: MakePlan, request_of: RequestOf
) -> None:
    make_base("slow")
    handling = inference.serve(request_of(plan("slow"), "base@slow"))
    started = time.monotonic()
    first, second = next(handling), next(handling)
    assert time.monotonic() - started < 4
    for progress in (first, second):
        assert isinstance(progress, Progress)
        assert progress.step == "starting the engine"
    assert second.figures["elapsed_seconds"] > first.figures["elapsed_seconds"]  # type: ignore[union-attr]


def test_waiting_for_others_on_the_engine_is_told(
    inference: Inference, fleet: Fleet, base: Base, plan: MakePlan, request_of: RequestOf, put: Put
) -> None:
    engine = fleet.ensure(base, 8)
    with engine.turn:
        handling = inference.serve(request_of(plan("tiny"), "v@tiny", put("one")))
        waiting: Any = next(handling)
        while waiting.step in ("starting the engine", "loading"):
            waiting = next(handling)
        assert waiting.step == "waiting for its turn on the engine"
    assert len(drain(handling)) == 2


def test_an_engine_that_does_not_come_up_fails_the_item_with_its_last_words(
    inference: Inference, make_base: Callable[..., Base], plan: MakePlan, request_of: RequestOf
) -> None:
    make_base("broken")
    request = request_of(plan("broken"), "base@broken")
    with pytest.raises(Invalid, match="SafetensorError: incomplete metadata"):
        list(inference.serve(request))
    started = time.monotonic()
    with pytest.raises(Invalid, match="ended while it started"):
        list(inference.serve(request))
    assert time.monotonic() - started < 1, "the next one need not wait until it has died again"


def test_what_is_said_to_do_about_an_engine_that_does_not_come_up_works(
    inference: Inference,
    fleet: Fleet,
    make_base: Callable[..., Base],
    plan: MakePlan,
    request_of: RequestOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Repaired beside the weights: replayed, and its engine is started anew. With other weights: only a new run."""
    base = make_base("broken")
    request = request_of(plan("broken"), "base@broken")
    with pytest.raises(Invalid, match=r"half a minute .*replay the dead letter.*new run .*--fresh"):
        list(inference.serve(request))
    assert [state.state for state in fleet.states()] == ["failing"]
    monkeypatch.setattr("services.inference.fleet.AGAIN", 0.0)
    (Path(base.path) / "repaired").touch()
    replayed = request.model_copy(update={"attempt": 2})
    assert [type(message) for message in drain(inference.serve(replayed))] == [ModelServed, ScoringRequested]
    (Path(base.path) / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(Invalid, match="was changed since the run was planned"):
        list(inference.serve(replayed))
