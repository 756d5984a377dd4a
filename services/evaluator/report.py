"""The report as data: what was asked, how every item did, and what that says against the one it is compared with.

`report.json` is a `Report`; the page (`page.py`) and the command line draw the same one. Holds no clock and no path:
the same scores give the same bytes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.evaluator.metrics.rouge import rouge_l
from services.evaluator.panels import Questionnaire
from services.evaluator.predict import REFUSED
from services.evaluator.scoring import Result, mcnemar_p, score
from services.evaluator.stats import Verdict, seed_of, verdict
from understudy.plan import Plan
from understudy.records import DatasetCard, Example, Prediction, Turn

SHOWN = 6
"""Rows shown per panel for each of the two ways they are picked."""
MOST_CLASSES = 12
"""Above this a confusion matrix is no longer read."""
PACKAGES = ("numpy", "scipy", "sacrebleu", "nltk", "rapidfuzz")


class Part(BaseModel):
    """Base of all parts of a report."""

    model_config = ConfigDict(frozen=True)


class Cell(Part):
    """One metric of one item, and against the one it is compared with."""

    value: float
    low: float
    high: float
    delta: float | None = None
    """Value minus the other's; None where there is no other, or it was not scored."""
    delta_low: float | None = None
    delta_high: float | None = None
    p: float | None = None
    mcnemar_p: float | None = None
    """Accuracy only: exact."""
    verdict: Verdict | None = None


class MetricRow(Part):
    """One metric of all items."""

    metric: str
    signature: str
    n: int
    higher_is_better: bool
    cells: dict[str, Cell]
    """By item, without those for which no question counts."""


class Answer(Part):
    """What one item said to a shown question."""

    text: str
    finish_reason: str
    label: str | None = None
    right: bool | None = None
    """None unless the question asks for a class."""


class Shown(Part):
    """One question with all answers."""

    id: str
    picked: Literal["at random", "answers differ most"]
    prompt: tuple[Turn, ...]
    reference: str
    answers: dict[str, Answer]
    """By item."""


class PanelReport(Part):
    """One panel."""

    name: str
    source: str
    """Dataset whose test split was asked, or the file of prompts."""
    n: int
    max_tokens: int
    labels: tuple[str, ...]
    metrics: tuple[MetricRow, ...]
    not_computed: dict[str, str]
    """Metric -> why it is missing."""
    parse_failures: dict[str, int]
    """Item -> answers in which no class could be read; empty unless the panel asks for classes."""
    refused: dict[str, int]
    """Item -> questions the endpoint would not take."""
    cut: dict[str, int]
    """Item -> answers that ran into `max_tokens`."""
    confusion: dict[str, tuple[tuple[int, ...], ...]]
    """Item -> rows: actual class, columns: class in the answer, the last one for none."""
    examples: tuple[Shown, ...]


class Training(Part):
    """What the report says of one training; the rest of training.json is in the adapter."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    steps: int = 0
    tokens: int = 0
    device: str = ""
    micro_batch: int | None = None
    loss: tuple[tuple[int, float], ...] = ()
    """(optimizer step, loss)."""
    datasets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Dataset -> examples seen, tokens seen, left out as too long."""
    versions: dict[str, str] = Field(default_factory=dict)


class Report(Part):
    """`report.json`."""

    format: Literal["understudy.report.v2"] = "understudy.report.v2"
    run: str
    plan: dict[str, Any]
    """`plan.json`."""
    items: tuple[str, ...]
    """Those that were scored, in the order of the plan."""
    models: dict[str, str]
    """Item -> name on the endpoint."""
    compared_with: dict[str, str]
    """Item -> the one it is held against, which may not have been scored."""
    failed: dict[str, str]
    """Item -> reason."""
    cancelled: tuple[str, ...]
    """Items that somebody had ended before they were scored."""
    panels: tuple[PanelReport, ...]
    training: dict[str, Training]
    datasets: dict[str, DatasetCard]
    decoding: dict[str, float | int | str]
    versions: dict[str, str]


