"""Accuracy, and precision, recall and F1 averaged over classes; and which class an answer stands for.

Equal to scikit-learn's `precision_recall_fscore_support(labels=classes, average="macro", zero_division=0)`, where `classes` are
those that some question has: one that nobody asked about has no recall to average. Computed twice, by two readings: the class that
was written, and the one that is found most likely after the same prompt. An answer without a class is a wrong prediction of no
class: it lowers recall, and no class's precision.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from services.evaluator.metrics.family import Floats, Ints, ratio
from understudy.metrics import Reading, asks_likeliest
from understudy.records import Example, Prediction

PARSE = "first-label-word"
"""The class is the first class name in the answer: a whole word, upper or lower case, the longest where several
begin at the same place. Lenient on purpose: a chatty base model is not marked down for chatting."""
READINGS: dict[Reading, str] = {
    "written": f"parse:{PARSE}",
    "likeliest": "argmax over labels:sum of token log-probabilities, end of turn:yes",
}


def families(names: tuple[str, ...], labels: tuple[str, ...]) -> list[Classification]:
    """What computes `names`, by both readings where there are not too many classes for the second."""
    readings: list[Reading] = ["written", "likeliest"] if asks_likeliest(names, labels) else ["written"]
    return [Classification(labels, names, reading) for reading in readings]


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


def likeliest(prediction: Prediction, labels: tuple[str, ...]) -> str | None:
    """The class that the model finds most likely, the first of equals; None where that is not known."""
    found = prediction.label_logprobs
    return labels[found.index(max(found))] if found and len(found) == len(labels) else None


@dataclass(frozen=True)
class Classification:
    """Statistics: per class true positives, predicted, actual (3 x classes columns), then 1."""

    labels: tuple[str, ...]
    """All classes, in the order of the dataset card."""
    names: tuple[str, ...]
    """Those to report."""
    reading: Reading = "written"

    @property
    def key(self) -> str:
        return f"classification-{self.reading}"

    @property
    def by_class(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name != "accuracy")

    def signatures(self) -> dict[str, str]:
        tail = f"labels:{len(self.labels)}|{READINGS[self.reading]}"
        macro = f"average:macro over classes with rows|zero_division:0|{tail}"
        return {name: f"{name}|{tail if name == 'accuracy' else macro}" for name in self.names}

    def statistics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Floats:
        classes = {label: index for index, label in enumerate(self.labels)}
        size = len(classes)
        rows = np.zeros((len(examples), 3 * size + 1))
        for row, example, prediction in zip(rows, examples, predictions, strict=True):
            said = self._class_of(prediction)
            if example.label is None or (said is None and self.reading == "likeliest"):
                continue
            gold = classes[example.label]
            row[2 * size + gold] = row[-1] = 1
            if said is not None:
                row[size + classes[said]] = 1
                row[classes[said]] = said == example.label
        return rows

    def values(self, sums: Floats) -> dict[str, Floats]:
        right, said, gold = self._parts(sums)
        precision, recall, f1 = ratio(right, said, 0), ratio(right, gold, 0), ratio(2 * right, said + gold, 0)
        asked = (gold > 0).astype(np.float64)
        every = {
            "accuracy": ratio(right.sum(axis=-1), sums[..., -1], np.nan),
            "precision": _mean(precision, asked),
            "recall": _mean(recall, asked),
            "f1": _mean(f1, asked),
        }
        return {name: every[name] for name in self.names}

    def right(self, table: Floats) -> Floats:
        """(n,): 1 where the answer is right."""
        found: Floats = self._parts(table)[0].sum(axis=-1)
        return found

    def confusion(self, table: Floats) -> Floats:
        """Counts (classes, classes + 1): actual class, class in the answer, the last one for none."""
        _, said, gold = self._parts(table)
        none = table[:, -1:] - said.sum(axis=-1, keepdims=True)
        counts: Floats = gold.T @ np.concatenate((said, none), axis=1)
        return counts

    def said(self, row: Floats) -> str | None:
        """The class that the answer of one row stands for."""
        _, said, _ = self._parts(row)
        return self.labels[int(said.argmax())] if said.any() else None

    def strata(self, table: Floats) -> Ints:
        """(n,): which class a question has, and -1 where it does not count."""
        _, _, gold = self._parts(table)
        classes: Ints = np.where(table[:, -1] > 0, gold.argmax(axis=-1), -1)
        return classes

    def _parts(self, sums: Floats) -> tuple[Floats, Floats, Floats]:
        """Per class: right, predicted, actual."""
        size = len(self.labels)
        return sums[..., :size], sums[..., size : 2 * size], sums[..., 2 * size : 3 * size]

    def _class_of(self, prediction: Prediction) -> str | None:
        if self.reading == "likeliest":
            return likeliest(prediction, self.labels)
        return parse_label(prediction.text, self.labels)


def _mean(of_classes: Floats, asked: Floats) -> Floats:
    """Over the classes that were asked about."""
    return ratio((of_classes * asked).sum(axis=-1), asked.sum(axis=-1), np.nan)
