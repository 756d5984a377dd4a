"""Which model is on which engine, and what a restart on an empty disk remembers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from services.inference.api import router
from services.inference.fleet import Fleet
from services.inference.settings import InferenceSettings
from understudy.belt.contracts import Artifact, ModelServed, ModelTrained
from understudy.errors import Invalid
from understudy.service.web import NotFound, add_errors

Trained = Callable[[Artifact | None], ModelTrained]


def test_a_model_of_the_ledger_is_brought_up_when_it_is_wanted(
    fleet: Fleet, ledger: Any, trained: Trained, put: Callable[..., Artifact], eventually: Callable[..., None]
) -> None:
    adapter = put("one")
    ledger.messages = [ModelServed.following(trained(adapter), model="ft:one", adapter=adapter)]
    assert fleet.route("ft:one") is None
    assert fleet.want("ft:one") is None
    eventually(lambda: fleet.route("ft:one"))
    assert fleet.route("tiny") == fleet.route("ft:one")


def test_a_model_served_by_another_replica_is_loaded_when_it_is_wanted(
    fleet: Fleet, ledger: Any, trained: Trained, put: Callable[..., Artifact], eventually: Callable[..., None]
) -> None:
    assert fleet.ensure("tiny", 8).wait_ready(10)
    adapter = put("one")
    ledger.messages = [ModelServed.following(trained(adapter), model="ft:one", adapter=adapter)]
    fleet.want("ft:one")
    eventually(lambda: fleet.route("ft:one"))


def test_a_bundled_base_answers_without_any_run(fleet: Fleet, eventually: Callable[..., None]) -> None:
    fleet.want("tiny")
    eventually(lambda: fleet.route("tiny"))


def test_an_unknown_model_is_not_found_once_the_log_was_read(fleet: Fleet, ledger: Any) -> None:
    ledger.caught_up = False
    assert fleet.want("nobody") is None
    ledger.caught_up = True
    with pytest.raises(NotFound, match="Models here: tiny"):
        fleet.want("nobody")


def test_two_bases_of_one_name_are_not_mixed_up(fleet: Fleet, settings: InferenceSettings) -> None:
    other = settings.models.parent / "elsewhere" / "tiny"
    other.mkdir(parents=True)
    (other / "config.json").write_text("{}")
    fleet.ensure("tiny", 8)
    with pytest.raises(Invalid, match="same name"):
        fleet.ensure(str(other), 8)


def test_an_engine_is_made_for_the_largest_adapter_it_has_served(
    fleet: Fleet, ledger: Any, trained: Trained, put: Callable[..., Artifact]
) -> None:
    adapter = put("one")
    message = ModelServed.following(trained(adapter), model="ft:one", adapter=adapter)
    lora = message.recipe.training.lora.model_copy(update={"r": 64})
    recipe = message.recipe.model_copy(update={"training": message.recipe.training.model_copy(update={"lora": lora})})
    ledger.messages = [message.model_copy(update={"recipe": recipe})]
    assert fleet.ensure("tiny", 8).rank == 64


def test_models_are_listed_in_openais_shape(
    fleet: Fleet, ledger: Any, trained: Trained, put: Callable[..., Artifact]
) -> None:
    adapter = put("one")
    ledger.messages = [
        ModelServed.following(trained(adapter), model="ft:owner/tiny:x:v:1", adapter=adapter),
        ModelServed.following(trained(None), model="tiny", adapter=None),
    ]
    app = FastAPI()
    add_errors(app)
    app.include_router(router(fleet))
    client = TestClient(app)
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [(card["id"], card["parent"], card["root"]) for card in listed["data"]] == [
        ("tiny", None, "tiny"),
        ("ft:owner/tiny:x:v:1", "tiny", "tiny"),
    ]
    assert all(type(card["created"]) is int and card["object"] == "model" for card in listed["data"])
    for path in ("ft:owner/tiny:x:v:1", "ft%3Aowner%2Ftiny%3Ax%3Av%3A1"):
        assert client.get(f"/v1/models/{path}").json()["id"] == "ft:owner/tiny:x:v:1"
    missing = client.get("/v1/models/nobody")
    assert missing.status_code == 404
    assert missing.json()["error"]["type"] == "invalid_request_error"
