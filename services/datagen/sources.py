"""From the `source` of a recipe to rows of text: a local file, an uploaded file id or a dataset of the Hugging Face hub.

    Sources(store, max_bytes=...).open("tweets.csv").rows(["text", "feeling"])    # Row(0, {"text": ..., "feeling": ...}), ...

Everything that can be wrong with a source raises `Invalid` that names the file as its owner does. Does not clean, map
or reject rows (`filters.py`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from services.datagen.jsonarray import read_json
from services.datagen.parquet import read_parquet
from services.datagen.tables import Reader, Table, read_csv, read_jsonl
from understudy.errors import Invalid, Transient
from understudy.hints import meant
from understudy.interrupt import awaited
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
T = TypeVar("T")


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
    """As its owner calls it: the path, the uploaded file's own name, or the hub's name."""
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
class Sources:
    """Opens sources, within bounds."""

    store: ArtifactStore
    max_bytes: int
    max_line: int = 1024**2

    def open(self, source: str) -> Source:
        """Find `source` and read its header."""
        if source.startswith(HUB):
            return Source(source, _hub(source.removeprefix(HUB)))
        path, name = self._uploaded(source) if FILE_ID.fullmatch(source) else (_local(source), source)
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
        return Source(name, READERS[suffix](path, name, self.max_line, self.max_bytes))

    def _uploaded(self, file_id: str) -> tuple[Path, str]:
        artifact = self.store.find(keys.file(file_id))
        if artifact is None:
            raise Invalid(
                f"There is no uploaded file {file_id}", "Upload it with POST /v1/files and use the id that it returns."
            )
        (path,) = self.store.fetch(artifact).iterdir()
        return path, path.name


def _hub(name: str) -> Table:
    """A dataset of the Hugging Face hub, pinned to a revision, or a local folder in the same layout; its `train` split, or its only one."""
    import datasets

    repository, _, revision = name.partition("@")
    if not revision and not Path(repository).is_dir():
        raise Invalid(
            f"Source `{HUB}{name}` carries no revision",
            f"Pin it: `{HUB}{name}@<commit>`, so that the run can be repeated.",
        )
    datasets.disable_progress_bars()
    try:
        splits = awaited(lambda: datasets.load_dataset(repository, revision=revision or None))
    except ConnectionError as error:
        raise Transient(f"The Hugging Face hub did not answer for `{repository}`: {error}") from error
    except Exception as error:  # the library raises a dozen unrelated types for data that it cannot load
        words = " ".join(str(error).split())[:300]
        raise Invalid(
            f"`{HUB}{name}` cannot be loaded: {words}", "Check the name, the revision and HF_TOKEN."
        ) from error
    split = "train" if "train" in splits else next(iter(splits))
    if split != "train" and len(splits) > 1:
        raise Invalid(
            f"`{HUB}{name}` has the splits {', '.join(splits)} but no `train`", "Download the one you want as Parquet."
        )
    rows = splits[split]
    return Table(
        tuple(rows.column_names),
        lambda wanted: iter(rows.select_columns([name for name in rows.column_names if name in wanted])),
    )


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


def _local(source: str) -> Path:
    """A file on this machine. What else lies there is nobody's business: whoever asks may be far away."""
    try:
        path = Path(source).expanduser()
        if path.is_file():
            return path
    except (OSError, RuntimeError):  # no right to look, a name longer than any can be, a `~` of nobody
        pass
    raise Invalid(f"There is no file {source}", "Upload it with POST /v1/files and use the id that it returns.")
