"""The report as data: what was asked, how every item did, and what that says against the one it is compared with.

`report.json` is a `Report`. The evaluator makes it (`services/evaluator/reports.py`); the page, the API and the command line
read this type, and what it says in words is in `findings.py`. It follows from its `Inputs` alone and holds no clock, no path,
and nothing that depends on how often anybody was interrupted: times, reasons and the gate's figures are in the run's state
(`belt/folds/views.py`). Computes nothing.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from understudy.metrics import Reading
from understudy.plan import Plan
from understudy.records import DatasetCard, TrainingRecord, Turn
from understudy.terms import Artifact, Frozen

FORMAT = "understudy.report.v3"
Verdict = Literal["better", "worse", "no clear difference"]
Picked = Literal["at random", "answers differ most"]


class Scored(Frozen):
    """What is known of an item that answered."""

    answers: Artifact
    measures: Artifact


class Inputs(Frozen):
    """All that a report follows from."""

    run: str
    plan: Artifact
    datasets: Artifact | None = None
    scored: dict[str, Scored]
    """By item, in the order of the plan."""
    failed: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()
    """Items that somebody had ended before they were scored."""
    baseline: str | None = None
    """The item that all others are held against; None: each against the one that the plan names."""

    @property
    def digest(self) -> str:
        """Equal for equal inputs, and for nothing else; an input that comes later and has its default changes none."""
        return hashlib.sha256(f"{FORMAT}\n{self.model_dump_json(exclude_defaults=True)}".encode()).hexdigest()


class Cell(Frozen):
    """One metric of one item, and against the one it is compared with."""

    n: int
    """Questions that count for it."""
    value: float
    low: float
    high: float
    paired_n: int | None = None
    """Questions that count for both; the difference is of these."""
    delta: float | None = None
    """Value minus the other's; None where there is no other, it was not scored, or the two cannot be compared."""
    delta_low: float | None = None
    delta_high: float | None = None
    p: float | None = None
    mcnemar_p: float | None = None
    """Accuracy only: exact."""
    verdict: Verdict | None = None


class MetricRow(Frozen):
    """One metric of all items."""

    metric: str
    reading: Reading = "written"
    """Which class an answer stands for, where the metric is about classes."""
    signature: str
    higher_is_better: bool
    cells: dict[str, Cell]
    """By item, without those for which no question counts."""

    @property
    def n(self) -> int:
        """Questions that count for some item."""
        return max((cell.n for cell in self.cells.values()), default=0)


class Answer(Frozen):
    """What one item said to a shown question."""

    text: str
    finish_reason: str
    label: str | None = None
    right: bool | None = None
    """None unless the question asks for a class."""
    likeliest: str | None = None
    """The class it finds most likely; None where that is not known."""


class Shown(Frozen):
    """One question with all answers."""

    id: str
    picked: Picked
    prompt: tuple[Turn, ...]
    reference: str
    answers: dict[str, Answer]
    """By item."""


class PanelReport(Frozen):
    """One panel."""

    name: str
    source: str
    """Dataset whose test split was asked, or the file of prompts."""
    n: int
    max_tokens: int
    labels: tuple[str, ...]
    metrics: tuple[MetricRow, ...]
    not_computed: dict[str, str]
    """Metric, or `metric of item`, -> why it is missing."""
    parse_failures: dict[str, int]
    """Item -> answers in which no class could be read; empty unless the panel asks for classes."""
    refused: dict[str, int]
    """Item -> questions the endpoint would not take."""
    cut: dict[str, int]
    """Item -> answers that ran into `max_tokens`."""
    confusion: dict[str, tuple[tuple[int, ...], ...]]
    """Item -> rows: actual class, columns: class in the answer, the last one for none."""
    examples: tuple[Shown, ...]

    def row(self, metric: str, reading: Reading = "written") -> MetricRow | None:
        """One of its metrics, if it was computed."""
        return next((row for row in self.metrics if (row.metric, row.reading) == (metric, reading)), None)


class Report(Frozen):
    """`report.json`."""

    format: Literal["understudy.report.v3"] = "understudy.report.v3"
    inputs: Inputs
    """What this follows from."""
    plan: Plan
    items: tuple[str, ...]
    """Those that were scored, in the order of the plan."""
    models: dict[str, str]
    """Item -> name on the endpoint."""
    compared_with: dict[str, str]
    """Item -> the one it is held against, which may not have been scored."""
    panels: tuple[PanelReport, ...]
    training: dict[str, TrainingRecord]
    datasets: dict[str, DatasetCard]
    decoding: dict[str, float | int | str]
    versions: dict[str, str]
    """Of what computed the numbers."""

    @property
    def run(self) -> str:
        return self.inputs.run

    @property
    def compared(self) -> tuple[str, ...]:
        """The items that are held against another one that was scored too."""
        return tuple(item for item in self.items if self.compared_with.get(item) in self.items)
