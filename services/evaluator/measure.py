"""Measures an item's answers: for every question, what each metric sums. Made once; whoever reports only adds up.

Also the one place that knows how answers and measures lie in their artifacts. Asks nobody (`predict.py`), and compares nothing
(`compare.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from services.evaluator.metrics import families
from services.evaluator.metrics.family import Floats, Tools, Unavailable
from services.evaluator.panels import Questionnaire
from services.evaluator.predict import REFUSED
from understudy.interrupt import check
from understudy.records import Answered, Measured, PanelMeasures, Prediction, write_json, write_jsonl

PACKAGES = ("numpy", "sacrebleu", "nltk", "rapidfuzz")
ANSWERED, MEASURED, TRAINING = "answers.json", "measures.json", "training.json"
Tables = Mapping[str, Floats]
"""Family -> statistics (n, k), see `metrics/family.py`."""


def answers_file(folder: Path, panel: str) -> Path:
    """The answers to one panel, in an answers artifact."""
    return folder / f"answers-{panel}.jsonl"


def write_answers(folder: Path, about: Answered, answers: Mapping[str, Sequence[Prediction]]) -> None:
    """An answers artifact: of each panel the answers in the order of the questions."""
    for panel, predictions in answers.items():
        write_jsonl(answers_file(folder, panel), predictions)
    write_json(folder / ANSWERED, about)


def measure(
    asked: Questionnaire, predictions: Sequence[Prediction], folder: Path, tools: Tools | None = None
) -> PanelMeasures:
    """Measure the answers to one panel, in the order of the questions, and write the tables into `folder`."""
    tables: dict[str, Floats] = {}
    signatures: dict[str, dict[str, str]] = {}
    unavailable: dict[str, str] = {}
    for family in families(asked.panel.metrics, asked.labels, asked.panel.positive, tools):
        check()
        try:
            table, signature = family.statistics(asked.examples, predictions), family.signatures()
        except Unavailable as error:
            unavailable |= dict.fromkeys(family.names, str(error))
            continue
        tables[family.key], signatures[family.key] = table, signature
    np.savez_compressed(_tables_file(folder, asked.name), **tables)  # type: ignore[arg-type]  # the stub takes tables for options
    return PanelMeasures(
        n=len(asked.examples),
        references=sum(bool(example.completion.strip()) for example in asked.examples),
        signatures=signatures,
        refused=sum(p.finish_reason == REFUSED for p in predictions),
        cut=sum(p.finish_reason == "length" for p in predictions),
        unavailable=unavailable,
    )


def write_measures(folder: Path, about: Answered, panels: Mapping[str, PanelMeasures]) -> None:
    """What a measures artifact says of its tables."""
    packages = {name: version(name) for name in PACKAGES}
    measured = Measured(
        item=about.item, model=about.model, decoding=about.decoding, panels=dict(panels), versions=packages
    )
    write_json(folder / MEASURED, measured)


def read_tables(folder: Path, panel: str) -> Tables:
    """The tables of one panel."""
    with np.load(_tables_file(folder, panel), allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def _tables_file(folder: Path, panel: str) -> Path:
    return folder / f"measures-{panel}.npz"
