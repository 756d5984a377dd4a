"""The questions of a panel: where they lie, and which classes their answers may name.

Does not ask them (`predict.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.evaluator.metrics.classification import parse_label
from understudy.errors import Invalid
from understudy.plan import Plan, prompts_dataset
from understudy.recipe import Panel
from understudy.records import DatasetCard, Example, Prediction, read_json, read_jsonl
from understudy.store.artifacts import ArtifactStore
from understudy.terms import Artifact


@dataclass(frozen=True)
class Questionnaire:
    """One panel with its questions."""

    name: str
    panel: Panel
    examples: tuple[Example, ...]
    """The test split of its dataset, or its prompts; always in this order."""
    labels: tuple[str, ...]
    """Classes, empty unless the questions ask for one."""

    def label(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """The predictions with the classes read from their texts."""
        if not self.labels:
            return list(predictions)
        return [p.model_copy(update={"label": parse_label(p.text, self.labels)}) for p in predictions]


def questionnaire(store: ArtifactStore, plan: Plan, name: str, datasets: Mapping[str, Artifact]) -> Questionnaire:
    """Panel `name` of the plan; raises `Invalid` when its dataset was not made."""
    panel = plan.panels[name]
    source = panel.dataset or prompts_dataset(name)
    if source not in datasets:
        raise Invalid(f"Panel `{name}` asks from `{source}`, which was not made", "See why in the log of datagen.")
    folder = store.fetch(datasets[source])
    examples = tuple(read_jsonl(folder / "test.jsonl", Example))
    return Questionnaire(name, panel, examples, card(store, datasets[source]).labels)


def card(store: ArtifactStore, dataset: Artifact) -> DatasetCard:
    """The card of a dataset."""
    return read_json(store.fetch(dataset) / "card.json", DatasetCard)
