"""From a source to a pool: its usable rows, its classes, and the test rows chosen from it.

Test rows are chosen here, for all datasets of a run before any training row, because one dataset's test questions
must be kept out of another's training rows. Does not write examples (`build.py`).
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from services.datagen import filters
from services.datagen.filters import Candidate, Sieve
from services.datagen.sources import Row, Source, Sources
from services.datagen.splits import choose_test
from understudy.belt.contracts import Progress
from understudy.errors import Invalid
from understudy.plan import Plan, prompts_dataset
from understudy.recipe import HUB, Dataset
from understudy.records import Rejected

Say = Callable[..., Progress]
"""(step, done, total, figures) -> `Progress` of the run; `done` are rows of what is being done just now."""
PULSE = 0.5
"""Seconds between two words of progress."""
CHECKED_ROWS = 50_000
"""Rows looked at before a run is accepted."""
T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """A dataset to make: one of the plan's, or the prompts of a panel."""

    name: str
    source: str
    dataset: Dataset | None
    """None for prompts."""

    def counts(self) -> dict[str, int]:
        """Rows asked for per split, the split that is filled first first; empty for prompts, which are all test rows."""
        return (
            {split: getattr(self.dataset.rows, split) for split in ("test", "validation", "train")}
            if self.dataset
            else {}
        )

    def classifies(self) -> bool:
        """Whether the answers are classes."""
        return self.dataset is not None and self.dataset.task == "classify"


def wanted(plan: Plan) -> tuple[Wanted, ...]:
    """All datasets of a run; none when all its items need none."""
    datasets = (Wanted(name, dataset.source, dataset) for name, dataset in plan.datasets.items())
    panels = plan.panels.items()
    return (*datasets, *(Wanted(prompts_dataset(name), panel.prompts, None) for name, panel in panels if panel.prompts))


@dataclass(frozen=True)
class Pool:
    """What a source holds, sifted."""

    wanted: Wanted
    source: str
    """The source as the recipe names it, with the uploaded file's own name."""
    candidates: list[Candidate]
    rejected: list[Rejected]
    labels: tuple[str, ...]
    """Classes, sorted; none unless `classify`."""
    test: list[Candidate]
    read: int
    """Rows of the source."""

    @property
    def most(self) -> int:
        """Rows that the dataset has at most."""
        return sum(self.wanted.counts().values()) or len(self.test)


def sift(wanted: Wanted, source: Source, max_chars: int) -> tuple[Iterator[Row], Sieve]:
    """The rows of a source with the columns that are needed, and what sorts them."""
    if wanted.dataset is None:
        return source.rows(["prompt"], ["reference"]), Sieve(filters.prompts, max_chars)
    columns = wanted.dataset.columns
    if wanted.classifies():
        read = filters.classify(columns, wanted.dataset.labels)
        return source.rows([columns.text, columns.label]), Sieve(read, max_chars)
    rows = source.rows([columns.instruction, columns.output], [columns.input])
    return rows, Sieve(filters.passthrough(columns), max_chars)


@dataclass(frozen=True)
class Pools:
    """Reads sources within bounds."""

    sources: Sources
    max_text_chars: int
    max_labels: int

    def check(self, wanted: Wanted) -> None:
        """What can be seen at a glance: the source exists, has the columns, and its first rows can be learned from.

        Raises `Invalid`. Sources on the hub are not looked at.
        """
        if wanted.source.startswith(HUB) and "@" in wanted.source:
            return
        source = self.sources.open(wanted.source)
        rows, sieve = sift(wanted, source, self.max_text_chars)
        for row in itertools.islice(rows, CHECKED_ROWS):
            sieve.take(row)
        candidates = sieve.candidates()
        if next(rows, None) is None:
            self._labels(wanted, source, sieve, candidates)
        else:
            self.check_labels(wanted, source.name, candidates)

    def check_labels(self, wanted: Wanted, source: str, candidates: Sequence[Candidate]) -> None:
        """Raises `Invalid` when there are too many classes, which more rows can only make more."""
        if wanted.dataset is None or not wanted.classifies():
            return
        count, column = len({candidate.label for candidate in candidates}), wanted.dataset.columns.label
        if count > self.max_labels:
            raise Invalid(
                f"Dataset `{wanted.name}`: {source} has {count:,} different labels in column `{column}`,"
                f" at most {self.max_labels} are taken",
                "Is this the right column? Or map its values to fewer classes under `labels:`.",
            )

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
        labels = self._labels(wanted, source, sieve, candidates)
        test = choose_test(candidates, wanted.counts(), seed) if wanted.dataset else candidates
        shown = source.name if source.name == wanted.source else f"{source.name} ({wanted.source})"
        return Pool(wanted, shown, candidates, sieve.rejected, labels, test, read)

    def _labels(self, wanted: Wanted, source: Source, sieve: Sieve, candidates: Sequence[Candidate]) -> tuple[str, ...]:
        """The classes, sorted. Raises `Invalid` when there is nothing to learn from these rows."""
        where, why = f"Dataset `{wanted.name}`: {source.name}", reasons(sieve.rejected)
        if not candidates:
            remedy = "Check `columns:` and `labels:` in the recipe." if wanted.dataset else ""
            raise Invalid(f"{where} has no usable row{why}", remedy)
        if wanted.dataset is None or not wanted.classifies():
            return ()
        labels, column = sorted({str(candidate.label) for candidate in candidates}), wanted.dataset.columns.label
        if len(labels) == 1:
            raise Invalid(
                f"{where} has one label only: all {len(candidates):,} usable rows are `{labels[0]}`{why}",
                f"There is nothing to tell apart. Check column `{column}` and `labels:` in the recipe.",
            )
        self.check_labels(wanted, source.name, candidates)
        return tuple(labels)


def paced(items: Iterable[T], do: Callable[[T], object]) -> Iterator[int]:
    """Do something with every item; yields the count every `PULSE` seconds, and at the end."""
    count, due = 0, time.monotonic() + PULSE
    for count, item in enumerate(items, start=1):
        do(item)
        if time.monotonic() >= due:
            yield count
            due = time.monotonic() + PULSE
    yield count


def reasons(rejected: Sequence[Rejected]) -> str:
    """Half a sentence about why rows were rejected; empty when none was."""
    if not rejected:
        return ""
    (reason, count), *_ = Counter(row.reason for row in rejected).most_common(1)
    return f"; {len(rejected):,} rows were rejected, {count:,} of them because: {reason}"
