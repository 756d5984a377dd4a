"""The table formats: how bytes on disk become rows of text.

Every reader takes a file and the name to call it by, and gives the column names and a lazy iterator of rows. A file
that breaks its format raises `Invalid` with the name, the line and the remedy. Does not know which columns anybody
needs (`sources.py`) nor what they mean.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.errors import Invalid

PEEK = 100
"""JSON rows looked at to learn the column names."""
MAX_COLUMNS = 10_000

Values = Mapping[str, object]


@dataclass(frozen=True)
class Table:
    """Columns and rows of one file."""

    columns: tuple[str, ...]
    rows: Callable[[Collection[str]], Iterator[Values]]
    """The rows, once, with these columns at least: what nobody needs costs nothing where the format allows that."""


Reader = Callable[[Path, str, int, int], Table]
"""(file, its name in errors, bytes that a row may have, bytes that all rows may have) -> table."""


def read_csv(path: Path, name: str, max_line: int, max_bytes: int) -> Table:
    """Comma-, semicolon- or tab-separated values with a header line, RFC 4180 quoting.

    The separator is the one the header line has most of, a comma if it has none.
    """
    lines = _lines(path, name, max_line)
    header = next((line for line in lines if line.strip()), "")
    csv.field_size_limit(max_line)
    reader = csv.reader(itertools.chain([header], lines), delimiter=max(",;\t", key=header.count), strict=True)

    def rows() -> Iterator[Values]:
        last = reader.line_num
        try:
            for fields in reader:
                if fields and len(fields) != len(columns):
                    raise Invalid(
                        f"{name}:{last + 1} has {len(fields)} fields where the header has {len(columns)}",
                        'Put fields that contain the separator or line breaks in double quotes, and write a quote inside as "".',
                    )
                if fields:
                    yield dict(zip(columns, fields, strict=True))
                last = reader.line_num
        except csv.Error as error:
            raise Invalid(
                f"{name}:{last + 1} is not valid CSV: {error}", "Check the quotes in that row: is the file complete?"
            ) from None

    try:
        columns = tuple(column.strip() for column in next(reader, []))
    except csv.Error as error:
        raise Invalid(f"{name}:1 is not a valid CSV header: {error}", "Check the quotes in the first line.") from None
    if len(set(columns)) != len(columns):
        raise Invalid(f"{name} has two columns of the same name: {', '.join(columns)}", "Rename one of them.")
    return Table(columns, lambda wanted: rows())


def read_jsonl(path: Path, name: str, max_line: int, max_bytes: int) -> Table:
    """One JSON object per line; blank lines are skipped."""

    def rows() -> Iterator[Values]:
        for number, line in enumerate(_lines(path, name, max_line), start=1):
            if line.strip():
                yield _object(line, f"{name}:{number}")

    return peeked(rows, name)


def _lines(path: Path, name: str, max_line: int) -> Iterator[str]:
    """Decoded lines with their line ends; a byte order mark is dropped."""
    offset = 0
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(max_line + 1)
            if not line:
                return
            if len(line) > max_line:
                raise Invalid(f"{name}:{number} is longer than {max_line:,} bytes", "Is this file what its name says?")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(f"{name}:{number}", offset + error.start) from None
            offset += len(line)


def not_utf8(where: str, byte: int) -> Invalid:
    return Invalid(
        f"{where} is not UTF-8 text (byte {byte:,} of the file)",
        "Save it as UTF-8 (in a spreadsheet: `CSV UTF-8`), or convert it: `iconv -f WINDOWS-1252 -t UTF-8`.",
    )


def _object(line: str, where: str) -> Values:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        cut = "" if line.endswith("\n") else " It is the last line; is the file complete?"
        raise Invalid(
            f"{where} is not valid JSON: {error.msg} (column {error.colno})", f"Write one JSON object per line.{cut}"
        ) from None
    except (RecursionError, ValueError) as error:
        raise Invalid(f"{where} is not JSON that can be read: {error}") from None
    if not isinstance(row, dict):
        raise Invalid(f"{where} is not a JSON object", 'Write one row per line: {"column": "value"}.')
    return row


def peeked(read: Callable[[], Iterator[Values]], name: str) -> Table:
    """A table whose columns are those of its first rows; `read` begins anew each time."""
    columns: dict[str, None] = {}
    for row in itertools.islice(read(), PEEK):
        columns.update(dict.fromkeys(row))
        if len(columns) > MAX_COLUMNS:
            raise Invalid(f"{name} has more than {MAX_COLUMNS:,} columns", "Every row must be {column: value}.")
    return Table(tuple(columns), lambda wanted: read())
