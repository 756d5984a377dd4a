"""The table of doors: one service behind each, and nothing of the platform's passed on from outside."""

from __future__ import annotations

from understudy.service.doors import DOORS, INTERNAL, door, family, hot, passed_on
from understudy.terms import STATIONS


def test_a_public_door_has_one_service_behind_it() -> None:
    public = [(door.family, door.part) for door in DOORS if door.public]
    assert len(public) == len(set(public))
    assert {door.station for door in DOORS} == set(STATIONS)


def test_families_are_found_by_the_first_two_parts_of_a_path() -> None:
    """As the gateway looks them up; a completion by its whole path."""
    assert all(family(f"{name}/more/of/it") == name for name in passed_on())
    assert all(door.family.startswith("/") and not door.family.endswith("/") for door in DOORS)


def test_only_public_families_of_others_are_passed_on() -> None:
    families = passed_on()
    assert families["/v1/runs"] == "datagen"
    assert families["/v1/fine_tuning"] == "trainer"
    assert families["/v1/reports"] == families["/v1/evals"] == "evaluator"
    assert "inference" not in families.values()
    closed = {door.family for door in DOORS if not door.public}
    assert {"/metrics", "/healthz", "/readyz"} <= closed
    assert not closed & (families.keys() | hot())


def test_completions_go_to_an_engine_and_everything_that_is_hot_is_inferences() -> None:
    assert {"/v1/chat/completions", "/v1/completions"} <= hot()
    assert {door.station for door in DOORS if door.hot} == {"inference"}
    assert {door.change for door in DOORS if door.hot} == {"inference"}


def test_what_a_key_needs_follows_from_path_and_method() -> None:
    def needs(method: str, path: str) -> str | None:
        found = door(path)
        assert found
        return found.needs(method)

    assert needs("POST", "/v1/chat/completions") == "inference"
    assert needs("POST", "/v1/runs") == needs("DELETE", "/v1/runs/r") == "jobs"
    assert needs("GET", "/v1/runs/r/logs") == needs("GET", "/v1/files/f/content") == "read"
    assert needs("GET", "/v1/models") is needs("GET", "/v1/models/owner/name") is None
    assert needs("GET", "/v1/models/ft:base:r:v:00/files/adapter_model.safetensors") == "read"
    assert needs("GET", "/v1/keys") == needs("POST", "/v1/keys") == "admin"


def test_what_is_not_in_the_table_is_no_door() -> None:
    closed = (
        "/",
        "/docs",
        "/openapi.json",
        "/v1",
        "/v1/runsx",
        "//v1/runs",
        "/v1/load_lora_adapter",
        "/V1/runs",
        *INTERNAL,
    )
    assert not any(map(door, closed))
    assert door("/v1/chat/completions/more") is None
