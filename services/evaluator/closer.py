"""Gives turns and closes runs: whose item may ride next, and that nothing of a run is left to come.

What is said about a run lies in one order, so the book just before and just after a message follow from where that message
lies, however often it is handed out and by whom: the same outputs each time. What a book means is `belt/turns.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal

from understudy.belt import turns
from understudy.belt.bus import Record
from understudy.belt.contracts import (
    CancelRequested,
    DatasetsMade,
    ItemFailed,
    ItemScored,
    ItemServed,
    Message,
    OnBelt,
    ReportRequested,
    RunDeleted,
    ScoringRequested,
    ServingRequested,
    TrainingRequested,
)
from understudy.belt.delivery import Lane
from understudy.belt.folds.histories import Histories
from understudy.belt.folds.reader import Reader
from understudy.belt.turns import Book
from understudy.plan import Item, Plan
from understudy.store.plans import Plans

REMEMBERED = 1000
"""Runs whose latest book is kept; that of another is read again from its first message."""
NAMED = 20
"""Failed items that the reason of a run names."""
Status = Literal["finished", "failed", "cancelled"]


@dataclass
class _Known:
    """What is kept of a run between two of its messages."""

    offset: int = -1
    """In its partition."""
    book: Book = field(default_factory=Book)
    """Of all that was said up to there."""


@dataclass
class Closer:
    """The lane `closer`."""

    plans: Plans
    histories: Histories
    reader: Reader
    _known: OrderedDict[str, _Known] = field(default_factory=OrderedDict)
    """By run."""

    def lane(self) -> Lane:
        said = (DatasetsMade, ItemServed, ItemScored, ItemFailed, CancelRequested, RunDeleted)
        return Lane("closer", dict.fromkeys(said, self.turn), located=True, patient=True, obeys=("deleted",))

    def turn(self, message: Message, record: Record) -> Iterator[Message]:
        """Yields the requests of the items whose turn came with `message`, and the ReportRequested if it ended the run.

        A message that this lane gave up, and an operator had tried again, is taken for the first of its run: doubles are harmless,
        a lost turn is not.
        """
        before = self._before(message, record)
        after = turns.apply(before, message)
        if self.histories.was_given_up(message):
            before = Book()
        plan = self.plans.get(after.made.plan) if after.made else None
        if plan and after.made:
            places = {item.name: place for place, item in enumerate(plan.items)}
            for name in turns.released(before, after, plan):
                yield _request(after.made, plan.items[places[name]], places[name])
        if turns.closed(after, plan):
            outcome = turns.outcome(after)
            if not (turns.closed(before, plan) and turns.outcome(before) == outcome):
                status, reason = came_to(after, plan)
                yield ReportRequested(
                    run=message.run,
                    generation=after.reached,
                    outcome=outcome,
                    until=record.offset,
                    status=status,
                    reason=reason,
                    plan=after.made.plan if after.made else None,
                    datasets=after.made.datasets if after.made else None,
                )

    def _before(self, message: Message, record: Record) -> Book:
        """The book of all that was said about the run before this record."""
        self.reader.wait_for(record.topic, record.partition, record.offset)
        known = self._known.pop(message.run, None)
        if known is None or known.offset >= record.offset:  # handed out again
            known = _Known()
        known.book = reduce(
            turns.apply, self.histories.between(message.run, known.offset, record.offset - 1), known.book
        )
        known.offset = record.offset - 1
        self._known[message.run] = known
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return known.book


def came_to(book: Book, plan: Plan | None) -> tuple[Status, str | None]:
    """What a run that is over came to, and why it failed."""
    if plan is None:
        return "cancelled", None
    ends = turns.ends(book, plan)
    complete = len(ends.successes) == len(plan.items)
    if (book.cancelled >= book.generation and not complete) or len(ends.cancelled) == len(plan.items):
        return "cancelled", None
    if not ends.successes:
        named = [f"{item}: {end.reason}" for item, end in ends.failures.items()][:NAMED]
        return "failed", f"No item came through. {'; '.join(named)}"
    return "finished", None


def _request(made: DatasetsMade, item: Item, place: int) -> OnBelt:
    """What brings an item to its first station."""
    about = {
        "run": made.run,
        "generation": made.generation,
        "item": item.name,
        "index": place,
        "base": item.base,
        "plan": made.plan,
        "datasets": made.datasets,
    }
    if item.stages:
        return TrainingRequested(**about, needs=item.needs.get("trainer", ()))
    if item.model:
        return ScoringRequested(**about, needs=item.needs.get("evaluator", ()), model=item.model)
    return ServingRequested(**about, needs=item.needs.get("inference", ()))
