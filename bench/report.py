"""A report from measures: answers are measured once, and whoever reports only adds up.

Prints how much longer the same report takes when the answers are measured again for it. Target: at most 5 s for three items,
10,000 rows on each of two panels, all seven metrics, 1,000 resamples.

    python -m bench.report
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

from services.evaluator.measure import measure, write_answers, write_measures
from services.evaluator.panels import questionnaire
from services.evaluator.reports import Reports
from understudy.plan import PlannedBase, make
from understudy.recipe import parse
from understudy.records import (
    Answered,
    DatasetCard,
    Example,
    Prediction,
    Provenance,
    Turn,
    write_json,
    write_jsonl,
)
from understudy.report import Inputs, Scored
from understudy.store import keys
from understudy.store.plans import Plans, put_datasets, put_plan
from understudy.terms import Artifact
from understudy.testing import local_store

ROWS, LABELS = 10_000, ("negative", "neutral", "positive")
ITEMS = {"base": 0.4, "tuned": 0.8, "mixed": 0.7}
"""Item -> how often it is right."""
WORDS = tuple("the a film of it was and long story actors that which good bad never always".split())  # noqa: SIM905
RECIPE = {
    "name": "bench",
    "datasets": {"d": {"source": "d.csv"}, "g": {"source": "g.jsonl", "task": "passthrough"}},
    "variants": {"tuned": {"train": "d"}, "mixed": {"train": "g"}},
    "evaluation": {
        "panels": {
            "in-domain": {"dataset": "d", "metrics": ["accuracy", "precision", "recall", "f1"]},
            "general": {"dataset": "g", "metrics": ["perplexity", "bleu", "rougeL"]},
        }
    },
}


def example(number: int, dice: random.Random, label: str | None) -> Example:
    return Example(
        id=str(number),
        prompt=(Turn(role="user", content=" ".join(dice.choices(WORDS, k=20))),),
        completion=label or " ".join(dice.choices(WORDS, k=25)),
        label=label,
        provenance=Provenance(source="bench", row=number, generator="none"),
    )


def answer(row: Example, dice: random.Random, skill: float) -> Prediction:
    kept = [word for word in row.completion.split() if dice.random() < skill] or ["none"]
    said = (row.label if dice.random() < skill else dice.choice(LABELS)) if row.label else " ".join(kept)
    return Prediction(
        id=row.id,
        text=str(said),
        finish_reason="stop",
        prompt_tokens=20,
        completion_tokens=9,
        reference_logprob=-30 * (1.1 - skill) * dice.random(),
        reference_tokens=25,
        label_logprobs=tuple(-dice.random() for _ in LABELS) if row.label else None,
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        store = local_store(Path(name))
        dice = random.Random(17)
        plan = make(parse(RECIPE, "bench"), lambda base: PlannedBase(name=base, reference=base))
        made: dict[str, Artifact] = {}
        for dataset, labels in (("d", LABELS), ("g", ())):
            rows = [example(n, dice, dice.choice(labels) if labels else None) for n in range(ROWS)]
            task = "classify" if labels else "passthrough"
            with store.draft() as folder:
                write_jsonl(folder / "test.jsonl", rows)
                card = DatasetCard(
                    name=dataset, source="bench", task=task, labels=labels, rows={"test": ROWS}, rejected=0, seed=17
                )
                write_json(folder / "card.json", card)
                made[dataset] = store.put(keys.dataset("r", dataset), folder)
        plans, asked = Plans(store), [questionnaire(store, plan, panel, made) for panel in plan.panels]
        scored, measuring = {}, 0.0
        for item, skill in ITEMS.items():
            with store.draft() as folder, store.draft() as measures:
                about = Answered(item=item, model=item, decoding={})
                said = {panel.name: [answer(row, dice, skill) for row in panel.examples] for panel in asked}
                write_answers(folder, about, said)
                began = time.perf_counter()
                write_measures(
                    measures, about, {panel.name: measure(panel, said[panel.name], measures) for panel in asked}
                )
                measuring += time.perf_counter() - began
                answers = store.put(keys.answers("r", item), folder)
                scored[item] = Scored(answers=answers, measures=store.put(keys.measures("r", item), measures))
        inputs = Inputs(
            run="r", plan=put_plan(store, "r", plan), datasets=put_datasets(store, "r", made), scored=scored
        )
        reports = Reports(store, plans)
        began = time.perf_counter()
        report = reports.make(inputs)
        took = time.perf_counter() - began
        assert len(report.panels[0].metrics) >= 8
        assert report.panels[1].row("rougeL")
    print(f"{len(ITEMS)} items x {ROWS:,} rows x {len(asked)} panels, {plan.bootstrap:,} resamples")
    print(
        f"ratio {(measuring + took) / took:.1f}x: from measures {took:.2f} s (target 5 s), with measuring again"
        f" {measuring + took:.2f} s"
    )


if __name__ == "__main__":
    main()
