"""What a metric family is: per-row sufficient statistics, and the metrics as a function of their sums.

Because a metric depends on the rows only through a sum, a bootstrap resample is one row of a count matrix times the
statistics, the same for every metric and every item (`stats.py`). Holds no metric itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from understudy.interrupt import check
from understudy.metrics import Reading
from understudy.records import Example, Prediction

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


class Unavailable(Exception):
    """A metric cannot be computed here, because a model or a tool is missing; says why. The panel goes on without it."""


@dataclass(frozen=True)
class Tools:
    """What the operator lends to metrics: folders or hub ids of models, and metrics of his own."""

    bertscore_model: str = "roberta-large"
    bertscore_layers: int | None = None
    """Whose output is compared; None: what the `bert_score` package takes for a model of this name."""
    perplexity_model: str = ""
    own: Path | None = None
    """Folder of metrics in the form of the `evaluate` package."""


@dataclass(frozen=True)
class Asked:
    """What a family must know of a panel, and of the machine. Adding up needs no tools."""

    labels: tuple[str, ...] = ()
    """Classes, empty unless the questions ask for one."""
    positive: str | None = None
    """The class of metrics that are of one class."""
    tools: Tools = Tools()


class Family(Protocol):
    """Metrics that share their statistics. Its module has `families(names, asked)`, which makes those of a panel.

    statistics = family.statistics(examples, predictions)      # (n, k)
    family.values(statistics.sum(axis=0))["bleu"]               # on all rows
    family.values(counts @ statistics)["bleu"]                  # on every resample, counts (r, n)
    """

    @property
    def key(self) -> str:
        """Its name among a panel's families, under which its statistics are kept; other columns take another one."""

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics, as in the recipe."""

    @property
    def reading(self) -> Reading:
        """Which class an answer stands for; `written` where it stands for none."""

    @property
    def by_class(self) -> tuple[str, ...]:
        """Those of its metrics that are averages over classes: their resamples draw from each class as many rows as it has, because
        a resample without a class would say nothing about it."""

    def signatures(self) -> dict[str, str]:
        """Of each metric what exactly is computed, so that two numbers with one signature can be compared. Raises `Unavailable`."""

    def statistics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Floats:
        """(n, k), one row per example; the last column is 1 for rows that count, the others are zero throughout. Raises
        `Unavailable`."""

    def values(self, sums: Floats) -> dict[str, Floats]:
        """Each metric by name, shape (...), from sums of shape (..., k); NaN where no row counts."""


Score = Callable[[Example, Prediction], float | None]
"""A number for one row; None where the row does not count."""


@dataclass(frozen=True)
class RowMean:
    """A metric that is the mean of a number per row. Statistics: the number, then 1."""

    name: str
    signature: str
    score: Score
    reading: Reading = "written"
    by_class: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.name

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def signatures(self) -> dict[str, str]:
        return {self.name: f"{self.name}|{self.signature}|mean over rows"}

    def statistics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Floats:
        rows = np.zeros((len(examples), 2))
        for row, example, prediction in zip(rows, examples, predictions, strict=True):
            check()
            if (score := self.score(example, prediction)) is not None:
                row[:] = score, 1
        return rows

    def values(self, sums: Floats) -> dict[str, Floats]:
        return {self.name: ratio(sums[..., 0], sums[..., 1], np.nan)}


def against_reference(score: Callable[[str, str], float]) -> Score:
    """`score(answer, reference)` where there is a reference; an empty answer counts."""
    return lambda example, prediction: (
        score(prediction.text, example.completion) if example.completion.strip() else None
    )


def ratio(part: Floats, whole: Floats, empty: float) -> Floats:
    """part / whole, and `empty` where whole is 0."""
    result: Floats = np.full(np.broadcast(part, whole).shape, empty, dtype=np.float64)
    return np.divide(part, whole, out=result, where=whole != 0)
