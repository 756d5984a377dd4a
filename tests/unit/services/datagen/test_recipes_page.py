"""docs/recipes.md has every key of the recipe with its true default, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from understudy import plan, recipe

PAGE = (Path(__file__).resolve().parents[4] / "docs" / "recipes.md").read_text(encoding="utf-8")
SECTIONS: dict[str, type[BaseModel]] = {
    "Top level": recipe.Recipe,
    "datasets.NAME": recipe.Dataset,
    "datasets.NAME.columns": recipe.Columns,
    "datasets.NAME.generator": recipe.Generator,
    "datasets.NAME.rows": recipe.Rows,
    "variants.NAME": recipe.Variant,
    "training": recipe.Training,
    "training.lora": recipe.Lora,
    "evaluation": recipe.Evaluation,
    "evaluation.panels.NAME": recipe.Panel,
}


def rows(heading: str) -> dict[str, tuple[str, str]]:
    """Key -> (default, meaning) in the table under a heading."""
    section = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section, heading
    found = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", section[1], re.MULTILINE)
    return {key: (default, meaning) for key, default, meaning in found}


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    return "none" if value is None else f"`{list(value) if isinstance(value, tuple) else value}`"


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_page_tells_every_key_and_its_default(heading: str) -> None:
    said, fields = rows(heading), SECTIONS[heading].model_fields
    assert list(said) == list(fields)
    for key, field in fields.items():
        if (heading, key) != ("Top level", "variants"):  # its default is computed from the datasets
            assert said[key][0] == default(field), key


def test_the_page_names_items_as_plans_do_and_bounds_as_they_are() -> None:
    asked = recipe.parse(
        {"base": ["small", "large"], "seeds": 2, "datasets": {"d": {"source": "d.csv"}}}
        | {"variants": {"variant": {"train": "d"}}},
        "the test",
    )
    planned = plan.make(asked, lambda base: plan.PlannedBase(name=base, reference=base))
    assert "`variant.seed17@base`" in PAGE
    assert [item.name for item in planned.items][:3] == ["base@small", "variant.seed17@small", "variant.seed18@small"]
    assert f"At most {plan.MOST_ITEMS:,} items" in PAGE


def test_no_section_of_the_recipe_is_left_out() -> None:
    sections = {kind for kind in vars(recipe).values() if isinstance(kind, type) and issubclass(kind, recipe.Section)}
    assert sections - {recipe.Section} == set(SECTIONS.values())


def test_choices_are_all_named() -> None:
    for heading, model in SECTIONS.items():
        for key, field in model.model_fields.items():
            for choice in (c for c in get_args(field.annotation) if isinstance(c, str)):
                assert choice in rows(heading)[key][1], f"{heading}: `{key}` does not mention {choice}"
