"""Makes reports: how every item of a run did on every panel, and what that says against the one it is compared with.

A report is a pure function of its inputs: it is made when somebody wants it, and kept under the digest of these. Adds up what
was measured (`measure.py`); asks nobody, decides nothing about runs (`closer.py`), draws nothing (`page.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from services.evaluator.compare import Compared, compare
from services.evaluator.examples import Examples
from services.evaluator.measure import MEASURED, TRAINING, Tables, read_tables
from services.evaluator.metrics import families
from services.evaluator.metrics.classification import Classification
from services.evaluator.metrics.family import Family, Floats, Ints
from services.evaluator.panels import Questionnaire, card, questionnaire
from services.evaluator.stats import mcnemar, seed_of, verdict
from understudy.errors import Invalid
from understudy.hints import nearest
from understudy.metrics import METRICS
from understudy.plan import Plan
from understudy.records import Measured, PanelMeasures, TrainingRecord, read_json, write_json
from understudy.report import Cell, Inputs, MetricRow, PanelReport, Report
from understudy.store import keys
from understudy.store.artifacts import ArtifactStore
from understudy.store.plans import Plans
from understudy.terms import Artifact

FILE = "report.json"
MOST_CLASSES = 12
"""Above this a confusion matrix is no longer read."""
ANOTHER_VERSION = "it was measured by another version of Understudy"


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
        items = {name: _Item.fetch(self.store, each.answers, each.measures) for name, each in inputs.scored.items()}
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
    def fetch(cls, store: ArtifactStore, answers: Artifact, measures: Artifact) -> _Item:
        folder = store.fetch(measures)
        training = folder / TRAINING
        return cls(
            answers=store.fetch(answers),
            measures=folder,
            measured=read_json(folder / MEASURED, Measured),
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
        return families(self.asked.panel.metrics, self.asked.labels, self.asked.panel.positive)

    @cached_property
    def written(self) -> Classification | None:
        """The family that reads the written class, where the questions ask for one."""
        return next((f for f in self.families if isinstance(f, Classification) and f.reading == "written"), None)

    @cached_property
    def measures(self) -> dict[str, PanelMeasures]:
        return {name: item.measured.panels[self.asked.name] for name, item in self.items.items()}

    @cached_property
    def signatures(self) -> dict[str, dict[str, str]]:
        """Family -> what the first item that has it was measured by, which the others must share."""
        found: dict[str, dict[str, str]] = {}
        for measures in self.measures.values():
            found = {**measures.signatures, **found}
        return found

    @cached_property
    def tables(self) -> dict[str, Tables]:
        """By item, those that can be compared."""
        keys = [family.key for family in self.families]
        found: dict[str, Tables] = {}
        for name, item in self.items.items():
            signatures = self.measures[name].signatures
            stored = read_tables(item.measures, self.asked.name)
            found[name] = {
                key: stored[key] for key in keys if key in stored and signatures[key] == self.signatures[key]
            }
        return found

    @property
    def n(self) -> int:
        return next(iter(self.measures.values())).n

    def report(self) -> PanelReport:
        panel, asked = self.asked.panel, self.asked
        seed = seed_of(self.plan.seed, asked.name)
        found = compare(self.families, self.tables, self.others, self._strata(), self.plan.bootstrap, seed)
        order = [*panel.metrics]
        found.sort(key=lambda each: (each.reading == "likeliest", order.index(each.metric)))
        key = self.written.key if self.written else ""
        classes = {name: tables[key] for name, tables in self.tables.items() if key in tables}
        counts = {name: self.written.confusion(table) for name, table in classes.items()} if self.written else {}
        return PanelReport(
            name=asked.name,
            source=panel.dataset or panel.prompts or "",
            n=self.n,
            max_tokens=panel.max_tokens,
            labels=asked.labels if self.written else (),
            metrics=tuple(self._row(each) for each in found),
            not_computed=self._missing(found),
            parse_failures={name: int(table[:, -1].sum()) for name, table in counts.items()},
            refused={name: measures.refused for name, measures in self.measures.items()},
            cut={name: measures.cut for name, measures in self.measures.items()},
            confusion={name: tuple(tuple(map(int, row)) for row in table) for name, table in counts.items()}
            if len(asked.labels) <= MOST_CLASSES
            else {},
            examples=tuple(
                Examples(
                    asked, self.families, {name: item.answers for name, item in self.items.items()}, self.tables
                ).shown(self.plan.seed)
            ),
        )

    def _strata(self) -> Ints:
        """(n,): the class of each question, where they have one."""
        for tables in self.tables.values():
            if self.written and self.written.key in tables:
                return self.written.strata(tables[self.written.key])
        return np.zeros(self.n, dtype=np.intp)

    def _row(self, found: Compared) -> MetricRow:
        metric = METRICS[found.metric]
        cells = {}
        for item, (value, n) in found.values.items():
            cell = Cell(n=n, value=value.value, low=value.low, high=value.high)
            if item in found.changes and self._comparable(metric.needs == "likelihood", item):
                change, paired = found.changes[item]
                exact = self._mcnemar(found.family, item) if metric.name == "accuracy" else None
                cell = cell.model_copy(
                    update={
                        "paired_n": paired,
                        "delta": change.value,
                        "delta_low": change.low,
                        "delta_high": change.high,
                        "p": change.p,
                        "mcnemar_p": exact,
                        "verdict": verdict(change, metric.higher_is_better, paired),
                    }
                )
            cells[item] = cell
        return MetricRow(
            metric=found.metric,
            reading=found.reading,
            signature=self.signatures[found.family][found.metric],
            higher_is_better=metric.higher_is_better,
            cells=cells,
        )

    def _comparable(self, per_token: bool, item: str) -> bool:
        """What is per token depends on the tokenizer, and so on the base."""
        return not per_token or self.plan.item(item).base == self.plan.item(self.others[item]).base

    def _mcnemar(self, key: str, item: str) -> float:
        """Exact p that an item and the one it is held against get equally many classes right."""
        (family,) = (f for f in self.families if isinstance(f, Classification) and f.key == key)
        one, two = (self.tables[each][key] for each in (item, self.others[item]))
        counted: Floats = one[:, -1] * two[:, -1]
        right, other = family.right(one) * counted, family.right(two) * counted
        return mcnemar(int((right > other).sum()), int((right < other).sum()))

    def _missing(self, found: list[Compared]) -> dict[str, str]:
        """What was asked for and is not there, and why."""
        missing = {}
        for name in self.asked.panel.metrics:
            rows = [each for each in found if each.metric == name]
            if not rows:
                missing[name] = self._why_not(name, self.items)
            for item in self.items if rows else ():
                if all(item not in row.values for row in rows):
                    families = {row.family for row in rows}
                    strange = any(family not in self.tables[item] for family in families)
                    strange = strange and name not in self.measures[item].unavailable
                    missing[f"{name} of {item}"] = ANOTHER_VERSION if strange else self._why_not(name, [item])
        return missing

    def _why_not(self, metric: str, items: Iterable[str]) -> str:
        """Why none of `items` has it."""
        if said := next((why for item in items if (why := self.measures[item].unavailable.get(metric))), None):
            return said
        if metric not in METRICS:
            return "this version does not know it"
        if not self.n:
            return "the panel has no questions"
        if not any(metric in family.names and family.key in self.signatures for family in self.families):
            return ANOTHER_VERSION
        if METRICS[metric].needs == "likelihood" and any(each.references for each in self.measures.values()):
            return "the endpoint gave no log-probabilities that belong to the reference answers alone"
        return "no question has a reference answer"
