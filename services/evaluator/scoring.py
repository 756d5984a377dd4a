"""Scores predictions: metrics with intervals for one item, and paired differences for several.

Joins the metric families with the bootstrap. Does not ask models (`predict.py`) or draw anything (`report.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.evaluator.metrics import families
from services.evaluator.metrics.family import Family, Floats, Measure
from services.evaluator.stats import Difference, Interval, difference, interval, mcnemar, resampled_sums
from understudy.interrupt import check
from understudy.records import Example, Prediction

Answers = Mapping[str, Sequence[Prediction]]
"""Item -> predictions, each in the order of the examples."""


@dataclass(frozen=True)
class Result:
    """One metric on one panel."""

    measure: Measure
    n: int
    """Rows that count: the same for all items, so that they can be compared."""
    values: dict[str, Interval]
    """By item, without those for which no row counts."""
    resampled: dict[str, Floats]
    """Item -> the metric on each resample, (resamples,)."""

    def change(self, item: str, other: str) -> Difference:
        """The item's value minus the other's."""
        return difference(
            self.values[item].value, self.values[other].value, self.resampled[item], self.resampled[other]
        )


def score(
    metrics: Sequence[str],
    labels: tuple[str, ...],
    examples: Sequence[Example],
    answers: Answers,
    resamples: int,
    seed: tuple[int, ...],
) -> list[Result]:
    """All `metrics` of all items on one panel; a metric that no row counts for is left out."""
    chosen = families(metrics, labels)
    tables = [_tables(family, examples, answers) for family in chosen]
    columns = [table for of_family in tables for table in of_family.values()]
    if not columns:
        return []
    sums = resampled_sums(np.concatenate(columns, axis=1), resamples, seed)
    results: list[Result] = []
    column = 0
    for family, of_family in zip(chosen, tables, strict=True):
        values: dict[str, dict[str, Floats]] = {}
        resampled: dict[str, dict[str, Floats]] = {}
        for item, table in of_family.items():
            values[item] = family.values(table.sum(axis=0))
            resampled[item] = family.values(sums[:, column : column + table.shape[1]])
            column += table.shape[1]
        n = int(next(iter(of_family.values()))[:, -1].sum()) if of_family else 0
        for measure in family.measures() if n else ():
            name = measure.name
            found = {item: interval(float(values[item][name]), resampled[item][name]) for item in of_family}
            results.append(Result(measure, n, found, {item: resampled[item][name] for item in of_family}))
    order = list(metrics)
    return sorted(results, key=lambda result: order.index(result.measure.name))


def mcnemar_p(examples: Sequence[Example], item: Sequence[Prediction], other: Sequence[Prediction]) -> float:
    """Exact p that the two get equally many classes right."""
    rows = list(zip(examples, item, other, strict=True))
    gained = sum(a.label == e.label != b.label for e, a, b in rows)
    lost = sum(a.label != e.label == b.label for e, a, b in rows)
    return mcnemar(gained, lost)


def _tables(family: Family, examples: Sequence[Example], answers: Answers) -> dict[str, Floats]:
    """Item -> statistics, with the rows that do not count for some item emptied for all.

    An item without any row that counts is left out: its base cannot say, and those of another base can.
    """
    tables = {}
    for item, predictions in answers.items():
        check()
        table = family.statistics(examples, predictions)
        if table[:, -1].any():
            tables[item] = table
    counted = np.prod([table[:, -1] for table in tables.values()], axis=0)
    return {item: table * np.reshape(counted, (-1, 1)) for item, table in tables.items()}
