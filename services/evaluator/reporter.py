"""Closes a run: makes the report on what it came to, and says that it is over.

A report speaks of one outcome and holds nothing but what follows from it, so one that is made again has the same bytes.
Does not decide when a run is over (`closer.py`), compute (`report.py`) or draw (`page.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.evaluator import page, report
from services.evaluator.panels import card, questionnaire
from services.evaluator.predict import TEMPERATURE
from understudy.belt import turns
from understudy.belt.contracts import ItemScored, Message, Progress, ReportRequested, RunClosed
from understudy.belt.delivery import Lane
from understudy.belt.folds.control import Control
from understudy.belt.folds.reader import Reader
from understudy.belt.scratch import forget
from understudy.belt.topics import BY_NAME
from understudy.belt.turns import Book, Ends
from understudy.plan import Plan
from understudy.records import Prediction, Scores, read_json, read_jsonl
from understudy.store import keys
from understudy.store.artifacts import ArtifactStore
from understudy.store.plans import Plans
from understudy.terms import Artifact

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reporter:
    """The lane `reporter`."""

    store: ArtifactStore
    plans: Plans
    control: Control
    reader: Reader
    work: Path
    """Folder for unfinished work."""

    def lane(self) -> Lane:
        # Not those that are cancelled: that a run was cancelled is what is said of it here.
        return Lane("reporter", {ReportRequested: self.close}, obeys=("deleted",))

    def close(self, request: ReportRequested) -> Iterator[Message]:
        """Make the report, if anything was scored; yields Progress and RunClosed.

        Nothing when more was said about the run since: then its end has been, or will be, asked for anew.
        """
        book = self._book(request)
        if turns.outcome(book) != request.outcome:
            log.info("%s: more was said since; no report on %s", request.run, request.outcome)
            return
        artifact = None
        if request.plan:
            plan = self.plans.get(request.plan)
            ends = turns.ends(book, plan)
            scores = {item: end.scores for item, end in ends.successes.items() if isinstance(end, ItemScored)}
            key = keys.report(request.run, request.outcome)
            artifact = self.store.find(key) if scores else None
            if scores and artifact is None:
                made = yield from self._report(request, plan, ends, scores)
                with self.store.draft() as folder:
                    page.write(made, folder)
                    artifact = self.store.put(key, folder)
            if len(ends.successes) == len(plan.items):  # else one may be tried again, and take up its answers
                forget(self.work, request.run)
        yield RunClosed.answering(
            request,
            status=request.status,
            outcome=request.outcome,
            report=artifact,
            reason=request.reason,
        )

    def _book(self, request: ReportRequested) -> Book:
        """What is said about the run, with everything that was when the report was asked for."""
        if request.until is not None:
            topic = BY_NAME["run-control"]
            self.reader.wait_for(topic.name, request.place(topic.partitions), request.until)
        return self.control.book(request.run)

    def _report(
        self, request: ReportRequested, plan: Plan, ends: Ends, scores: Mapping[str, Artifact]
    ) -> Generator[Progress, None, report.Report]:
        datasets = self.plans.datasets(request.datasets) if request.datasets else {}
        folders = {item: self.store.fetch(artifact) for item, artifact in scores.items()}
        panels = []
        for number, name in enumerate(plan.panels):
            yield Progress.answering(
                request,
                station="evaluator",
                step="report",
                done=number,
                total=len(plan.panels),
                mark=number,
            )
            asked = questionnaire(self.store, plan, name, datasets)
            answers = {i: tuple(read_jsonl(f / f"predictions-{name}.jsonl", Prediction)) for i, f in folders.items()}
            panels.append(report.compare(plan, asked, answers))
        training = {item: f / "training.json" for item, f in folders.items() if (f / "training.json").is_file()}
        return report.Report(
            run=request.run,
            plan=plan.model_dump(mode="json"),
            items=tuple(scores),
            models={item: read_json(f / "scores.json", Scores).model for item, f in folders.items()},
            compared_with={item: other for item in scores if (other := plan.item(item).compared_with)},
            failed={item: end.reason for item, end in ends.failures.items()},
            cancelled=ends.cancelled,
            panels=tuple(panels),
            training={item: report.Training.model_validate_json(path.read_bytes()) for item, path in training.items()},
            datasets={name: card(self.store, artifact) for name, artifact in sorted(datasets.items())},
            decoding={"method": "greedy", "temperature": TEMPERATURE, "seed": plan.seed},
            versions=report.versions(),
        )
