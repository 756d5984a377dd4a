"""Closes a run: has the report made on what it came to, and says that it is over.

Does not decide when a run is over (`closer.py`), nor compute (`reports.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.evaluator.reports import Reports
from understudy.belt import turns
from understudy.belt.contracts import ItemScored, Message, Progress, ReportRequested, RunClosed
from understudy.belt.delivery import Lane
from understudy.belt.folds.control import Control
from understudy.belt.folds.reader import Reader
from understudy.belt.scratch import forget
from understudy.belt.topics import BY_NAME
from understudy.belt.turns import Book
from understudy.report import Inputs, Scored
from understudy.store.plans import Plans

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reporter:
    """The lane `reporter`."""

    reports: Reports
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
        report = None
        if request.plan:
            plan = self.plans.get(request.plan)
            ends = turns.ends(book, plan)
            inputs = Inputs(
                run=request.run,
                plan=request.plan,
                datasets=request.datasets,
                scored={
                    item: Scored(answers=end.answers, measures=end.measures)
                    for item, end in ends.successes.items()
                    if isinstance(end, ItemScored)
                },
                failed=tuple(ends.failures),
                cancelled=ends.cancelled,
            )
            if inputs.scored:
                yield Progress.answering(request, station="evaluator", step="report")
                report = self.reports.of(inputs)
            if len(ends.successes) == len(plan.items):  # else one may be tried again, and take up its answers
                forget(self.work, request.run)
        yield RunClosed.answering(
            request, status=request.status, outcome=request.outcome, report=report, reason=request.reason
        )

    def _book(self, request: ReportRequested) -> Book:
        """What is said about the run, with everything that was when the report was asked for."""
        if request.until is not None:
            topic = BY_NAME["run-control"]
            self.reader.wait_for(topic.name, request.place(topic.partitions), request.until)
        return self.control.book(request.run)
