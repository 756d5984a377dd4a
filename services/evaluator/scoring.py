"""Compares items on one panel: metrics with intervals, and paired differences, from what was measured.

Joins the metric families with the bootstrap. Measures nothing itself (`measure.py`), asks and draws nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.evaluator.measure import Tables
from services.evaluator.metrics.family import Family, Floats, Measure
from services.evaluator.stats import Difference, Interval, difference, interval, resampled_sums
from understudy.interrupt import check


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
    chosen: Sequence[Family], measured: Mapping[str, Tables], resamples: int, seed: tuple[int, ...]
) -> list[Result]:
    """All metrics of the `chosen` families of all items; one that no row counts for is left out."""
    tables = [_tables(family, measured) for family in chosen]
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
            check()
            name = measure.name
            found = {item: interval(float(values[item][name]), resampled[item][name]) for item in of_family}
            results.append(Result(measure, n, found, {item: resampled[item][name] for item in of_family}))
    return results


def _tables(family: Family, measured: Mapping[str, Tables]) -> dict[str, Floats]:
    """Item -> statistics, with the rows that do not count for some item emptied for all.

    An item without any row that counts is left out: its base cannot say, and those of another base can.
    """
    of_items = {item: tables[family.key] for item, tables in measured.items() if family.key in tables}
    tables = {item: table for item, table in of_items.items() if table[:, -1].any()}
    counted = np.prod([table[:, -1] for table in tables.values()], axis=0)
    return {item: table * np.reshape(counted, (-1, 1)) for item, table in tables.items()}
