"""A recipe that cannot work is refused with a sentence that says where and what to do; the id is stable."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from understudy import recipe
from understudy.errors import Invalid

MINIMAL = {"datasets": {"d": {"source": "d.csv"}}}
ROOT = Path(__file__).resolve().parents[3]


def refused(change: dict[str, object]) -> str:
    with pytest.raises(Invalid) as caught:
        recipe.parse(MINIMAL | change, "r.yaml")
    return str(caught.value)


def test_a_source_is_all_a_recipe_needs() -> None:
    assert recipe.parse(MINIMAL, "r.yaml").all_variants() == ("base", "d")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_we_ship_is_valid(path: Path) -> None:
    assert recipe.load(path).trained()


def test_an_unknown_key_names_itself_and_the_nearest() -> None:
    said = refused({"trainning": {}})
    assert "unknown key `trainning`" in said
    assert "did you mean `training`" in said
    assert "r.yaml" in said


def test_a_nested_mistake_names_its_place() -> None:
    assert "`training.lora.r`" in refused({"training": {"lora": {"r": 7}}})
    assert "variants.v: no dataset called `e`" in refused({"variants": {"v": {"train": "e"}}})
    assert "name of the untouched base" in refused({"variants": {"base": {"train": "d"}}})
    assert "needs a `model`" in refused({"datasets": {"d": {"source": "d.csv", "generator": {"kind": "llm"}}}})
    assert "exactly one of" in refused({"evaluation": {"panels": {"p": {"metrics": ["bleu"]}}}})
    assert "need a `classify` dataset" in refused(
        {"evaluation": {"panels": {"p": {"prompts": "x.jsonl", "metrics": ["f1"]}}}}
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name: [", "not valid YAML"),
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


def test_the_run_id_is_the_same_for_the_same_recipe_and_differs_otherwise() -> None:
    first = recipe.parse(MINIMAL, "r")
    again = recipe.parse(yaml.safe_load(yaml.safe_dump(first.model_dump(mode="json"))), "r")
    assert first.run_id() == again.run_id()
    assert first.run_id() != first.run_id("2")
    assert first.run_id() != recipe.parse(MINIMAL | {"seed": 18}, "r").run_id()
