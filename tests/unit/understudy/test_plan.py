"""What a recipe comes to: every item with all its settings spelt out, and a plan that older and newer versions read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from understudy import recipe
from understudy.errors import Invalid
from understudy.plan import MOST_ITEMS, Item, Plan, PlannedBase, features, make
from understudy.recipe import Recipe, Training, parse
from understudy.store.plans import Plans, put_plan
from understudy.terms import Artifact
from understudy.testing import local_store

DATA = {"datasets": {"a": {"source": "a.csv"}, "b": {"source": "b.csv"}}}


def resolve(base: str) -> PlannedBase:
    """As `bases.planned`, of folders that need not be there."""
    return PlannedBase(name=base.rpartition("@")[0] or base, reference=base, revision=base.partition("@")[2] or None)


def planned(**more: Any) -> Plan:
    return make(parse(DATA | more, "the test"), resolve)


def names(plan: Plan) -> list[str]:
    return [item.name for item in plan.items]


def test_one_base_and_one_variant_for_each_dataset() -> None:
    plan = planned(name="r", seed=5)
    assert names(plan) == ["base", "a", "b"]
    base, first, second = plan.items
    assert (base.stages, base.training, base.compared_with, base.ends_at) == ((), None, None, "scored")
    assert (first.variant, first.stages, first.seed, first.compared_with) == ("a", ({"a": 1.0},), 5, "base")
    assert first.training == Training()
    assert second.budget_stages == first.stages, "as many tokens as the first variant"
    assert plan.base_of(first).name == "seedling"
    assert plan.item("b") is second
    with pytest.raises(Invalid, match="no item `c`"):
        plan.item("c")


def test_several_bases_and_seeds_give_each_item_its_own_name_and_its_own_base_to_compare_with() -> None:
    plan = planned(base=["small", "owner/large@abc"], seeds=3, variants={"v": {"train": "a"}})
    of_one = ["base@{}", "v.seed17@{}", "v.seed18@{}", "v.seed19@{}"]
    assert names(plan) == [name.format(base) for base in ("small", "large") for name in of_one]
    assert [item.seed for item in plan.items] == [17, 17, 18, 19] * 2
    assert [item.base for item in plan.items] == [0] * 4 + [1] * 4
    assert {item.compared_with for item in plan.items if item.variant} == {"base@small", "base@large"}
    assert all(item.compared_with == f"base@{item.name.rpartition('@')[2]}" for item in plan.items if item.variant)
    assert plan.bases[1].revision == "abc"
    assert names(planned(seeds=2, variants={"v": {"train": "a"}})) == ["base", "v.seed17", "v.seed18"]
    assert names(planned(base=["small"], variants={"v": {"train": "a"}})) == ["base", "v"]


@pytest.mark.parametrize(
    ("bases", "said"),
    [
        (["here/small", "there/small"], "two are called `small`"),
        (["small", "my model"], "`my model` cannot be part of an item's name"),
        (["small", "x" * 101], "cannot be part"),
        (["small", "o/@abc"], "`` cannot be part"),
    ],
)
def test_bases_that_cannot_be_told_apart_by_name_are_refused(bases: list[str], said: str) -> None:
    with pytest.raises(Invalid) as caught:
        planned(base=bases)
    assert said in str(caught.value)
    assert names(planned(base=bases[1])) == ["base", "a", "b"], "alone it needs no name"


def test_what_a_variant_sets_itself_lies_over_the_settings_of_all() -> None:
    training = {"learning_rate": 0.001, "lora": {"r": 16, "alpha": 64}}
    own = {"lora": {"r": 64, "targets": ["q_proj"]}, "epochs": 3}
    plan = planned(training=training, variants={"plain": {"train": "a"}, "own": {"train": "a", "training": own}})
    plain, different = plan.item("plain").training, plan.item("own").training
    assert plain is not None
    assert different is not None
    assert (plain.learning_rate, plain.lora.r, plain.lora.alpha, plain.epochs) == (0.001, 16, 64, 1)
    assert (different.learning_rate, different.lora.r, different.lora.alpha) == (0.001, 64, 64)
    assert (different.lora.targets, different.epochs) == (("q_proj",), 3)


def test_a_budget_of_epochs_is_counted_on_a_variants_own_data() -> None:
    variants = {"first": {"train": "a"}, "tokens": {"train": "b"}, "epochs": {"train": ["b", "a"]}}
    plan = planned(variants=variants | {"epochs": {"train": ["b", "a"], "training": {"budget": "epochs"}}})
    assert plan.item("tokens").budget_stages == ({"a": 1.0},)
    assert plan.item("epochs").budget_stages == ({"b": 1.0}, {"a": 1.0})


def test_what_not_every_station_can_do_is_asked_of_it() -> None:
    assert features(Training()) == {}
    assert features(Training(quantize="nf4")) == {"trainer": ("nf4",)}
    assert features(Training(quantize="nf4", keep="best")) == {"trainer": ("nf4", "keep-best")}
    plan = planned(variants={"v": {"train": "a", "training": {"quantize": "nf4"}}, "w": {"train": "a"}})
    assert [item.needs for item in plan.items] == [{}, {"trainer": ("nf4",)}, {}]


def test_a_plan_has_a_most_and_says_so_at_once() -> None:
    variants = {f"v{n}": {"train": "a"} for n in range(499)}
    assert len(planned(base=["x", "y", "z", "q"], variants=variants).items) == MOST_ITEMS
    with pytest.raises(
        Invalid, match=r"asks for 64,008 items, at most 2,000 are taken.*fewer variants, seeds or bases"
    ):
        planned(base=[f"b{n}" for n in range(8)], seeds=16, variants=variants | {"v499": {"train": "a"}})
    datasets = {f"d{n}": {"source": "d.csv"} for n in range(100)}  # each a variant
    with pytest.raises(Invalid, match="asks for 12,808 items"):
        make(parse({"datasets": datasets, "base": [f"b{n}" for n in range(8)], "seeds": 16}, "the test"), resolve)


def test_an_item_says_in_a_few_words_what_it_is_trained_on() -> None:
    stages = ({"a": 1.0}, {"a": 2.0, "b": 0.5})
    assert Item(name="v", stages=stages).what == "a, then a 2 + b 0.5"
    assert Item(name="base").what == ""


def newer(value: Any) -> Any:
    """A value as a newer version writes it: every object has a field more."""
    if isinstance(value, BaseModel):
        return {name: newer(getattr(value, name)) for name in type(value).model_fields} | {"later": {"more": [1]}}
    if isinstance(value, dict):
        return {name: newer(each) for name, each in value.items()}
    return [newer(each) for each in value] if isinstance(value, tuple) else value


FULL = DATA | {
    "base": ["x", "o/y@abc"],
    "seeds": 2,
    "variants": {
        "v": {"train": ["a", {"a": 1, "b": 2}], "training": {"quantize": "nf4", "lora": {"targets": ["q_proj"]}}}
    },
    "evaluation": {
        "panels": {"p": {"dataset": "a", "metrics": ["f1"]}, "q": {"prompts": "q.jsonl", "metrics": ["bleu"]}}
    },
}


def test_fields_of_a_newer_version_are_read_over_at_every_level() -> None:
    asked = parse(FULL, "the test")
    assert Recipe.model_validate_json(json.dumps(newer(asked))) == asked
    plan = make(asked, resolve).model_copy(update={"parent": Artifact(sha256="0" * 64)})
    document = newer(plan)
    assert all("later" in part for part in (document, document["items"][1]["training"]["lora"], document["parent"]))
    assert Plan.model_validate_json(json.dumps(document)) == plan


def test_what_an_older_version_wrote_is_read_with_the_defaults_of_today() -> None:
    plan = Plan.model_validate_json(
        '{"name": "r", "bases": [{"name": "b", "reference": "b"}], "items": [{"name": "base"}]}'
    )
    assert (plan.format, plan.item("base").ends_at, plan.datasets) == ("understudy.plan.v1", "scored", {})


def test_a_stored_plan_is_read_back_as_it_was(tmp_path: Path) -> None:
    plan, store = make(parse(FULL, "the test"), resolve), local_store(tmp_path)
    artifact = put_plan(store, "r", plan)
    assert Plans(store).get(artifact) == plan
    assert put_plan(store, "r", planned()) == artifact, "the first stays"


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).resolve().parents[3] / "recipes").glob("*.yaml")), ids=lambda p: p.name
)
def test_every_recipe_we_ship_has_a_plan(path: Path) -> None:
    assert len(make(recipe.load(path), resolve).items) > 1
