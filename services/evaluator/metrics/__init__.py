"""The metrics, one family per file. Does not know items, intervals (`stats.py`) or reports."""

from __future__ import annotations

from collections.abc import Sequence

from services.evaluator.metrics.bleu import Bleu
from services.evaluator.metrics.classification import Classification
from services.evaluator.metrics.family import Family
from services.evaluator.metrics.perplexity import Perplexity
from services.evaluator.metrics.rouge import RougeL
from understudy.recipe import CLASS_METRICS


def families(names: Sequence[str], labels: tuple[str, ...]) -> list[Family]:
    """The families that together compute the metrics `names`, on a panel whose classes are `labels`."""
    chosen: list[Family] = []
    if wanted := tuple(name for name in CLASS_METRICS if name in names):
        chosen.append(Classification(labels, wanted))
    if "bleu" in names:
        chosen.append(Bleu())
    if "rougeL" in names:
        chosen.append(RougeL())
    if "perplexity" in names:
        chosen.append(Perplexity())
    return chosen
