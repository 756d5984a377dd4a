"""A recipe that cannot work is refused with a sentence that says where and what to do; the id is stable."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

from understudy import recipe
from understudy.errors import Invalid

MINIMAL = {"datasets": {"d": {"source": "d.csv"}}}
ROOT = Path(__file__).resolve().parents[3]


def refused(change: dict[str, object]) -> str:
    with pytest.raises(Invalid) as caught:
        recipe.parse(MINIMAL | change, "r.yaml")
    return str(caught.value)


def test_a_source_is_all_a_recipe_needs() -> None:
    assert list(recipe.parse(MINIMAL, "r.yaml").trained()) == ["d"]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_we_ship_is_valid(path: Path) -> None:
    assert recipe.load(path).trained()


def test_an_unknown_key_names_itself_and_the_nearest() -> None:
    said = refused({"trainning": {}})
    assert "unknown key `trainning`" in said
    assert "did you mean `training`" in said
    assert "r.yaml" in said
    assert "did you mean `training`" in refused({"TRAINING": {}})
    assert "unknown key `datasets.d.rows.tests` (did you mean `test`?)" in refused(
        {"datasets": {"d": {"source": "d.csv", "rows": {"tests": 5}}}}
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"base": []}, "r.yaml: `base`: List should have at least 1 item, not 0. "),
        ({"base": 3}, "r.yaml: `base`: Input should be a valid string, or: Input should be a valid list. "),
        ({"base": ["a", 3]}, "r.yaml: `base.1`: Input should be a valid string. "),
        (
            {"variants": {"v": {"train": {"d": -1}}}},
            "r.yaml: `variants.v.train.d`: Input should be greater than or equal to 0.000001. ",
        ),
        ({"variants": {"v": {"train": []}}}, "r.yaml: `variants.v.train`: List should have at least 1 item, not 0. "),
        ({"training": {"lora": 3}}, "r.yaml: `training.lora`: Input should be keys with values. "),
        (
            {"variants": {"v": {"train": "d", "training": {"lora": {"targets": 3}}}}},
            "r.yaml: `variants.v.training.lora.targets`: Input should be a valid list, or: Input should be 'all-linear'. ",
        ),
        (
            {"training": {"epochs": -1, "lora": {"rang": 8}}},
            "unknown key `training.lora.rang` (did you mean `training`?); `training.epochs`: Input should be greater than 0. ",
        ),
    ],
)
def test_a_mistake_is_told_in_the_words_of_the_file(change: dict[str, object], says: str) -> None:
    """Its place is what is written there, never the Python type that was tried, and it is told once."""
    assert says in refused(change)


def test_a_nested_mistake_names_its_place() -> None:
    assert "`training.lora.r`" in refused({"training": {"lora": {"r": 7}}})
    assert "variants.v: no dataset called `e`" in refused({"variants": {"v": {"train": "e"}}})
    assert "name of the untouched base" in refused({"variants": {"base": {"train": "d"}}})
    assert "needs a `model`" in refused({"datasets": {"d": {"source": "d.csv", "generator": {"kind": "llm"}}}})
    assert "exactly one of" in refused({"evaluation": {"panels": {"p": {"metrics": ["bleu"]}}}})
    assert "need a `classify` dataset" in refused(
        {"evaluation": {"panels": {"p": {"prompts": "x.jsonl", "metrics": ["f1"]}}}}
    )


LAUGHS = b"a: &a [1,2,3,4,5,6,7,8,9]\n" + b"".join(
    b"%c: &%c [%s]\n" % (letter, letter, b",".join([b"*%c" % (letter - 1)] * 9)) for letter in b"bcdefghij"
)
"""Ten lines of YAML that are a billion numbers."""
MERGES = b"a: &a {k: 1}\n" + b"".join(
    b"%c: &%c {<<: [%s]}\n" % (letter, letter, b",".join([b"*%c" % (letter - 1)] * 9)) for letter in b"bcdefghij"
)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("usd_per_million_tokens", [-5, 0.6]),
        ("usd_per_million_tokens", [0.1, 1e300]),
        ("budget_usd", 0),
        ("budget_usd", 1e300),
    ],
)
def test_prices_and_budgets_are_sums_of_money(key: str, value: Any) -> None:
    """With a negative price a budget would grow."""
    generator = {"kind": "llm", "model": "m", key: value}
    assert key in refused({"datasets": {"d": {"source": "d.csv", "generator": generator}}})


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("-inf"), float("nan"), 10**18, 1e300, 10**400, "1e400"])
@pytest.mark.parametrize(
    "place",
    [
        "variants.v.train.d",
        "training.weight_decay",
        "training.epochs",
        "training.learning_rate",
        "training.warmup",
        "training.batch_size",
        "training.max_length",
        "training.checkpoint_every",
        "training.lora.alpha",
        "training.lora.dropout",
        "training.lora.r",
        "variants.v.training.weight_decay",
        "variants.v.training.checkpoint_every",
        "evaluation.bootstrap",
        "evaluation.panels.p.max_tokens",
        "datasets.d.rows.train",
        "datasets.d.generator.budget_usd",
        "datasets.d.generator.concurrency",
        "seed",
        "seeds",
    ],
)
def test_numbers_are_finite_and_in_range_or_refused(place: str, value: object) -> None:
    """None of them reaches a message, where JSON has no word for it, or a training, where it takes an hour to show."""
    document: dict[str, Any] = {
        "datasets": {"d": {"source": "d.csv", "rows": {}, "generator": {}}},
        "variants": {"v": {"train": {"d": 1}, "training": {}}},
        "training": {"lora": {}},
        "evaluation": {"panels": {"p": {"dataset": "d", "metrics": ["f1"]}}},
    }
    *path, last = place.split(".")
    inner = document
    for key in path:
        inner = inner[key]
    inner[last] = value
    if value == 0 and last in ("weight_decay", "warmup", "dropout", "train", "seed"):
        recipe.parse(document, "r.yaml")
        return
    with pytest.raises(Invalid) as caught:
        recipe.parse(document, "r.yaml")
    assert place in str(caught.value) or "a number that is too large" in str(caught.value)


MANY: list[tuple[dict[str, Any], str]] = [
    (
        {"datasets": {f"d{n}": {"source": "d.csv"} for n in range(101)}},
        "`datasets`: Dictionary should have at most 100",
    ),
    ({"variants": {f"v{n}": {"train": "d"} for n in range(501)}}, "`variants`: Dictionary should have at most 500"),
    ({"variants": {f"v{n}": {"train": "d"} for n in range(20_000)}}, "too many keys and values. At most 20,000"),
    ({"variants": {"v": {"train": ["d"] * 33}}}, "`variants.v.train`: List should have at most 32"),
    (
        {"variants": {"v": {"train": {f"d{n}": 1 for n in range(101)}}}},
        "`variants.v.train`: Dictionary should have at most",
    ),
    ({"variants": {"v": {"train": {}}}}, "`variants.v.train`: Dictionary should have at least 1"),
    ({"training": {"lora": {"targets": ["q"] * 65}}}, "`training.lora.targets`: List should have at most 64"),
    ({"training": {"lora": {"targets": []}}}, "`training.lora.targets`: List should have at least 1"),
    ({"training": {"lora": {"targets": ["(a+)+$"]}}}, "`training.lora.targets.0`"),
    ({"evaluation": {"panels": {f"p{n}": {"dataset": "d", "metrics": ["f1"]} for n in range(101)}}}, "at most 100"),
    ({"evaluation": {"panels": {"p": {"dataset": "d", "metrics": ["f1"] * 65}}}}, "at most 64"),
    ({"datasets": {"d": {"source": "d.csv", "labels": dict.fromkeys(range(1001), "x")}}}, "at most 1000"),
    ({"datasets": {"d": {"source": "x" * 1001}}}, "`datasets.d.source`: String should have at most 1000"),
    ({"datasets": {"d": {"source": "a\nb.csv"}}}, "`datasets.d.source`: Input should be one line of text"),
    ({"datasets": {"d": {"source": "d.csv", "columns": {"text": "x" * 1001}}}}, "`datasets.d.columns.text`"),
    ({"base": "\x1b[2J"}, "`base`: Input should be one line of text"),
    ({"name": "x" * 65}, "`name`"),
    ({"x" * 4000: 1}, "unknown key `" + "x" * 300 + "...`"),
    ({"x" * 5000: 1}, "a name or value of 5,000 characters. At most 4,096"),
    ({f"key{n}": 1 for n in range(9000)}, "unknown key `key0`"),
    ({"variants": {"v": {"train": [3] * 9000}}}, "`variants.v.train"),
    ({"variants": {"v": {"train": "d", "training": {"lora": json.loads("[" * 900 + "]" * 900)}}}}, "nested too deeply"),
]


@pytest.mark.parametrize(("change", "says"), MANY, ids=range(len(MANY)))
def test_every_number_of_things_has_a_most_and_a_refusal_is_short_and_quick(change: dict[str, Any], says: str) -> None:
    began = time.process_time()
    said = refused(change)
    assert says in said
    assert len(said) < 1500
    assert time.process_time() - began < 2, "who refuses must not work longer than who asks"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name: [", "not valid YAML"),
        (b"name: " + b"9" * 5000, "value that cannot be read"),
        (b"name: 2024-99-99", "value that cannot be read"),
        (b"seed: 0x" + b"f" * 9000, "a number that is too large"),
        (b"a: " + b"[" * 50_000, "nested too deeply"),
        (b"a: &a [*a]", "nested too deeply"),
        (LAUGHS, "too many keys and values"),
        (MERGES, "merge keys bring more than 20,000 keys"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"- a\n", "is not a recipe"),
        (b"", "is not a recipe"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(Invalid, match=says):
        recipe.load(path)
    with pytest.raises(Invalid, match="no recipe file"):
        recipe.load(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (
            {"learning_rat": 1e-3},
            "r.yaml: unknown key `variants.v.training.learning_rat` (did you mean `learning_rate`?)",
        ),
        ({"lora": {"r": 7}}, "r.yaml: `variants.v.training.lora.r`: "),
        ({"lora": {"rank": 8}}, "unknown key `variants.v.training.lora.rank`"),
        ({"lora": None}, "`variants.v.training.lora`: "),
        ({"epochs": float("nan")}, "`variants.v.training.epochs`: "),
        ([1], "`variants.v.training`: "),
    ],
)
def test_a_variants_own_training_is_as_strict_as_that_of_all_and_names_its_place(own: object, said: str) -> None:
    assert said in refused({"variants": {"u": {"train": "d"}, "v": {"train": "d", "training": own}}})


def test_the_best_checkpoint_is_not_kept_without_validation_rows_to_find_it_with() -> None:
    rows = {"d": {"source": "d.csv"}, "e": {"source": "e.csv", "rows": {"validation": 0}}}
    change = {"datasets": rows, "variants": {"u": {"train": {"d": 1, "e": 1}}, "v": {"train": "e"}}}
    said = refused(change | {"training": {"keep": "best"}})
    assert "r.yaml: `v` shall keep its best checkpoint" in said
    assert "`datasets.e.rows.validation`" in said
    own = {"variants": {"v": {"train": "e", "training": {"keep": "best"}}}}
    assert "`v` shall keep its best" in refused(change | own)
    assert recipe.parse(MINIMAL | {"training": {"keep": "best"}}, "r.yaml").training.keep == "best"


def test_bases_and_seeds_have_bounds() -> None:
    assert "`base" in refused({"base": []})
    assert "`base" in refused({"base": ["b"] * 9})
    assert "`seeds`" in refused({"seeds": 0})
    assert "`seeds`" in refused({"seeds": 17})
    assert recipe.parse(MINIMAL | {"base": "b"}, "r").bases() == recipe.parse(MINIMAL | {"base": ["b"]}, "r").bases()


def test_stages() -> None:
    parsed = recipe.parse(
        {"datasets": {"a": {"source": "a.csv"}, "b": {"source": "b.csv"}}}
        | {
            "variants": {
                "one": {"train": "a"},
                "mix": {"train": {"a": 2, "b": 1}},
                "seq": {"train": ["a", {"a": 1, "b": 1}]},
            }
        },
        "r",
    )
    assert parsed.variants["one"].stages() == ({"a": 1.0},)
    assert parsed.variants["mix"].stages() == ({"a": 2.0, "b": 1.0},)
    assert parsed.variants["seq"].stages() == ({"a": 1.0}, {"a": 1.0, "b": 1.0})


FULL: dict[str, Any] = {
    "name": "r",
    "base": ["x", "y"],
    "datasets": {
        "d": {"source": "file-1", "labels": {0: "no", 1: "yes"}, "columns": {"text": "t"}, "rows": {"train": 5}},
        "e": {"source": "file-2", "generator": {"kind": "llm", "model": "m"}},
    },
    "variants": {"v": {"train": {"d": 2, "e": 1}}, "w": {"train": "e", "training": {"lora": {"r": 16}}}},
    "training": {"epochs": 2, "lora": {"r": 32}},
    "evaluation": {"panels": {"p": {"dataset": "d", "metrics": ["f1"]}}},
}


def run_id(document: dict[str, Any]) -> str:
    return recipe.parse(document, "r").run_id()


def test_the_run_id_is_the_same_for_the_same_recipe_and_differs_otherwise() -> None:
    first = recipe.parse(FULL, "r")
    again = recipe.parse(yaml.safe_load(yaml.safe_dump(first.written(), sort_keys=False)), "r")
    assert first.run_id() == again.run_id() == run_id(FULL)
    assert first.run_id().startswith("r-")
    assert first.run_id() != first.run_id("2")
    assert first.run_id() != run_id(FULL | {"seed": 18})
    assert first.run_id() != run_id(FULL | {"training": {"epochs": 2, "lora": {"r": 16}}})
    assert first.run_id() != run_id(FULL | {"datasets": FULL["datasets"] | {"e": {"source": "file-3"}}}), "another file"


def test_the_order_of_variants_makes_another_run_and_that_of_other_keys_does_not() -> None:
    """The first variant sets the budget of the others."""
    turned = dict(reversed(FULL["variants"].items()))
    assert run_id(FULL) != run_id(FULL | {"variants": turned})
    assert run_id(FULL) == run_id(dict(reversed(FULL.items())))
    two = {"datasets": {"a": {"source": "a.csv"}, "b": {"source": "b.csv"}}}
    assert run_id(two) != run_id({"datasets": dict(reversed(two["datasets"].items()))}), "each is a variant here"


class Watching(recipe.Section):
    """A section that recipes may have one day."""

    every: int = 5


class LaterLora(recipe.Lora):
    alpha: int = 64
    bias: str = "none"


class LaterTraining(recipe.Training):
    lora: LaterLora = LaterLora()
    batch_size: int = 8
    watching: Watching = Watching()


class LaterDataset(recipe.Dataset):
    cache: bool = True


class LaterRecipe(recipe.Recipe):
    """The recipe of a later version: more keys with defaults, also further down, and other defaults."""

    seed: int = 18
    datasets: dict[recipe.Name, LaterDataset]  # type: ignore[assignment]
    training: LaterTraining = LaterTraining()
    owner: str = ""
    watching: Watching = Field(default_factory=Watching)


@pytest.mark.parametrize("document", [MINIMAL, FULL], ids=["minimal", "full"])
def test_the_run_id_outlives_new_keys_and_other_defaults(document: dict[str, Any]) -> None:
    now, later = recipe.parse(document, "r"), LaterRecipe.model_validate(document, extra="forbid")
    assert later.training.lora.alpha == 64
    assert later.run_id() == now.run_id()
    assert later.run_id("2") == now.run_id("2")
    used = LaterRecipe.model_validate(document | {"training": {"watching": {"every": 7}}}, extra="forbid")
    assert used.run_id() != now.run_id(), "who uses a new key asks for another run"


def test_a_task_or_metric_that_nobody_knows_is_refused_at_the_door_and_read_in_a_plan() -> None:
    """An older replica must be able to read a plan that names a newer one."""
    assert "there is no task `classfy` (did you mean `classify`?)" in refused(
        {"datasets": {"d": {"source": "d.csv", "task": "classfy"}}}
    )
    panel = {"dataset": "d", "metrics": ["rouge"]}
    assert "evaluation.panels.p: there is no metric `rouge` (did you mean `rougeL`?)" in refused(
        {"datasets": {"d": {"source": "d.csv"}}, "evaluation": {"panels": {"p": panel}}}
    )
    assert recipe.Panel.model_validate({"dataset": "d", "metrics": ["chrf"]}).metrics == ("chrf",)
