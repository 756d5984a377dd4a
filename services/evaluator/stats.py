"""The paired bootstrap: intervals and comparisons from per-row sufficient statistics.

One matrix of resample counts times the statistics gives the sums of every resample for every metric of every item;
rows are drawn together for all items, so differences are paired. Does not know what the columns mean (`metrics/`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from services.evaluator.metrics.family import Floats, Ints
from understudy.interrupt import check
from understudy.report import Verdict

BLOCK_BYTES = 1 << 22
"""Of one block of the count matrix: few and large products, because waking the threads of a small one costs more than it."""
FEWEST_ROWS = 10
"""Below this an interval from resampling says too little for a verdict."""
DIGITS = 6
"""Decimals kept: what remains is far below the interval, and does not depend on the order of additions."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """An item's value minus that of the one it is compared with."""

    p: float
    """Two-sided: how often resamples fall on the other side of zero, twice the smaller share."""


def seed_of(seed: int, panel: str) -> tuple[int, int]:
    """The bootstrap's seed for one panel of a run."""
    return abs(seed), zlib.crc32(panel.encode())


def count_blocks(strata: Ints, resamples: int, seed: tuple[int, ...]) -> Iterator[Floats]:
    """The resample-count matrix (resamples, n) in blocks of rows: how often each of n rows was drawn.

    As many draws from each stratum (n,) as it has rows.
    """
    generator = np.random.default_rng(seed)
    n = len(strata)
    order = np.argsort(strata, kind="stable")
    _, first, sizes = np.unique(strata[order], return_index=True, return_counts=True)
    starts, widths = np.repeat(first, sizes), np.repeat(sizes, sizes)
    size = max(1, min(resamples, BLOCK_BYTES // (8 * max(1, n))))
    for start in range(0, resamples, size):
        check()
        block = np.empty((min(size, resamples - start), n))
        for row in block:  # one at a time: its draws and counts stay in a core's cache
            if len(sizes) <= 1:
                row[:] = np.bincount(generator.integers(0, n, size=n), minlength=n)
            else:
                row[order] = np.bincount(starts + (generator.random(n) * widths).astype(np.intp), minlength=n)
        yield block


def resampled_sums(statistics: Floats, strata: Ints, resamples: int, seed: tuple[int, ...]) -> Floats:
    """Sums of `statistics` (n, k) over each resample: (resamples, k)."""
    blocks = [block @ statistics for block in count_blocks(strata, resamples, seed)]
    return np.concatenate(blocks)


def interval(value: float, resampled: Floats) -> Interval:
    """`value` with the 2.5 and 97.5 percentiles of its resamples; those without a value (NaN) are left out."""
    low, high = np.nanpercentile(resampled, (2.5, 97.5))
    return Interval(round(float(value), DIGITS), round(float(low), DIGITS), round(float(high), DIGITS))


def difference(value: float, base: float, resampled: Floats, resampled_base: Floats) -> Difference:
    """The paired difference; p is (1 + count) / (1 + resamples) as a finite sample asks for."""
    deltas = resampled - resampled_base
    deltas = deltas[~np.isnan(deltas)]
    around = interval(value - base, deltas)
    smaller = min(int((deltas <= 0).sum()), int((deltas >= 0).sum()))
    p = min(1.0, 2 * (1 + smaller) / (1 + len(deltas)))
    return Difference(around.value, around.low, around.high, round(p, DIGITS))


def verdict(change: Difference, higher_is_better: bool, n: int) -> Verdict:
    """Better or worse only when the whole interval of the difference lies on one side of zero."""
    if n < FEWEST_ROWS or not (change.low > 0 or change.high < 0):  # also where they are no numbers
        return "no clear difference"
    return "better" if (change.low > 0) == higher_is_better else "worse"


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test: rows only the one got right, rows only the other got right.

    Under no difference each such row is a coin toss.
    """
    from scipy.stats import binomtest  # takes a second to load

    return round(float(binomtest(gained, gained + lost).pvalue), DIGITS) if gained + lost else 1.0
