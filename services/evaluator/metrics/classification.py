"""Accuracy, and precision, recall and F1 averaged over classes; and how a class is read from an answer.

Equal to scikit-learn's `precision_recall_fscore_support(labels=classes, average="macro", zero_division=0)`. An answer
without a class is a wrong prediction of no class: it lowers recall, and no class's precision.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from services.evaluator.metrics.family import Floats, Measure, ratio
from understudy.recipe import CLASS_METRICS
from understudy.records import Example, Prediction

PARSE = "first-label-word"
"""The class is the first class name in the answer: a whole word, upper or lower case, the longest where several
begin at the same place. Lenient on purpose: a chatty base model is not marked down for chatting."""


def parse_label(text: str, labels: tuple[str, ...]) -> str | None:
    """The class that `text` names by the rule of `PARSE`; None when it names none.

    parse_label("Positive, I think.", ("negative", "positive")) == "positive"
    """
    longest_first = sorted(labels, key=len, reverse=True)
    found = _pattern(tuple(longest_first)).search(text)
    return longest_first[found.lastindex - 1] if found and found.lastindex else None


@lru_cache(maxsize=64)
def _pattern(labels: tuple[str, ...]) -> re.Pattern[str]:
    """One group per label; at one place the earlier label wins."""
    words = (r"\s+".join(map(re.escape, label.split())) for label in labels)
    return re.compile("|".join(rf"(?<!\w)({word})(?!\w)" for word in words), re.IGNORECASE)


@dataclass(frozen=True)
class Classification:
    """Statistics: per class true positives, predicted, actual (3 x classes columns), then 1."""

    labels: tuple[str, ...]
    """All classes, in the order of the dataset card."""
    names: tuple[str, ...] = CLASS_METRICS
    """Those to report."""

    def measures(self) -> tuple[Measure, ...]:
        tail = f"labels:{len(self.labels)}|parse:{PARSE}"
        macro = f"average:macro|zero_division:0|{tail}"
        return tuple(Measure(name, f"{name}|{tail if name == 'accuracy' else macro}") for name in self.names)

    def statistics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Floats:
        classes = {label: index for index, label in enumerate(self.labels)}
        size = len(classes)
        rows = np.zeros((len(examples), 3 * size + 1))
        for row, example, prediction in zip(rows, examples, predictions, strict=True):
            gold = classes[example.label] if example.label is not None else None
            said = classes[prediction.label] if prediction.label is not None else None
            if gold is None:
                continue
            row[2 * size + gold] = row[-1] = 1
            if said is not None:
                row[size + said] = 1
                row[said] = said == gold
        return rows

    def values(self, sums: Floats) -> dict[str, Floats]:
        size = len(self.labels)
        right, said, gold = (sums[..., k * size : (k + 1) * size] for k in range(3))
        precision, recall, f1 = ratio(right, said, 0), ratio(right, gold, 0), ratio(2 * right, said + gold, 0)
        every = {
            "accuracy": ratio(right.sum(axis=-1), sums[..., -1], np.nan),
            "precision": precision.mean(axis=-1),
            "recall": recall.mean(axis=-1),
            "f1": f1.mean(axis=-1),
        }
        return {name: every[name] for name in self.names}
