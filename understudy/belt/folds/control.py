"""What was decided about runs: a book for each, and whether a message is still wanted.

Every service keeps this fold, and its loops take their first message only when it has caught up. With `history` it also
keeps each run's messages of `run-control` in order, for the closer, who must know a book as it was at one record.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

from understudy.belt.bus import Record
from understudy.belt.contracts import Message, OfItem, RunDeleted
from understudy.belt.turns import Book, apply

Verdict = Literal["cancelled", "deleted"]
NO_BOOK = Book()


class Control:
    """Books by run."""

    topics = ("run-control",)

    def __init__(self, history: bool = False) -> None:
        self._books: dict[str, Book] = {}
        self._history: defaultdict[str, list[tuple[int, Message]]] | None = defaultdict(list) if history else None

    def read(self, message: Message, record: Record) -> None:
        before = self._books.get(message.run, NO_BOOK)
        book = apply(before, message)
        if book is not before:
            self._books[message.run] = book
        if self._history is not None:
            past = self._history[message.run]
            if not past or record.offset > past[-1][0]:  # a reader that began anew reads again what we have
                if isinstance(message, RunDeleted):
                    past[:] = [(offset, old) for offset, old in past if old.generation > message.generation]
                past.append((record.offset, message))

    def book(self, run: str) -> Book:
        """What is decided about a run, as far as it was read."""
        return self._books.get(run, NO_BOOK)

    def deleted(self) -> list[str]:
        """Runs that were deleted; some may have been asked for again."""
        return [run for run, book in list(self._books.items()) if book.deleted]

    def verdict(self, message: Message) -> Verdict | None:
        """Why `message` is no longer wanted; None when it is."""
        book = self._books.get(message.run)
        if book is None:
            return None
        if message.generation <= book.deleted:
            return "deleted"
        item = message.item if isinstance(message, OfItem) else ""
        return "cancelled" if book.cancels(item, message.generation) else None

    def history(self, run: str, after: int, until: int) -> list[Message]:
        """The messages about a run at offsets in (after, until] of its partition."""
        assert self._history is not None, "this fold keeps no history"
        return [message for offset, message in tuple(self._history[run]) if after < offset <= until]
