"""The metrics, one family per file; the kernel's table (`understudy/metrics.py`) names the file of each.

Does not know items, intervals (`stats.py`) or reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from services.evaluator.metrics.family import Asked, Family, Tools
from understudy.metrics import METRICS


def families(
    names: Sequence[str], labels: tuple[str, ...], positive: str | None = None, tools: Tools | None = None
) -> list[Family]:
    """The families that together compute the metrics `names`, on a panel whose classes are `labels`.

    `tools` are needed to measure, not to add up.
    """
    asked = Asked(labels, positive, tools or Tools())
    chosen = dict.fromkeys(metric.family for metric in METRICS.values() if metric.name in names)
    found: list[Family] = []
    for family in chosen:
        wanted = tuple(name for name, metric in METRICS.items() if metric.family == family and name in names)
        found += import_module(f"{__name__}.{family}").families(wanted, asked)
    return found
