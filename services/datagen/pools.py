"""From a source to a pool: its usable rows, its classes, and the test rows chosen from it.

Test rows are chosen here, for all datasets of a run before any training row, because one dataset's test questions
must be kept out of another's training rows. Does not know tasks (`tasks/`) or write examples (`build.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from services.datagen.filters import Candidate, Sieve, reasons
from services.datagen.pace import Say, paced
from services.datagen.sources import Row, Source, Sources, check
from services.datagen.splits import choose_test
from services.datagen.tasks import Wanted
from services.datagen.tasks.task import Seen
from understudy.belt.contracts import Progress
from understudy.errors import Invalid
from understudy.recipe import HUB
from understudy.records import Rejected

CHECKED_ROWS = 50_000
"""Rows looked at before a run is accepted."""
CHECKED_CHARS = 50_000_000
"""Of their text: many may ask at once."""
MOST_PROMPTS = 10_000
"""Questions of a panel that brings its own: every item is asked all of them."""


@dataclass(frozen=True)
class Pool:
    """What a source holds, sifted."""

    wanted: Wanted
    source: str
    """The source as the recipe names it, with the uploaded file's own name."""
    candidates: list[Candidate]
    rejected: list[Rejected]
    labels: tuple[str, ...]
    """Classes, sorted; none where answers are none."""
    test: list[Candidate]
    read: int
    """Rows of the source."""

    @property
    def most(self) -> int:
        """Rows that the dataset has at most."""
        return sum(self.wanted.counts().values()) or len(self.test)


def sift(wanted: Wanted, source: Source, max_chars: int) -> tuple[Iterator[Row], Sieve]:
    """The rows of a source with the columns that are needed, and what sorts them."""
    return source.rows(*wanted.task.columns), Sieve(wanted.task.read, max_chars)


@dataclass(frozen=True)
class Pools:
    """Reads sources within bounds."""

    sources: Sources
    max_text_chars: int
    max_labels: int

    def check(self, wanted: Wanted) -> None:
        """What can be seen at a glance: the source exists, has the columns, and its first rows can be learned from.

        Raises `Invalid`. Of sources on the hub only the name is looked at.
        """
        check(wanted.source)
        if not wanted.source.startswith(HUB):
            self.look(wanted, self.sources.open(wanted.source))

    def look(self, wanted: Wanted, source: Source) -> None:
        """The same of a source that is open already."""
        rows, sieve = sift(wanted, source, self.max_text_chars)
        chars = 0
        for row in itertools.islice(rows, CHECKED_ROWS):
            sieve.take(row)
            chars += sum(map(len, row.values.values()))
            if chars > CHECKED_CHARS:
                break
        candidates = sieve.candidates()
        self.classes(wanted, source, candidates, sieve.rejected, whole=next(rows, None) is None)

    def classes(
        self, wanted: Wanted, source: Source, candidates: Sequence[Candidate], rejected: Sequence[Rejected], whole: bool
    ) -> tuple[str, ...]:
        """The classes of these rows, sorted; none where answers are none.

        Raises `Invalid` when there is nothing to learn from them and, unless they are the whole source, from more of them.
        """
        where = f"Dataset `{wanted.name}`: {source.name}"
        if whole and not candidates:
            remedy = "Check `columns:` and `labels:` in the recipe." if wanted.rows else ""
            raise Invalid(f"{where} has no usable row{reasons(rejected)}", remedy)
        if not wanted.rows and len(candidates) > MOST_PROMPTS:
            raise Invalid(
                f"{where} has more than {MOST_PROMPTS:,} prompts", "Every item is asked all of them: use fewer."
            )
        return wanted.task.classes(Seen(where, candidates, rejected, whole), self.max_labels)

    def read(self, wanted: Wanted, seed: int, say: Say) -> Generator[Progress, None, Pool]:
        """Read and sift all rows, and choose the test rows. Raises `Invalid` when there is nothing to learn from."""
        step = f"{wanted.name}: reading"
        yield say(step=step)
        source = self.sources.open(wanted.source)
        rows, sieve = sift(wanted, source, self.max_text_chars)
        read = 0
        for read in paced(rows, sieve.take):
            yield say(step=step, done=read)
        candidates = sieve.candidates()
        labels = self.classes(wanted, source, candidates, sieve.rejected, whole=True)
        counts = wanted.counts()
        test = choose_test(candidates, counts, seed) if counts else candidates
        shown = source.name if source.name == wanted.source else f"{source.name} ({wanted.source})"
        return Pool(wanted, shown, candidates, sieve.rejected, labels, test, read)
