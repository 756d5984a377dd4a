"""The table of doors: one service behind each, and nothing of the platform's passed on from outside."""

from __future__ import annotations

from understudy.service.doors import DOORS, hot, passed_on
from understudy.terms import STATIONS


def test_a_public_door_has_one_service_behind_it() -> None:
    public = [door.family for door in DOORS if door.public]
    assert len(public) == len(set(public))
    assert {door.station for door in DOORS} == set(STATIONS)


def test_families_are_found_by_the_first_two_parts_of_a_path() -> None:
    """As the gateway looks them up; a completion by its whole path."""
    for family in passed_on():
        assert family == "/".join(f"{family}/more/of/it".split("/", 3)[:3])
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
    assert {door.scope for door in DOORS if door.hot} == {"inference"}
