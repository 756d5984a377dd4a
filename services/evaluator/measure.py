"""Measures an item's answers: for every question, what each metric sums. Made once; whoever reports only adds up.

Asks nobody (`predict.py`), and compares nothing (`scoring.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from services.evaluator.metrics import families
from services.evaluator.metrics.family import Family, Floats
from services.evaluator.panels import Questionnaire
from services.evaluator.predict import REFUSED
from understudy.interrupt import check
from understudy.records import PanelMeasures, Prediction

PACKAGES = ("numpy", "sacrebleu", "nltk", "rapidfuzz")
Tables = Mapping[str, Floats]
"""Family -> statistics (n, k), see `metrics/family.py`."""


def measure(asked: Questionnaire, predictions: Sequence[Prediction], file: Path) -> PanelMeasures:
    """Measure the answers to one panel, in the order of the questions, and write the tables to `file`."""
    found, signatures = {}, {}
    for family in families(asked.panel.metrics, asked.labels):
        check()
        found[family.key] = family.statistics(asked.examples, predictions)
        signatures[family.key] = _signatures(family)
    np.savez_compressed(file, **found)  # type: ignore[arg-type]  # whose stub takes the tables for its options
    return PanelMeasures(
        n=len(asked.examples),
        references=sum(bool(example.completion.strip()) for example in asked.examples),
        signatures=signatures,
        refused=sum(p.finish_reason == REFUSED for p in predictions),
        cut=sum(p.finish_reason == "length" for p in predictions),
    )


def tables(measures: PanelMeasures, file: Path, chosen: Sequence[Family]) -> Tables:
    """The tables in `file` of those of the `chosen` families that were measured exactly as they measure now."""
    same = [family.key for family in chosen if measures.signatures.get(family.key) == _signatures(family)]
    with np.load(file, allow_pickle=False) as stored:
        return {key: stored[key] for key in same}


def versions() -> dict[str, str]:
    """Of what computes the measures."""
    return {name: version(name) for name in PACKAGES}


def _signatures(family: Family) -> tuple[str, ...]:
    return tuple(each.signature for each in family.measures())
