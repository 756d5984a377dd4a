"""The questions of a panel: where they lie, and which classes their answers may name.

Does not ask them (`predict.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from understudy.errors import Invalid
from understudy.plan import Plan, prompts_dataset
from understudy.recipe import Panel
from understudy.records import DatasetCard, Example, read_json, read_jsonl
from understudy.store.artifacts import ArtifactStore
from understudy.terms import Artifact


@dataclass(frozen=True)
class Questionnaire:
    """One panel with its questions."""

    name: str
    panel: Panel
    file: Path
    """The test split of its dataset, or its prompts."""
    labels: tuple[str, ...]
    """Classes, empty unless the questions ask for one."""

    @cached_property
    def examples(self) -> tuple[Example, ...]:
        """The questions, always in this order."""
        return tuple(read_jsonl(self.file, Example))


def questionnaire(store: ArtifactStore, plan: Plan, name: str, datasets: Mapping[str, Artifact]) -> Questionnaire:
    """Panel `name` of the plan; raises `Invalid` when its dataset was not made."""
    panel = plan.panels[name]
    source = panel.dataset or prompts_dataset(name)
    if source not in datasets:
        raise Invalid(f"Panel `{name}` asks from `{source}`, which was not made", "See why in the log of datagen.")
    file = store.fetch(datasets[source]) / "test.jsonl"
    return Questionnaire(name, panel, file, card(store, datasets[source]).labels)


def card(store: ArtifactStore, dataset: Artifact) -> DatasetCard:
    """The card of a dataset."""
    return read_json(store.fetch(dataset) / "card.json", DatasetCard)
