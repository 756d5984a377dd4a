"""From the `source` of a recipe to rows of text: an uploaded file's id or a data set of the Hugging Face hub (`hub.py`).

    Sources(store, Bounds(max_bytes=...)).open("file-1f3a...").rows(["text", "feeling"])    # Row(0, {"text": ..., "feeling": ...}), ...

Everything that can be wrong with a source raises `Invalid` that names the file as its owner does. Does not clean, map
or reject rows (`filters.py`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.datagen.hub import Hub, pinned
from services.datagen.jsonarray import read_json
from services.datagen.parquet import read_parquet
from services.datagen.tables import Reader, Table, Values, read_csv, read_jsonl
from understudy.errors import Invalid
from understudy.hints import meant
from understudy.recipe import FILE_ID, HUB
from understudy.store import keys
from understudy.store.artifacts import ArtifactStore

READERS: dict[str, Reader] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
}
SHOWN = 30
"""Columns named in an error."""


@dataclass(frozen=True)
class Row:
    """One row of a source."""

    number: int
    """Zero-based, not counting a header or blank lines."""
    values: dict[str, str]


@dataclass(frozen=True)
class Source:
    """A source that exists and whose header was read. Its rows can be read once."""

    name: str
    """As its owner calls it: the uploaded file's own name, or the hub's name."""
    table: Table

    def rows(self, required: Sequence[str], optional: Collection[str] = ()) -> Iterator[Row]:
        """All rows with only these columns, as text; missing values are empty text.

        Raises `Invalid` at once when a required column is missing, and when there is no row.
        """
        there = self.table.columns
        if missing := [column for column in required if column not in there]:
            raise Invalid(
                f"{self.name} has no column {' or '.join(f'`{column}`' for column in missing)}",
                f"It has {', '.join(f'`{column}`' for column in there[:SHOWN]) or 'no columns at all'}"
                f"{meant(missing[0], there)}. Name yours under `columns:` in the recipe.",
            )
        return self._rows([*required, *optional])

    def _rows(self, columns: Sequence[str]) -> Iterator[Row]:
        number = -1
        for number, values in enumerate(self.table.rows(columns)):
            yield Row(number, {column: _text(values.get(column)) for column in columns})
        if number < 0:
            raise Invalid(f"{self.name} has no rows", "It needs a row for every example.")


@dataclass(frozen=True)
class Bounds:
    """Of one source."""

    max_bytes: int
    """As it lies on the disk, and unpacked."""
    max_line: int = 1024**2
    """Bytes of a line, or a row."""

    def table(self, path: Path, name: str) -> Table:
        """The file at `path`, with its header read; `name` is what errors call it."""
        suffix = path.suffix.lower()
        if suffix not in READERS:
            raise Invalid(
                f"{name}: {suffix or 'no suffix'} is not a known table format", f"Known are {', '.join(READERS)}."
            )
        size = path.stat().st_size
        if size == 0:
            raise Invalid(f"{name} is empty (0 bytes)", "Was it written to the end?")
        if size > self.max_bytes:
            raise Invalid(
                f"{name} has {size:,} bytes, more than the {self.max_bytes:,} allowed",
                "Split it into several datasets.",
            )
        return READERS[suffix](path, name, self.max_line, self.max_bytes)


@dataclass(frozen=True)
class Sources:
    """Opens sources, within bounds: what was uploaded, and the hub's. No path leads to a file of this machine."""

    store: ArtifactStore
    bounds: Bounds

    def open(self, source: str) -> Source:
        """Find `source` and read its header. What is on the hub is fetched first, whole."""
        check(source)
        if source.startswith(HUB):
            files = Hub(self.bounds.max_bytes).train_files(source, READERS)
            return Source(source, _chained(self.bounds.table(path, f"{source}/{name}") for name, path in files))
        path = self._uploaded(source)
        return Source(path.name, self.bounds.table(path, path.name))

    def _uploaded(self, file_id: str) -> Path:
        artifact = self.store.find(keys.file(file_id))
        if artifact is None:
            raise Invalid(
                f"There is no uploaded file {file_id}", "Upload it with POST /v1/files and use the id that it returns."
            )
        (path,) = self.store.fetch(artifact).iterdir()
        return path


def check(source: str) -> None:
    """Raises `Invalid` unless it is of a form that may be opened, whether or not it is there."""
    if source.startswith(HUB):
        pinned(source)
    elif not FILE_ID.fullmatch(source):
        raise Invalid(
            f"`{source}` is neither an uploaded file nor a data set of the hub",
            f"Upload the file with POST /v1/files and give the id that it returns (`understudy run` does that by itself), or give "
            f"`{HUB}owner/name@<commit>`.",
        )


def _chained(tables: Iterator[Table]) -> Table:
    """Files of one source, one after another, each opened when it is its turn. They have the columns of the first."""
    first = next(tables)

    def rows(wanted: Collection[str]) -> Iterator[Values]:
        yield from first.rows(wanted)
        for table in tables:
            yield from table.rows(wanted)

    return Table(first.columns, rows)


def _text(value: object) -> str:
    """A cell as text: null is empty, 1.0 is `1`, lists and dicts are JSON, what is not valid Unicode is replaced."""
    match value:
        case str():
            return value if value.isascii() else value.encode("utf-8", "replace").decode()
        case None:
            return ""
        case bytes():
            return value.decode(errors="replace")
        case float() if value.is_integer():
            return str(int(value))
        case list() | dict():
            return json.dumps(value, ensure_ascii=False, default=str)
        case _:
            return str(value)
