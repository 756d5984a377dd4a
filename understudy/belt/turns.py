"""Whose turn it is, and when a run is over: pure functions of what was said about a run, in order.

    book = functools.reduce(apply, messages of run-control about one run, Book())
    let_go(book, plan)              the items that may ride now
    released(before, after, plan)   those whose turn came between two books
    closed(book, plan)              whether nothing of the run will move any more
    ends(book, plan)                how each item ended
    outcome(book)                   the same as a word, which two readers can compare

A run never puts all its items on a topic, because nothing overtakes there: the next one is let go when one ends, so that
another run's first item waits behind at most `plan.window` of them. A wish to cancel is not a fact: an item without an end,
whose generation a wish covers, is cancelled; an end that comes after all counts. Of two messages that say the same (type,
item, generation, attempt) the first counts. Does not publish (the evaluator's closer does) and knows no topics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

from understudy.belt.contracts import (
    CancelRequested,
    DatasetsMade,
    Ended,
    ItemFailed,
    ItemScored,
    ItemServed,
    Message,
    RunDeleted,
)
from understudy.plan import Plan


@dataclass(frozen=True)
class Book:
    """What was said about one run. Any order of reading gives the same."""

    made: DatasetsMade | None = None
    """The latest generation's."""
    successes: Mapping[str, Ended] = field(default_factory=dict)
    """Item -> the latest time it came through."""
    failures: Mapping[str, Ended] = field(default_factory=dict)
    """Item -> the latest time it did not."""
    cancelled: int = 0
    """The whole run is, up to this generation."""
    cancelled_items: Mapping[str, int] = field(default_factory=dict)
    deleted: int = 0
    """The run is forgotten up to this generation, and nothing of it is in this book."""

    @property
    def generation(self) -> int:
        """The one whose items ride, or rode."""
        return self.made.generation if self.made else 0

    @property
    def reached(self) -> int:
        """The latest generation that anything decisive was said about."""
        return max(self.generation, self.cancelled)

    def cancels(self, item: str, generation: int) -> bool:
        """Whether a wish covers this generation of an item."""
        return generation <= max(self.cancelled, self.cancelled_items.get(item, 0))

    def end_of(self, item: str) -> Ended | None:
        """How an item ended: for good, or in the latest generation."""
        if success := self.successes.get(item):
            return success
        failure = self.failures.get(item)
        return failure if failure and failure.generation >= self.reached else None

    def is_over(self, item: str) -> bool:
        """Whether nothing of this item will move any more."""
        return self.end_of(item) is not None or self.cancels(item, self.generation)


def apply(book: Book, message: Message) -> Book:
    """The book with one more message in it; one that is there already, or is about something else, changes nothing."""
    generation = message.generation
    if generation <= book.deleted:
        return book
    match message:
        case DatasetsMade():
            newer = book.made is None or order(message) > order(book.made)
            return replace(book, made=message) if newer else book
        case ItemScored() | ItemServed():
            return replace(book, successes=_with(book.successes, message))
        case ItemFailed():
            return replace(book, failures=_with(book.failures, message))
        case CancelRequested(item=None):
            return replace(book, cancelled=max(book.cancelled, generation))
        case CancelRequested(item=str(item)):
            until = max(generation, book.cancelled_items.get(item, 0))
            return replace(book, cancelled_items={**book.cancelled_items, item: until})
        case RunDeleted():
            return Book(
                made=book.made if book.generation > generation else None,
                successes=_after(book.successes, generation),
                failures=_after(book.failures, generation),
                cancelled=book.cancelled if book.cancelled > generation else 0,
                cancelled_items={k: v for k, v in book.cancelled_items.items() if v > generation},
                deleted=generation,
            )
    return book


def let_go(book: Book, plan: Plan) -> tuple[str, ...]:
    """The items that may ride: the first `plan.window` that are not over, in the order of the plan; none before the datasets are made."""
    if book.made is None:
        return ()
    return tuple(islice((item.name for item in plan.items if not book.is_over(item.name)), plan.window))


def released(before: Book, after: Book, plan: Plan) -> tuple[str, ...]:
    """The items that were let go between two books, in the order of the plan; a new generation lets go anew."""
    earlier = let_go(before, plan) if before.generation == after.generation else ()
    return tuple(item for item in let_go(after, plan) if item not in earlier)


def closed(book: Book, plan: Plan | None) -> bool:
    """Whether the run is over; `plan` may be missing before the datasets are made."""
    if book.cancelled >= max(1, book.generation):
        return True
    return book.made is not None and plan is not None and not let_go(book, plan)


@dataclass(frozen=True)
class Ends:
    """How the items of a run ended, each in the order of the plan."""

    successes: dict[str, Ended]
    failures: dict[str, ItemFailed]
    cancelled: tuple[str, ...]


def ends(book: Book, plan: Plan) -> Ends:
    """How each item ended; one that may still move is nowhere in it."""
    found = {item.name: book.end_of(item.name) for item in plan.items}
    return Ends(
        successes={item: end for item, end in found.items() if end and not isinstance(end, ItemFailed)},
        failures={item: end for item, end in found.items() if isinstance(end, ItemFailed)},
        cancelled=tuple(item for item, end in found.items() if end is None and book.is_over(item)),
    )


def outcome(book: Book) -> str:
    """Equal for equal ends and wishes, and for nothing else."""
    found = {item: book.end_of(item) for item in {*book.failures, *book.successes}}
    said = [f"generation {book.reached} {book.cancelled} {book.deleted}"]
    said += [f"{item} {end.type} {end.generation} {end.attempt}" for item, end in sorted(found.items()) if end]
    said += [
        f"{item} cancelled {until}"
        for item, until in sorted(book.cancelled_items.items())
        if until >= book.reached and not found.get(item)
    ]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]


def order(message: Message) -> tuple[int, int]:
    """Which of two messages about the same comes later."""
    return message.generation, message.attempt


def _with(ends: Mapping[str, Ended], end: Ended) -> Mapping[str, Ended]:
    """Of two ends of an item the later counts."""
    before = ends.get(end.item)
    if before and (*order(before), before.type) >= (*order(end), end.type):
        return ends
    return {**ends, end.item: end}


def _after(ends: Mapping[str, Ended], generation: int) -> Mapping[str, Ended]:
    return {item: end for item, end in ends.items() if end.generation > generation}
