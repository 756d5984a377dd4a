"""Asks one item of a run the questions of every panel, and scores its answers.

Any number of starts gives the same scores: answers are taken up where an earlier start left them. Does not talk HTTP
(`predict.py`), compute (`scoring.py`) or compare items (`report.py`).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.evaluator.panels import Questionnaire, questionnaire
from services.evaluator.predict import Asker, Questions, answered
from services.evaluator.scoring import score
from services.evaluator.stats import seed_of
from understudy.belt.contracts import ItemScored, Message, Progress, ScoringRequested
from understudy.belt.delivery import Lane
from understudy.belt.scratch import forget, take_up
from understudy.plan import Plan
from understudy.records import Prediction, Score, Scores, write_json, write_jsonl
from understudy.store import keys
from understudy.store.artifacts import ArtifactStore
from understudy.store.plans import Plans


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
        """Ask and score one item on every panel; yields Progress and ItemScored.

        Takes up the answers of an earlier delivery that was interrupted, and keeps them when it is interrupted itself.
        """
        key = keys.scores(request.run, request.item)
        artifact = self.store.find(key)
        if artifact is None:
            plan = self.plans.get(request.plan)
            datasets = self.plans.datasets(request.datasets) if request.datasets else {}
            work = take_up(self.work, request.run, request.item)
            folder = _fresh(work / "artifact")
            scores: list[Score] = []
            failures: dict[str, int] = {}
            rows = 0
            whose = hashlib.sha256(request.model.encode()).hexdigest()[:12]  # answers of another model are not taken up
            for panel in plan.panels:
                asked, answers = questionnaire(self.store, plan, panel, datasets), work / f"{panel}.{whose}.jsonl"
                yield from self._ask(request, plan, asked, answers, rows)
                rows += len(asked.examples)
                predictions = asked.label(answered(answers, asked.examples))
                write_jsonl(folder / f"predictions-{panel}.jsonl", predictions)
                scores += _scores(request.item, plan, asked, predictions)
                if asked.labels:
                    failures[panel] = sum(prediction.label is None for prediction in predictions)
            written = Scores(
                run=request.run,
                item=request.item,
                model=request.model,
                scores=tuple(scores),
                parse_failures=failures,
            )
            write_json(folder / "scores.json", written)
            if request.adapter and (training := self.store.fetch(request.adapter) / "training.json").is_file():
                shutil.copyfile(training, folder / "training.json")  # the messages from here on carry no adapter
            artifact = self.store.put(key, folder)
            forget(self.work, request.run, request.item)
        yield ItemScored.answering(request, scores=artifact)

    def _ask(
        self, request: ScoringRequested, plan: Plan, asked: Questionnaire, path: Path, before: int
    ) -> Iterator[Progress]:
        """Ask one panel; `before` rows of others were answered already."""
        questions = Questions(
            model=request.model,
            examples=asked.examples,
            max_tokens=asked.panel.max_tokens,
            seed=plan.seed,
            references="perplexity" in asked.panel.metrics,
        )
        for tick in self.asker.ask(questions, path):
            yield Progress.answering(
                request,
                station="evaluator",
                step=asked.name,
                done=tick.done,
                total=tick.total,
                figures={"rows_per_second": tick.rows_per_second, "eta_seconds": tick.eta_seconds},
                mark=before + tick.done,
            )


def _scores(item: str, plan: Plan, asked: Questionnaire, predictions: list[Prediction]) -> list[Score]:
    """One panel's metrics of one item; the same seed as in the report, so the same intervals."""
    seed = seed_of(plan.seed, asked.name)
    results = score(asked.panel.metrics, asked.labels, asked.examples, {item: predictions}, plan.bootstrap, seed)
    return [
        Score(
            panel=asked.name,
            metric=result.measure.name,
            signature=result.measure.signature,
            n=result.n,
            value=result.values[item].value,
            low=result.values[item].low,
            high=result.values[item].high,
            higher_is_better=result.measure.higher_is_better,
        )
        for result in results
    ]


def _fresh(folder: Path) -> Path:
    """An empty folder at this path."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
