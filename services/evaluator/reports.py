"""Makes reports: how every item of a run did on every panel, and what that says against the one it is compared with.

A report is a pure function of its inputs: it is made when somebody wants it, and kept under the digest of these. Adds up what
was measured (`measure.py`); asks nobody, decides nothing about runs (`closer.py`), draws nothing (`page.py`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from services.evaluator.measure import Tables, tables
from services.evaluator.metrics import families
from services.evaluator.metrics.classification import Classification, likeliest
from services.evaluator.metrics.family import Family, Floats
from services.evaluator.panels import Questionnaire, card, questionnaire
from services.evaluator.scoring import Result, score
from services.evaluator.stats import mcnemar, seed_of, verdict
from understudy.errors import Invalid
from understudy.hints import nearest
from understudy.metrics import METRICS, Reading
from understudy.plan import Plan
from understudy.records import (
    Example,
    Measured,
    PanelMeasures,
    Prediction,
    TrainingRecord,
    pick_jsonl,
    read_json,
    read_jsonl,
    write_json,
)
from understudy.report import Answer, Cell, Inputs, MetricRow, PanelReport, Picked, Report, Shown
from understudy.store import keys
from understudy.store.artifacts import ArtifactStore
from understudy.store.plans import Plans
from understudy.terms import Artifact

FILE = "report.json"
SHOWN = 6
"""Rows shown per panel for each of the two ways they are picked."""
MOST_CLASSES = 12
"""Above this a confusion matrix is no longer read."""


@dataclass(frozen=True)
class Reports:
    """Makes them from what lies in the store, and keeps them there."""

    store: ArtifactStore
    plans: Plans

    def of(self, inputs: Inputs) -> Artifact:
        """The folder with `report.json` on these inputs. Raises `Invalid` when the baseline was not scored."""
        key = keys.report(inputs.run, inputs.digest)
        if found := self.store.find(key):
            return found
        with self.store.draft() as folder:
            write_json(folder / FILE, self.make(inputs))
            return self.store.put(key, folder)

    def read(self, artifact: Artifact) -> Report:
        """One that was made."""
        return read_json(self.store.fetch(artifact) / FILE, Report)

    def against(self, report: Artifact, baseline: str) -> Artifact:
        """The same report, with all items held against `baseline`."""
        return self.of(self.read(report).inputs.model_copy(update={"baseline": baseline}))

    def make(self, inputs: Inputs) -> Report:
        """Add up what was measured."""
        if inputs.baseline is not None and inputs.baseline not in inputs.scored:
            raise Invalid(f"No item `{inputs.baseline}` was scored{nearest(inputs.baseline, inputs.scored)}")
        plan = self.plans.get(inputs.plan)
        datasets = self.plans.datasets(inputs.datasets) if inputs.datasets else {}
        items = {
            name: _Item.fetch(self.store, name, each.answers, each.measures) for name, each in inputs.scored.items()
        }
        others = _others(plan, inputs)
        one = next(iter(items.values())).measured
        return Report(
            inputs=inputs,
            plan=plan,
            items=tuple(items),
            models={name: item.measured.model for name, item in items.items()},
            compared_with=others,
            panels=tuple(
                _Panel(questionnaire(self.store, plan, name, datasets), plan, items, others).report()
                for name in plan.panels
            ),
            training={name: item.training for name, item in items.items() if item.training},
            datasets={name: card(self.store, artifact) for name, artifact in sorted(datasets.items())},
            decoding=one.decoding,
            versions=one.versions,
        )


def _others(plan: Plan, inputs: Inputs) -> dict[str, str]:
    """Scored item -> the one it is held against."""
    if inputs.baseline is not None:
        return {item: inputs.baseline for item in inputs.scored if item != inputs.baseline}
    return {item: other for item in inputs.scored if (other := plan.item(item).compared_with)}


@dataclass(frozen=True)
class _Item:
    """What is known of an item that answered."""

    answers: Path
    measures: Path
    measured: Measured
    training: TrainingRecord | None

    @classmethod
    def fetch(cls, store: ArtifactStore, name: str, answers: Artifact, measures: Artifact) -> _Item:
        folder = store.fetch(measures)
        training = folder / "training.json"
        return cls(
            answers=store.fetch(answers),
            measures=folder,
            measured=read_json(folder / "measures.json", Measured),
            training=read_json(training, TrainingRecord) if training.is_file() else None,
        )


@dataclass(frozen=True)
class _Panel:
    """One panel of all scored items."""

    asked: Questionnaire
    plan: Plan
    items: Mapping[str, _Item]
    others: Mapping[str, str]

    @cached_property
    def families(self) -> list[Family]:
        return families(self.asked.panel.metrics, self.asked.labels)

    @cached_property
    def measures(self) -> dict[str, PanelMeasures]:
        return {name: item.measured.panels[self.asked.name] for name, item in self.items.items()}

    @cached_property
    def tables(self) -> dict[str, Tables]:
        """By item."""
        file = f"measures-{self.asked.name}.npz"
        return {
            name: tables(self.measures[name], item.measures / file, self.families) for name, item in self.items.items()
        }

    @cached_property
    def written(self) -> Classification | None:
        """The family that reads the written class, where the questions ask for one."""
        return next((f for f in self.families if isinstance(f, Classification) and f.reading == "written"), None)

    def report(self) -> PanelReport:
        panel, asked = self.asked.panel, self.asked
        results = score(self.families, self.tables, self.plan.bootstrap, seed_of(self.plan.seed, asked.name))
        order = [*panel.metrics]
        results.sort(key=lambda result: (result.measure.reading == "likeliest", order.index(result.measure.name)))
        computed = {result.measure.name for result in results}
        classes = {name: tables[self.written.key] for name, tables in self.tables.items()} if self.written else {}
        return PanelReport(
            name=asked.name,
            source=panel.dataset or panel.prompts or "",
            n=self._n,
            max_tokens=panel.max_tokens,
            labels=asked.labels if self.written else (),
            metrics=tuple(self._row(result) for result in results),
            not_computed={name: self._why_not(name) for name in panel.metrics if name not in computed},
            parse_failures={name: _unread(self.written, table) for name, table in classes.items() if self.written},
            refused={name: measures.refused for name, measures in self.measures.items()},
            cut={name: measures.cut for name, measures in self.measures.items()},
            confusion={name: _counts(self.written, table) for name, table in classes.items() if self.written}
            if len(asked.labels) <= MOST_CLASSES
            else {},
            examples=tuple(self._shown()),
        )

    @property
    def _n(self) -> int:
        return next(iter(self.measures.values())).n

    def _row(self, result: Result) -> MetricRow:
        measure = result.measure
        metric = METRICS[measure.name]
        cells = {}
        for item, value in result.values.items():
            cell = Cell(value=value.value, low=value.low, high=value.high)
            other = self.others.get(item)
            if other in result.values:
                change = result.change(item, other)
                cell = cell.model_copy(
                    update={
                        "delta": change.value,
                        "delta_low": change.low,
                        "delta_high": change.high,
                        "p": change.p,
                        "mcnemar_p": self._mcnemar(measure.reading, item, other) if metric.name == "accuracy" else None,
                        "verdict": verdict(change, metric.higher_is_better, result.n),
                    }
                )
            cells[item] = cell
        return MetricRow(
            metric=measure.name,
            reading=measure.reading,
            signature=measure.signature,
            n=result.n,
            higher_is_better=metric.higher_is_better,
            cells=cells,
        )

    def _mcnemar(self, reading: Reading, item: str, other: str) -> float:
        """Exact p that the two get equally many classes right."""
        (family,) = (f for f in self.families if isinstance(f, Classification) and f.reading == reading)
        both = self.tables[item][family.key], self.tables[other][family.key]
        counted = both[0][:, -1] * both[1][:, -1]
        one, two = (family.right(table) * counted for table in both)
        return mcnemar(int((one > two).sum()), int((one < two).sum()))

    def _why_not(self, metric: str) -> str:
        if not self._n:
            return "the panel has no questions"
        if any(not set(self._keys(metric)) & tables.keys() for tables in self.tables.values()):
            return "it was measured by another version; score the items anew to compare them"
        if METRICS[metric].needs == "likelihood" and any(each.references for each in self.measures.values()):
            return "the endpoint gave no log-probabilities that belong to the reference answers alone"
        return "no question has a reference answer"

    def _keys(self, metric: str) -> list[str]:
        """Of the families that compute a metric."""
        return [family.key for family in self.families if metric in {each.name for each in family.measures()}]

    def _shown(self) -> Iterator[Shown]:
        """Questions to read: some where the items differ most, then some drawn from the rest."""
        spread = self._spread()
        rows = range(self._n)
        differing = sorted((row for row in rows if spread[row] > 0), key=lambda row: (-spread[row], row))[:SHOWN]
        rest = [row for row in rows if row not in set(differing)]
        drawn = sorted(random.Random(f"{self.plan.seed}/{self.asked.name}").sample(rest, min(SHOWN, len(rest))))
        numbers = {*differing, *drawn}
        examples = pick_jsonl(self.asked.file, Example, numbers)
        file = f"answers-{self.asked.name}.jsonl"
        said = {name: pick_jsonl(item.answers / file, Prediction, numbers) for name, item in self.items.items()}
        picked: list[tuple[int, Picked]] = [(row, "answers differ most") for row in differing]
        picked += [(row, "at random") for row in drawn]
        for row, how in picked:
            example = examples[row]
            yield Shown(
                id=example.id,
                picked=how,
                prompt=example.prompt,
                reference=example.completion,
                answers={name: self._answer(name, row, example, answers[row]) for name, answers in said.items()},
            )

    def _spread(self) -> Floats:
        """(n,): how far apart the items are on each question: in being right, else in the metric of answers that the table
        names last, else in whether they wrote the same."""
        of_answers = [f for f in self.families if METRICS[f.measures()[0].name].needs != "likelihood"]
        for family in [self.written] if self.written else reversed(of_answers):
            measured = [tables[family.key] for tables in self.tables.values() if family.key in tables]
            if len(measured) == len(self.tables) and all(table[:, -1].any() for table in measured):
                name = family.measures()[0].name
                by_item = np.stack([np.nan_to_num(family.values(table)[name]) for table in measured])
                spread: Floats = by_item.max(axis=0) - by_item.min(axis=0)
                return spread
        file = f"answers-{self.asked.name}.jsonl"
        texts = zip(
            *([p.text for p in read_jsonl(i.answers / file, Prediction)] for i in self.items.values()), strict=True
        )
        return np.array([float(len(set(row)) > 1) for row in texts])

    def _answer(self, item: str, row: int, example: Example, given: Prediction) -> Answer:
        table = self.tables[item].get(self.written.key) if self.written else None
        label = self.written.said(table[row]) if self.written and table is not None else None
        return Answer(
            text=given.text,
            finish_reason=given.finish_reason,
            label=label,
            right=label == example.label if self.written else None,
            likeliest=likeliest(given, self.asked.labels) if self.written else None,
        )


def _unread(family: Classification, table: Floats) -> int:
    """Answers in which no class could be read."""
    return int(family.confusion(table)[:, -1].sum())


def _counts(family: Classification, table: Floats) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(count) for count in row) for row in family.confusion(table))
