"""Compares items on one panel: metrics with intervals, and paired differences, from what was measured.

Joins the metric families with the bootstrap. Measures nothing itself (`measure.py`), asks and draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.evaluator.measure import Tables
from services.evaluator.metrics.family import Family, Floats, Ints
from services.evaluator.stats import Difference, Interval, difference, interval, resampled_sums
from understudy.interrupt import check
from understudy.metrics import Reading

Who = tuple[str, str]
"""(item, item): all rows that count for it; (item, other): those that count for both."""


@dataclass(frozen=True)
class Compared:
    """One metric of all items on one panel."""

    metric: str
    reading: Reading
    family: str
    values: dict[str, tuple[Interval, int]]
    """Item -> its value, and how many rows count for it; without those for which none does."""
    changes: dict[str, tuple[Difference, int]]
    """Item -> its value minus that of the one it is held against, and how many rows count for both: it is of these alone."""


@dataclass(frozen=True)
class _Column:
    """The sums of one table: over all rows, and over each resample."""

    total: dict[str, Floats]
    resampled: dict[str, Floats]


def compare(
    chosen: Sequence[Family],
    measured: Mapping[str, Tables],
    others: Mapping[str, str],
    strata: Ints,
    resamples: int,
    seed: tuple[int, ...],
) -> list[Compared]:
    """All metrics of the `chosen` families; one that no row of anybody counts for is left out.

    `others` says which item each is held against. All rows are drawn together; for averages over classes, from each of the
    `strata` (n,) as many as it has.
    """
    asked = {family.key: dict(_tables(family, measured, others)) for family in chosen}
    alike = _resampled(asked, chosen, np.zeros_like(strata), resamples, seed)
    averaged = [family for family in chosen if family.by_class]
    by_class = _resampled(asked, averaged, strata, resamples, seed) if strata.any() else alike
    found: list[Compared] = []
    for family in chosen:
        of_family: dict[Who, _Column] = {}
        rows: dict[Who, int] = {}
        for who, table in asked[family.key].items():
            check()
            values = family.values(alike[family.key, who])
            if family.by_class:
                of_classes = family.values(by_class[family.key, who])
                values |= {name: of_classes[name] for name in family.by_class}
            of_family[who] = _Column(family.values(table.sum(axis=0)), values)
            rows[who] = int(table[:, -1].sum())
        items = [item for item, beside in of_family if item == beside]
        for name in family.names if items else ():
            shown = {item: (_value(of_family[item, item], name), rows[item, item]) for item in items}
            changes = {}
            for item, other in others.items():
                if item in shown and other in shown:
                    # Without a table of what counts for both, all that counts for one does for the other.
                    pair = (item, other) if (item, other) in rows else (item, item)
                    mirror = (other, item) if (item, other) in rows else (other, other)
                    if rows[pair]:
                        changes[item] = _change(of_family[pair], of_family[mirror], name), rows[pair]
            found.append(Compared(name, family.reading, family.key, shown, changes))
    return found


def _tables(family: Family, measured: Mapping[str, Tables], others: Mapping[str, str]) -> Iterator[tuple[Who, Floats]]:
    """(item, item) -> its statistics, and (item, other) -> those of the rows that count for both, where these are fewer."""
    of_items = {item: tables[family.key] for item, tables in measured.items() if family.key in tables}
    own = {item: table for item, table in of_items.items() if table[:, -1].any()}
    for item, table in own.items():
        yield (item, item), table
    pairs = {frozenset((item, other)) for item, other in others.items() if item in own and other in own}
    for one, two in sorted(map(sorted, pairs)):
        if (own[one][:, -1] != own[two][:, -1]).any():
            both = own[one][:, -1:] * own[two][:, -1:]
            yield (one, two), own[one] * both
            yield (two, one), own[two] * both


def _resampled(
    asked: Mapping[str, Mapping[Who, Floats]],
    chosen: Sequence[Family],
    strata: Ints,
    resamples: int,
    seed: tuple[int, ...],
) -> dict[tuple[str, Who], Floats]:
    """(family, whose table) -> its sums over each resample."""
    tables = {(family.key, who): table for family in chosen for who, table in asked[family.key].items()}
    if not tables:
        return {}
    sums = resampled_sums(np.concatenate(list(tables.values()), axis=1), strata, resamples, seed)
    ends = np.cumsum([table.shape[1] for table in tables.values()])
    return dict(zip(tables, np.split(sums, ends[:-1], axis=1), strict=True))


def _value(column: _Column, name: str) -> Interval:
    return interval(float(column.total[name]), column.resampled[name])


def _change(column: _Column, other: _Column, name: str) -> Difference:
    values = float(column.total[name]), float(other.total[name])
    return difference(*values, column.resampled[name], other.resampled[name])
