"""Asks one item of a run the questions of every panel, and measures its answers.

Two artifacts, each made once: the answers, and what they came to. Any number of starts gives the same of both: answers are taken
up where an earlier start left them. Does not talk HTTP (`predict.py`), compute (`measure.py`) or compare items (`reports.py`).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from services.evaluator.measure import (
    ANSWERED,
    TRAINING,
    answers_file,
    measure,
    write_answers,
    write_measures,
)
from services.evaluator.panels import Questionnaire, questionnaire
from services.evaluator.predict import TEMPERATURE, Asker, Questions, answered
from understudy.belt.contracts import ItemScored, Message, Progress, ScoringRequested
from understudy.belt.delivery import Lane
from understudy.belt.scratch import forget, take_up
from understudy.errors import Unsupported
from understudy.metrics import METRICS, asks_likeliest
from understudy.plan import Plan
from understudy.records import Answered, Prediction, read_json, read_jsonl
from understudy.store import keys
from understudy.store.artifacts import ArtifactStore
from understudy.store.plans import Plans
from understudy.terms import Artifact


@dataclass(frozen=True)
class Evaluator:
    """The lane `evaluator`."""

    store: ArtifactStore
    plans: Plans
    asker: Asker
    work: Path
    """Folder for unfinished work."""

    def lane(self) -> Lane:
        return Lane("evaluator", {ScoringRequested: self.evaluate})

    def evaluate(self, request: ScoringRequested) -> Iterator[Message]:
        """Ask one item on every panel and measure what it says; yields Progress and ItemScored.

        Takes up the answers of an earlier delivery that was interrupted, and keeps them when it is interrupted itself.
        """
        plan = self.plans.get(request.plan)
        if newer := {name for panel in plan.panels.values() for name in panel.metrics} - METRICS.keys():
            raise Unsupported(f"The metric `{min(newer)}` is newer than this replica", "Upgrade it.")
        datasets = self.plans.datasets(request.datasets) if request.datasets else {}
        asked = [questionnaire(self.store, plan, panel, datasets) for panel in plan.panels]
        answers = self.store.find(keys.answers(request.run, request.item))
        if answers is None:
            answers = yield from self._ask(request, plan, asked)
        measures = self.store.find(keys.measures(request.run, request.item))
        if measures is None:
            measures = yield from self._measure(request, asked, answers)
        forget(self.work, request.run, request.item)
        yield ItemScored.answering(request, answers=answers, measures=measures)

    def _ask(
        self, request: ScoringRequested, plan: Plan, panels: list[Questionnaire]
    ) -> Generator[Progress, None, Artifact]:
        work = take_up(self.work, request.run, request.item)
        whose = hashlib.sha256(request.model.encode()).hexdigest()[:12]  # answers of another model are not taken up
        answers: dict[str, list[Prediction]] = {}
        before = 0
        for asked in panels:
            file = work / f"{asked.name}.{whose}.jsonl"
            for tick in self.asker.ask(_questions(request.model, plan.seed, asked), file):
                yield Progress.answering(
                    request,
                    station="evaluator",
                    step=asked.name,
                    done=tick.done,
                    total=tick.total,
                    figures={"rows_per_second": tick.rows_per_second, "eta_seconds": tick.eta_seconds},
                    mark=before + tick.done,
                )
            before += len(asked.examples)
            answers[asked.name] = answered(file, asked.examples)
        decoding = {"method": "greedy", "temperature": TEMPERATURE, "seed": plan.seed}
        with self.store.draft() as folder:
            write_answers(folder, Answered(item=request.item, model=request.model, decoding=decoding), answers)
            return self.store.put(keys.answers(request.run, request.item), folder)

    def _measure(
        self, request: ScoringRequested, panels: list[Questionnaire], answers: Artifact
    ) -> Generator[Progress, None, Artifact]:
        said = self.store.fetch(answers)
        about = read_json(said / ANSWERED, Answered)
        mark = sum(len(asked.examples) for asked in panels)
        with self.store.draft() as folder:
            found = {}
            for number, asked in enumerate(panels):
                yield Progress.answering(
                    request, station="evaluator", step="measuring", done=number, total=len(panels), mark=mark + number
                )
                found[asked.name] = measure(asked, list(read_jsonl(answers_file(said, asked.name), Prediction)), folder)
            write_measures(folder, about, found)
            if request.adapter and (training := self.store.fetch(request.adapter) / TRAINING).is_file():
                shutil.copyfile(training, folder / TRAINING)  # the messages from here on carry no adapter
            return self.store.put(keys.measures(request.run, request.item), folder)


def _questions(model: str, seed: int, asked: Questionnaire) -> Questions:
    metrics = asked.panel.metrics
    return Questions(
        model=model,
        examples=asked.examples,
        max_tokens=asked.panel.max_tokens,
        seed=seed,
        references=any(METRICS[name].needs == "likelihood" for name in metrics),
        labels=asked.labels if asks_likeliest(metrics, asked.labels) else (),
    )
