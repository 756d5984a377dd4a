"""Paired bootstrap of all metrics: one count matrix for everything, against scoring every resample anew.

Prints one ratio. Target: at most 60 ms for two models, 2,000 rows, 1,000 resamples, all seven metrics. The naive way is
measured on a few resamples and scaled, from statistics that are computed already; it gives the same intervals.

    python -m bench.bootstrap
"""

from __future__ import annotations

import os
import time

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is imported; threads that wait count as CPU time

import numpy as np

from services.evaluator.compare import compare
from services.evaluator.metrics.bleu import Bleu
from services.evaluator.metrics.classification import Classification
from services.evaluator.metrics.family import Family, Floats
from services.evaluator.metrics.perplexity import Perplexity
from services.evaluator.metrics.rouge import RougeL

ROWS, RESAMPLES, SAMPLE = 2000, 1000, 20
CLASSES = np.random.default_rng(0).integers(0, 2, ROWS)
"""Of the questions."""
CLASS_METRICS = ("accuracy", "precision", "recall", "f1")


def tables(seed: int) -> list[tuple[Family, Floats]]:
    """Per-row statistics of one model, as its answers would give them."""
    dice = np.random.default_rng(seed)
    gold, said = CLASSES, dice.integers(0, 2, ROWS)
    classes = np.arange(2)
    is_gold, is_said = gold[:, None] == classes, said[:, None] == classes
    one = np.ones((ROWS, 1))
    total = dice.integers(4, 60, (ROWS, 1)) - np.arange(4)
    right = np.minimum(total, dice.integers(0, 30, (ROWS, 4)))
    lengths = total[:, :1] + dice.integers(0, 4, (ROWS, 2))
    rouge = dice.random((ROWS, 1))
    tokens = dice.integers(5, 60, (ROWS, 1))
    return [
        (
            Classification(("negative", "positive"), CLASS_METRICS),
            np.hstack([is_gold & is_said, is_said, is_gold, one]).astype(float),
        ),
        (Bleu(), np.hstack([right, total, lengths, one]).astype(float)),
        (RougeL(), np.hstack([rouge, one])),
        (Perplexity(), np.hstack([-2 * tokens * dice.random((ROWS, 1)), tokens, one])),
    ]


def ours(base: list[tuple[Family, Floats]], variant: list[tuple[Family, Floats]]) -> dict[str, tuple[float, float]]:
    """Intervals of all differences."""
    families = [family for family, _ in base]
    tables = {item: {f.key: table for f, table in of_item} for item, of_item in (("base", base), ("variant", variant))}
    found = compare(families, tables, {"variant": "base"}, CLASSES, RESAMPLES, (17,))
    return {each.metric: (each.changes["variant"][0].low, each.changes["variant"][0].high) for each in found}


def naive(base: list[tuple[Family, Floats]], variant: list[tuple[Family, Floats]], resamples: int) -> None:
    """Draw rows, gather their statistics, add them up, for each resample, metric family and model."""
    dice = np.random.default_rng(17)
    for _ in range(resamples):
        rows = dice.integers(0, ROWS, ROWS)
        for family, table in base + variant:
            family.values(
                np.array([sum(column) for column in zip(*(table[row].tolist() for row in rows), strict=True)])
            )


def main() -> None:
    base, variant = tables(1), tables(2)
    ours(base, variant)  # first calls load libraries
    times = []
    for _ in range(9):
        began = time.process_time()
        ours(base, variant)
        times.append(time.process_time() - began)
    began = time.process_time()
    naive(base, variant, SAMPLE)
    slow = (time.process_time() - began) / SAMPLE * RESAMPLES
    fast = sorted(times)[len(times) // 2]
    print(f"{ROWS} rows x {RESAMPLES} resamples, 7 metrics, 2 models paired, CPU time of one thread")
    print(f"ratio {slow / fast:.0f}x: ours {1e3 * fast:.0f} ms (target 60 ms), naive {1e3 * slow:.0f} ms")


if __name__ == "__main__":
    main()
