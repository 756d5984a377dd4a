"""What a metric family is: per-row sufficient statistics, and the metrics as a function of their sums.

Because a metric depends on the rows only through a sum, a bootstrap resample is one row of a count matrix times the
statistics, the same for every metric and every item (`stats.py`). Holds no metric itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from understudy.metrics import Reading
from understudy.records import Example, Prediction

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


class Family(Protocol):
    """Metrics that share their statistics. Its module has `families(names, labels)`, which makes those of a panel.

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
        """Of each metric what exactly is computed, so that two numbers with one signature can be compared."""

    def statistics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Floats:
        """(n, k), one row per example; the last column is 1 for rows that count, the others are zero throughout."""

    def values(self, sums: Floats) -> dict[str, Floats]:
        """Each metric by name, shape (...), from sums of shape (..., k); NaN where no row counts."""


def ratio(part: Floats, whole: Floats, empty: float) -> Floats:
    """part / whole, and `empty` where whole is 0."""
    result: Floats = np.full(np.broadcast(part, whole).shape, empty, dtype=np.float64)
    return np.divide(part, whole, out=result, where=whole != 0)
