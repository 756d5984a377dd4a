"""What `understudy plan` sees of the data: the first rows of each source, sifted as datagen does.

Reads local files only; asks no hub and no language model. Does not compute what follows from it (`estimate.py`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.datagen.filters import Candidate
from services.datagen.pools import Pools, sift
from services.datagen.settings import DatagenSettings
from services.datagen.sources import Bounds, Source, Sources
from services.datagen.splits import shares
from services.datagen.tables import Table
from services.datagen.tasks import Wanted
from services.datagen.tasks.task import Asked, Order
from understudy.recipe import FILE_ID, HUB
from understudy.store.artifacts import ArtifactStore
from understudy_cli.estimate import CHARACTERS_PER_TOKEN

LOOKED_AT = 2000
"""Rows of a source."""
TOKENISED = 400
"""Of these rows."""


@dataclass(frozen=True)
class Looked:
    """What the first rows of a source say about a dataset."""

    wanted: Wanted
    unknown: str | None = None
    """Why nothing can be said."""
    rows: int = 0
    """Of the source; an estimate unless `whole`."""
    whole: bool = False
    """Every row was looked at."""
    rejected: float = 0.0
    """Share of the rows that were looked at."""
    labels: tuple[str, ...] = ()
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def usable(self) -> int:
        """Rows that can become an example."""
        return len(self.candidates) if self.whole else round(self.rows * (1 - self.rejected))

    @property
    def splits(self) -> dict[str, int]:
        """Rows per split, were there no rows in common with another dataset's test."""
        counts = self.wanted.counts()
        return shares(counts, self.usable) if counts else {"test": self.usable}

    @property
    def sure(self) -> bool:
        """Whether the splits are as said even if the source had half as many rows."""
        return self.whole or 0 < 2 * sum(self.wanted.counts().values()) <= self.usable

    def examples(self, seed: int, shortest: bool = False) -> Iterator[tuple[str, str]]:
        """(what the user says, the answer) of some of the rows: the first, or the shortest."""
        size = (lambda each: len(each.text) + len(each.answer)) if shortest else (lambda _: 0)
        for candidate in sorted(self.candidates, key=size)[:TOKENISED]:
            yield self.wanted.task.foretell(candidate, self._order(seed))

    def asking(self, asked: Asked, seed: int) -> float:
        """Tokens, about, of what a language model is asked for one row."""
        some = self.candidates[:TOKENISED]
        characters = sum(asked.characters(candidate, self._order(seed)) for candidate in some)
        return characters / max(1, len(some)) / CHARACTERS_PER_TOKEN

    def _order(self, seed: int) -> Order:
        return Order(self.wanted.name, self.wanted.source, self.labels, seed)


def look(wanted: Wanted, store: ArtifactStore) -> Looked:
    """Read the first rows of a source as datagen does; raises `Invalid` when it can be seen that datagen would refuse it."""
    if wanted.source.startswith(HUB):
        return Looked(wanted, unknown="its source is on the hub, where nothing is asked now")
    if FILE_ID.fullmatch(wanted.source):
        return Looked(wanted, unknown="its source is an uploaded file, which is not looked into")
    settings = DatagenSettings()
    bounds, path = Bounds(settings.max_source_bytes, settings.max_field_bytes), Path(wanted.source).expanduser()
    table, columns = bounds.table(path, wanted.source), [name for names in wanted.task.columns for name in names]
    seen = list(itertools.islice(table.rows(columns), LOOKED_AT + 1))
    whole, first = len(seen) <= LOOKED_AT, seen[:LOOKED_AT]
    source = Source(wanted.source, Table(table.columns, lambda _: iter(first)))
    rows, sieve = sift(wanted, source, settings.max_text_chars)
    for row in rows:
        sieve.take(row)
    candidates = sieve.candidates()
    pools = Pools(Sources(store, bounds), settings.max_text_chars, settings.max_labels)
    labels = pools.classes(wanted, source, candidates, sieve.rejected, whole)
    if not candidates:
        pools.look(wanted, Source(wanted.source, bounds.table(path, wanted.source)))
        return Looked(wanted, unknown=f"none of the first {LOOKED_AT:,} rows of {source.name} can be used")
    total = len(first) if whole else _rows_in(path, first)
    return Looked(wanted, None, total, whole, len(sieve.rejected) / len(first), labels, candidates)


def _rows_in(path: Path, first: Sequence[Any]) -> int:
    """About how many rows a file has, by the size of the first ones; Parquet says it, more or less spaced JSON is worst."""
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet

        return int(pyarrow.parquet.ParquetFile(path).metadata.num_rows)
    if path.suffix.lower() in (".csv", ".tsv"):
        size = sum(len(str(value).encode()) + 1 for row in first for value in row.values())
    else:
        size = sum(len(json.dumps(row, ensure_ascii=False).encode()) + 1 for row in first)
    return max(len(first), round(path.stat().st_size * len(first) / size))
