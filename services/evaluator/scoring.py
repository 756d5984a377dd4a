"""Scores predictions: metrics with intervals for one variant, and paired differences for several.

Joins the metric families with the bootstrap. Does not ask models (`predict.py`) or draw anything (`report.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.evaluator.metrics import families
from services.evaluator.metrics.family import Family, Floats, Measure
from services.evaluator.stats import Difference, Interval, difference, interval, mcnemar, resampled_sums
from understudy.records import Example, Prediction

Answers = Mapping[str, Sequence[Prediction]]
"""Variant -> predictions, each in the order of the examples."""


@dataclass(frozen=True)
class Result:
    """One metric on one panel."""

    measure: Measure
    n: int
    """Rows that count for every variant: the same rows for all, so that they can be compared."""
    values: dict[str, Interval]
    resampled: dict[str, Floats]
    """Variant -> the metric on each resample, (resamples,)."""

    def change(self, variant: str, base: str) -> Difference:
        """The variant's value minus the base's."""
        return difference(
            self.values[variant].value, self.values[base].value, self.resampled[variant], self.resampled[base]
        )


def score(
    metrics: Sequence[str],
    labels: tuple[str, ...],
    examples: Sequence[Example],
    answers: Answers,
    resamples: int,
    seed: tuple[int, ...],
) -> list[Result]:
    """All `metrics` of all variants on one panel; a metric that no row counts for is left out."""
    chosen = families(metrics, labels)
    tables = [_tables(family, examples, answers) for family in chosen]
    if not examples or not chosen:
        return []
    stacked = np.concatenate([table for of_family in tables for table in of_family.values()], axis=1)
    sums = resampled_sums(stacked, resamples, seed)
    results: list[Result] = []
    column = 0
    for family, of_family in zip(chosen, tables, strict=True):
        values: dict[str, dict[str, Floats]] = {}
        resampled: dict[str, dict[str, Floats]] = {}
        for variant, table in of_family.items():
            values[variant] = family.values(table.sum(axis=0))
            resampled[variant] = family.values(sums[:, column : column + table.shape[1]])
            column += table.shape[1]
        n = int(next(iter(of_family.values()))[:, -1].sum()) if of_family else 0
        for measure in family.measures() if n else ():
            name = measure.name
            found = {variant: interval(float(values[variant][name]), resampled[variant][name]) for variant in answers}
            results.append(Result(measure, n, found, {variant: resampled[variant][name] for variant in answers}))
    order = list(metrics)
    return sorted(results, key=lambda result: order.index(result.measure.name))


def mcnemar_p(examples: Sequence[Example], variant: Sequence[Prediction], base: Sequence[Prediction]) -> float:
    """Exact p that variant and base get equally many classes right."""
    rows = list(zip(examples, variant, base, strict=True))
    gained = sum(v.label == e.label != b.label for e, v, b in rows)
    lost = sum(v.label != e.label == b.label for e, v, b in rows)
    return mcnemar(gained, lost)


def _tables(family: Family, examples: Sequence[Example], answers: Answers) -> dict[str, Floats]:
    """Variant -> statistics, with the rows that do not count for some variant emptied for all."""
    tables = {variant: family.statistics(examples, predictions) for variant, predictions in answers.items()}
    counted = np.prod([table[:, -1] for table in tables.values()], axis=0)
    return {variant: table * np.reshape(counted, (-1, 1)) for variant, table in tables.items()}
