"""From ModelTrained to ModelServed, with a stub engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from services.inference.fleet import Fleet
from services.inference.handlers import Inference
from understudy.belt.contracts import Artifact, ModelServed, ModelTrained, Progress, RunRequested
from understudy.errors import Invalid
from understudy.recipe import Recipe
from understudy.service.child import Child
from understudy.testing import drain

Trained = Callable[[Artifact | None], ModelTrained]


def probes(adapter_logprob: float) -> str:
    probe = {"token_ids": [1, 2, 3], "base_logprobs": [-1, -1], "adapter_logprobs": [adapter_logprob] * 2}
    return json.dumps({"probes": [probe]})


@pytest.fixture
def inference(fleet: Fleet) -> Inference:
    return Inference(fleet, tolerance=0.05)


def test_a_requested_run_warms_the_engine_without_waiting(inference: Inference, fleet: Fleet, recipe: Recipe) -> None:
    assert drain(inference.warm(RunRequested(run="r", recipe=recipe))) == []
    assert [state.base for state in fleet.states()] == ["tiny"]
    assert fleet.ensure("tiny", 8).wait_ready(10)


def test_an_adapter_is_served_under_its_name_after_the_gate(
    inference: Inference, fleet: Fleet, trained: Trained, put: Callable[..., Artifact]
) -> None:
    message = trained(put("one", probe__json=probes(-2.0)))
    outputs = list(inference.serve(message))
    (served,) = drain(outputs)
    assert isinstance(served, ModelServed)
    assert message.adapter
    assert served.model == f"ft:tiny:films:v:{message.adapter.sha256[:8]}"
    assert served.adapter == message.adapter
    assert fleet.route(served.model), "answers at once, before the ledger has read the message"
    steps = [output.step for output in outputs if isinstance(output, Progress)]
    assert steps[-2:] == ["loading", "checking against training"]
    assert drain(inference.serve(message)) == [served], "a redelivery gives the same answer"


def test_an_adapter_that_fails_the_gate_is_not_left_on_the_engine(
    inference: Inference, fleet: Fleet, trained: Trained, put: Callable[..., Artifact]
) -> None:
    with pytest.raises(Invalid, match="otherwise than training did"):
        list(inference.serve(trained(put("one", probe__json=probes(-1.5)))))
    assert fleet.ensure("tiny", 8).serving == {"tiny"}


def test_an_adapter_that_the_engine_refuses_is_invalid(
    inference: Inference, trained: Trained, put: Callable[..., Artifact]
) -> None:
    with pytest.raises(Invalid, match="cannot be loaded"):
        list(inference.serve(trained(put("one", bad=""))))


def test_the_base_is_served_under_its_own_name(inference: Inference, trained: Trained) -> None:
    (served,) = drain(inference.serve(trained(None)))
    assert isinstance(served, ModelServed)
    assert (served.model, served.adapter) == ("tiny", None)


def test_waiting_for_the_engine_is_told(inference: Inference, fleet: Fleet, trained: Trained, monkeypatch: Any) -> None:
    engine = fleet.ensure("tiny", 8)
    assert engine.wait_ready(10)
    waits = iter([False, False, True])
    monkeypatch.setattr(engine, "wait_ready", lambda timeout: next(waits))
    told = [output for output in inference.serve(trained(None)) if isinstance(output, Progress)]
    assert [progress.step for progress in told] == ["starting the engine"] * 2
    assert all("elapsed_seconds" in progress.figures for progress in told)


def test_an_engine_that_does_not_come_up_fails_the_variant(
    inference: Inference, fleet: Fleet, trained: Trained, processes: list[Child], monkeypatch: Any
) -> None:
    engine = fleet.ensure("tiny", 8)
    monkeypatch.setattr(engine, "wait_ready", lambda timeout: False)
    monkeypatch.setattr(engine, "failure", "The engine ended while it started.")
    with pytest.raises(Invalid, match="ended while it started"):
        list(inference.serve(trained(None)))
