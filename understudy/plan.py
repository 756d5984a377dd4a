"""The plan of a run: everything decided, written once, read by every station.

A recipe is what a person wrote; the plan is what will happen: bases with revision and fingerprint, datasets, panels, and
an item for everything that rides the belt, each with all its settings spelt out. It is stored as an artifact under
`keys.plan(run)` and never changes: a run that is taken up again has the plan it began with, whatever defaults have become
since. Unknown fields are ignored; what a reader cannot understand is `Unsupported` and waits for one that can.

Does not read data, load models, estimate, or know where plans lie (`store/plans.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Annotated, Literal

from pydantic import Field

from understudy.errors import Invalid
from understudy.recipe import BASE, OPENAI, Dataset, Panel, Recipe, Training
from understudy.terms import Artifact, Frozen, Station

FILE = "plan.json"
WINDOW = 6
MOST_ITEMS = 2000
ItemName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+@-]{0,199}$")]
Stages = tuple[dict[str, float], ...]
"""{dataset: weight} of each stage, in order."""


def prompts_dataset(panel: str) -> str:
    """Name under which datagen publishes the prompts file of `panel` among the run's datasets."""
    return f"panel:{panel}"


class PlannedBase(Frozen):
    """A base model of the run."""

    name: str
    """As users ask for it on the endpoint."""
    reference: str
    """What `bases.resolve` takes."""
    revision: str | None = None
    """Of a hub id."""
    fingerprint: str | None = None
    """Of a local folder, see `bases.fingerprint`."""


class Item(Frozen):
    """One thing that rides the belt: a base, a variant trained with one seed, or a model that is served already."""

    name: ItemName
    base: int = 0
    """Which of the plan's bases."""
    variant: str | None = None
    """The recipe's variant; None when nothing is trained."""
    stages: Stages = ()
    """What it is trained on; empty when on nothing."""
    budget_stages: Stages = ()
    """Stages whose tokens are counted for the budget: those of the first variant, or its own."""
    training: Training | None = None
    seed: int = 17
    model: str | None = None
    """A model that answers on the endpoint already and is only scored."""
    ends_at: Literal["served", "scored"] = "scored"
    compared_with: str | None = None
    """The item it is held against."""
    needs: dict[Station, tuple[str, ...]] = Field(default_factory=dict)
    """Features without which a station must not touch it, see `features`."""

    @property
    def what(self) -> str:
        """What it is trained on, in a few words."""
        parts = (
            " + ".join(f"{name} {weight:g}" if len(s) > 1 else name for name, weight in s.items()) for s in self.stages
        )
        return ", then ".join(parts)


class Plan(Frozen):
    """`plan.json`."""

    format: Literal["understudy.plan.v1"] = "understudy.plan.v1"
    name: str
    seed: int = 17
    bases: tuple[PlannedBase, ...]
    datasets: dict[str, Dataset] = Field(default_factory=dict)
    panels: dict[str, Panel] = Field(default_factory=dict)
    bootstrap: int = 1000
    """Resamples behind every interval."""
    items: tuple[Item, ...]
    window: int = Field(default=WINDOW, ge=1)
    """Items on the belt at once; the others wait for their turn, so that other runs get theirs."""
    needs: dict[Station, tuple[str, ...]] = Field(default_factory=dict)
    """Features without which a station must not touch what is of the whole run."""
    parent: Artifact | None = None
    """The plan that this one adds to."""

    def item(self, name: str) -> Item:
        """The item called `name`; raises `Invalid`."""
        found = next((item for item in self.items if item.name == name), None)
        if found is None:
            raise Invalid(f"The plan of `{self.name}` has no item `{name}`")
        return found

    def base_of(self, item: Item) -> PlannedBase:
        """The base model of an item."""
        return self.bases[item.base]


def make(recipe: Recipe, resolve: Callable[[str], PlannedBase], window: int = WINDOW) -> Plan:
    """The plan of `recipe`; `resolve` finds a base as the recipe names it.

    Raises `Invalid` when there are too many items, or bases whose names do not tell them apart.
    """
    variants = recipe.trained()
    count = len(recipe.bases()) * (1 + len(variants) * recipe.seeds)
    if count > MOST_ITEMS:
        raise Invalid(
            f"The recipe asks for {count:,} items, at most {MOST_ITEMS:,} are taken",
            "Use fewer variants, seeds or bases.",
        )
    bases = tuple(resolve(base) for base in recipe.bases())
    first = next((variant.stages() for variant in variants.values()), ())
    items: list[Item] = []
    for number, at in enumerate(_places(bases)):
        untouched = Item(name=f"{BASE}{at}", base=number, seed=recipe.seed)
        items.append(untouched)
        for variant, settings in variants.items():
            training = recipe.training_of(settings)
            for seed in range(recipe.seed, recipe.seed + recipe.seeds):
                items.append(
                    Item(
                        name=f"{variant}{f'.seed{seed}' if recipe.seeds > 1 else ''}{at}",
                        base=number,
                        variant=variant,
                        stages=settings.stages(),
                        budget_stages=first if training.budget == "tokens" else settings.stages(),
                        training=training,
                        seed=seed,
                        compared_with=untouched.name,
                        needs=features(training),
                    )
                )
    return Plan(
        name=recipe.name,
        seed=recipe.seed,
        bases=bases,
        datasets=recipe.datasets,
        panels=recipe.evaluation.panels,
        bootstrap=recipe.evaluation.bootstrap,
        items=tuple(items),
        window=window,
        needs=features_of_data(recipe.datasets.values()),
    )


def _places(bases: tuple[PlannedBase, ...]) -> list[str]:
    """What an item's name says of its base: nothing when there is only one."""
    if len(bases) == 1:
        return [""]
    names = [base.name.rpartition("/")[2] for base in bases]
    for name in names:
        if names.count(name) > 1:
            raise Invalid(f"base: two are called `{name}`", "Items are named after their base: rename a folder.")
        if not re.fullmatch(r"[A-Za-z0-9._+-]{1,100}", name):
            raise Invalid(
                f"base: `{name}` cannot be part of an item's name",
                "Where there are several bases, use names of up to 100 letters, digits and `._+-`.",
            )
    return [f"@{name}" for name in names]


def features_of_data(datasets: Iterable[Dataset]) -> dict[Station, tuple[str, ...]]:
    """What making these asks of a station beyond what every one has ever had."""
    generators = [dataset.generator for dataset in datasets]
    named = any(generator.kind == "llm" and generator.provider != OPENAI for generator in generators)
    return {"datagen": ("providers",)} if named else {}


def features(training: Training) -> dict[Station, tuple[str, ...]]:
    """What a training asks of a station beyond what every one has ever had."""
    asked = {"nf4": training.quantize == "nf4", "keep-best": training.keep == "best"}
    needed = tuple(name for name, needs in asked.items() if needs)
    return {"trainer": needed} if needed else {}
