"""Accuracy; precision, recall and F1, as averages over classes, of all answers together, and of one class; unreadable answers.

Equal to scikit-learn's `precision_recall_fscore_support(labels=classes, zero_division=0)` with `average="macro"`, where `classes` are
those that some question has (one that nobody asked about has no recall to average), with `average="micro"` over all classes, and with
`average=None` for one of them. Computed by several readings: the class that an answer names, the one that it is, word for word, and
the one that the model finds most likely after the same prompt (`reading.py` has the rules of the first two). An answer without a class
is a wrong prediction of no class: it lowers recall, and no class's precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.evaluator.metrics.family import Asked, Floats, Ints, Unavailable, ratio
from services.evaluator.metrics.reading import NAMED, STRICT, is_only, named
from understudy.metrics import Reading, asks_likeliest
from understudy.records import Example, Prediction

READINGS: dict[Reading, str] = {
    "written": NAMED,
    "strict": STRICT,
    "likeliest": "argmax over labels:sum of token log-probabilities, end of turn:yes",
}
UNREADABLE = "unreadable"
OF_ALL = ("accuracy", "precision_micro", "recall_micro", "f1_micro", UNREADABLE)
"""No averages over classes."""


def families(names: tuple[str, ...], asked: Asked) -> list[Classification]:
    """What computes `names`: all of them by the class that is named; the first by that alone which an answer is word for word, too;
    and all by the likeliest class, where there are not too many."""
    strict = tuple(name for name in names if name in (names[0], UNREADABLE))
    likely = tuple(name for name in names if name != UNREADABLE)
    found = [Classification(asked.labels, names, "written", asked.positive)]
    found += [Classification(asked.labels, strict, "strict", asked.positive)]
    if likely and asks_likeliest(likely, asked.labels):
        found += [Classification(asked.labels, likely, "likeliest", asked.positive)]
    return found


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
    positive: str | None = None
    """The class of the metrics that are of one class."""

    @property
    def key(self) -> str:
        return f"classification-{self.reading}"

    @property
    def by_class(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name not in OF_ALL)

    def signatures(self) -> dict[str, str]:
        tail = f"labels:{len(self.labels)}|{READINGS[self.reading]}"
        averages = {
            "": "average:macro over classes with rows|zero_division:0|",
            "micro": "average:micro over all classes|zero_division:0|",
            "positive": f"class:{self.positive}|zero_division:0|",
        }
        return {
            name: f"{name}|{'' if name in ('accuracy', UNREADABLE) else averages[name.partition('_')[2]]}{tail}"
            for name in self.names
        }

    def statistics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Floats:
        classes = {label: index for index, label in enumerate(self.labels)}
        if self.positive is not None and self.positive not in classes:
            raise Unavailable(f"no question has the class `{self.positive}`, which the panel calls `positive`")
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
        asked = (gold > 0).astype(np.float64)
        of_classes = self.of_classes(sums)
        every = {name: _mean(values, asked) for name, values in of_classes.items()}
        all_right, all_said, rows = right.sum(axis=-1), said.sum(axis=-1), sums[..., -1]
        every["accuracy"] = every["recall_micro"] = ratio(all_right, rows, np.nan)
        every["precision_micro"] = np.where(rows > 0, ratio(all_right, all_said, 0), np.nan)
        every["f1_micro"] = ratio(2 * all_right, all_said + rows, np.nan)
        every[UNREADABLE] = ratio(rows - all_said, rows, np.nan)
        if self.positive in self.labels:
            at = self.labels.index(self.positive)
            one = {
                f"{name}_positive": np.where(rows > 0, values[..., at], np.nan) for name, values in of_classes.items()
            }
            every |= one
        return {name: every[name] for name in self.names}

    def of_classes(self, sums: Floats) -> dict[str, Floats]:
        """Precision, recall and F1 of each class: by name, shape (..., classes), from sums of shape (..., k); 0 where nothing was said
        or nothing asked."""
        right, said, gold = self._parts(sums)
        return {
            "precision": ratio(right, said, 0),
            "recall": ratio(right, gold, 0),
            "f1": ratio(2 * right, said + gold, 0),
        }

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
        return (is_only if self.reading == "strict" else named)(prediction.text, self.labels)


def _mean(of_classes: Floats, asked: Floats) -> Floats:
    """Over the classes that were asked about."""
    return ratio((of_classes * asked).sum(axis=-1), asked.sum(axis=-1), np.nan)