def compare(plan: Plan, asked: Questionnaire, answers: Mapping[str, Sequence[Prediction]]) -> PanelReport:
    """One panel of all scored items; `answers` in the order of the items, each in that of the questions."""
    panel = asked.panel
    seed = seed_of(plan.seed, asked.name)
    others = {item.name: item.compared_with for item in plan.items if item.compared_with}
    results = score(panel.metrics, asked.labels, asked.examples, answers, plan.bootstrap, seed)
    computed = {result.measure.name for result in results}
    counts = {name: list(predictions) for name, predictions in answers.items()}
    return PanelReport(
        name=asked.name,
        source=panel.dataset or panel.prompts or "",
        n=len(asked.examples),
        max_tokens=panel.max_tokens,
        labels=asked.labels,
        metrics=tuple(_row(result, asked, answers, others) for result in results),
        not_computed={name: _why_not(name, asked) for name in panel.metrics if name not in computed},
        parse_failures={item: sum(p.label is None for p in rows) for item, rows in counts.items()}
        if asked.labels
        else {},
        refused={item: sum(p.finish_reason == REFUSED for p in rows) for item, rows in counts.items()},
        cut={item: sum(p.finish_reason == "length" for p in rows) for item, rows in counts.items()},
        confusion={item: _confusion(asked, rows) for item, rows in counts.items()}
        if 0 < len(asked.labels) <= MOST_CLASSES
        else {},
        examples=tuple(_shown(asked, answers, plan.seed)),
    )


def versions() -> dict[str, str]:
    """Of what computed the numbers."""
    return {name: version(name) for name in PACKAGES}


def _row(
    result: Result,
    asked: Questionnaire,
    answers: Mapping[str, Sequence[Prediction]],
    others: Mapping[str, str],
) -> MetricRow:
    measure = result.measure
    cells = {}
    for item, value in result.values.items():
        cell = Cell(value=value.value, low=value.low, high=value.high)
        other = others.get(item)
        if other in result.values:
            change = result.change(item, other)
            exact = mcnemar_p(asked.examples, answers[item], answers[other]) if measure.name == "accuracy" else None
            cell = cell.model_copy(
                update={
                    "delta": change.value,
                    "delta_low": change.low,
                    "delta_high": change.high,
                    "p": change.p,
                    "mcnemar_p": exact,
                    "verdict": verdict(change, measure.higher_is_better, result.n),
                }
            )
        cells[item] = cell
    return MetricRow(
        metric=measure.name,
        signature=measure.signature,
        n=result.n,
        higher_is_better=measure.higher_is_better,
        cells=cells,
    )


def _why_not(metric: str, asked: Questionnaire) -> str:
    if not asked.examples:
        return "the panel has no questions"
    if metric == "perplexity" and any(example.completion.strip() for example in asked.examples):
        return "the endpoint gave no log-probabilities that belong to the reference answers alone"
    return "no question has a reference answer"


def _confusion(asked: Questionnaire, predictions: Sequence[Prediction]) -> tuple[tuple[int, ...], ...]:
    place = {label: index for index, label in enumerate(asked.labels)}
    table = [[0] * (len(place) + 1) for _ in place]
    for example, prediction in zip(asked.examples, predictions, strict=True):
        if example.label is not None:
            table[place[example.label]][place[prediction.label] if prediction.label else len(place)] += 1
    return tuple(map(tuple, table))


def _shown(asked: Questionnaire, answers: Mapping[str, Sequence[Prediction]], seed: int) -> list[Shown]:
    """Questions to read: some where the items differ most, then some drawn from the rest."""
    rows = range(len(asked.examples))
    spread = {row: _spread(asked, asked.examples[row], [given[row] for given in answers.values()]) for row in rows}
    differing = sorted((row for row in rows if spread[row]), key=lambda row: (-spread[row], row))[:SHOWN]
    rest = [row for row in rows if row not in set(differing)]
    drawn = sorted(random.Random(f"{seed}/{asked.name}").sample(rest, min(SHOWN, len(rest))))
    picked: list[tuple[int, Literal["at random", "answers differ most"]]] = [
        (row, "answers differ most") for row in differing
    ]
    picked += [(row, "at random") for row in drawn]
    return [_row_shown(asked, answers, row, how) for row, how in picked]


def _spread(asked: Questionnaire, example: Example, given: Sequence[Prediction]) -> float:
    """How far apart the answers to one question are: in being right, or in ROUGE-L against the reference."""
    if asked.labels:
        right = [prediction.label == example.label for prediction in given]
        return float(max(right) - min(right))
    if not example.completion.strip():
        return float(len({prediction.text for prediction in given}) > 1)
    quality = [rouge_l(prediction.text, example.completion) for prediction in given]
    return max(quality) - min(quality)


def _row_shown(
    asked: Questionnaire,
    answers: Mapping[str, Sequence[Prediction]],
    row: int,
    how: Literal["at random", "answers differ most"],
) -> Shown:
    example = asked.examples[row]
    shown = {
        item: Answer(
            text=given[row].text,
            finish_reason=given[row].finish_reason,
            label=given[row].label,
            right=given[row].label == example.label if asked.labels else None,
        )
        for item, given in answers.items()
    }
    return Shown(id=example.id, picked=how, prompt=example.prompt, reference=example.completion, answers=shown)
