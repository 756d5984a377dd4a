"""What was decided about runs: a book for each, and whether a message is still wanted.

Every service keeps this fold, and its loops take their first message only when it has caught up.
"""

from __future__ import annotations

from typing import Literal

from understudy.belt.bus import Record
from understudy.belt.contracts import Message, OfItem, RunDeleted
from understudy.belt.turns import Book, apply

Verdict = Literal["cancelled", "deleted"]
NO_BOOK = Book()


class Control:
    """Books by run."""

    topics = ("run-control",)

    def __init__(self) -> None:
        self._books: dict[str, Book] = {}

    def read(self, message: Message, record: Record) -> None:
        before = self._books.get(message.run, NO_BOOK)
        book = apply(before, message)
        if book is not before:
            self._books[message.run] = book

    def book(self, run: str) -> Book:
        """What is decided about a run, as far as it was read."""
        return self._books.get(run, NO_BOOK)

    def deleted(self) -> list[str]:
        """Runs that were deleted; some may have been asked for again."""
        return [run for run, book in list(self._books.items()) if book.deleted]

    def verdict(self, message: Message) -> Verdict | None:
        """Why `message` is no longer wanted; None when it is."""
        book = self._books.get(message.run)
        if book is None or isinstance(message, RunDeleted):  # that a run is deleted, somebody has to hear
            return None
        if message.generation <= book.deleted:
            return "deleted"
        item = message.item if isinstance(message, OfItem) else ""
        return "cancelled" if book.cancels(item, message.generation) else None
