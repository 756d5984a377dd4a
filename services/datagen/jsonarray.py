"""A JSON array of objects, read one object at a time: memory is that of the largest one, not of the file.

Does not know what the objects mean, nor other forms of JSON (`tables.py`).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from json import JSONDecodeError, JSONDecoder
from pathlib import Path

from services.datagen.tables import Table, Values, not_utf8, peeked, read_jsonl
from understudy.errors import Invalid

PIECE = 1 << 16
NEAR_END = 16
"""Characters of the longest thing that is not text and may be cut: an error so near the end may be the end's."""
_BLANK = re.compile(r"[ \t\n\r]*")


def read_json(path: Path, name: str, max_line: int, max_bytes: int) -> Table:
    """The array in a file; one that does not start with `[` is read as JSON lines.

    Raises `Invalid` with the line for what breaks JSON, and for an object of more than `max_line` characters.
    """
    with path.open("rb") as file:
        start = file.read(256).removeprefix(codecs.BOM_UTF8).lstrip()
    if not start.startswith(b"["):
        return read_jsonl(path, name, max_line, max_bytes)
    return peeked(lambda: _objects(path, name, max_line), name)


def _objects(path: Path, name: str, max_size: int) -> Iterator[Values]:
    with path.open("rb") as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        window = _Window(file, name, read=file.tell())
        window.expect("[")
        number = 0
        while window.peek() != "]" or number:
            yield window.object(number, max_size)
            number += 1
            if window.peek() == "]":
                break
            window.expect(",")
        window.expect("]")
        if window.peek():
            raise window.error("Extra data")


@dataclass
class _Window:
    """The part of the file that is looked at, as text."""

    file: BufferedReader
    name: str
    text: str = ""
    at: int = 0
    """Where in `text` the next thing begins."""
    lines: int = 0
    """Line breaks before `text`."""
    column: int = 0
    """Characters before `text` in its first line."""
    read: int = 0
    """Bytes of the file."""
    ended: bool = False
    _decoder: codecs.IncrementalDecoder = field(default_factory=codecs.getincrementaldecoder("utf-8"))
    _json: JSONDecoder = field(default_factory=JSONDecoder)

    def peek(self) -> str:
        """The next character that is not blank; empty at the end of the file."""
        while True:
            blank = _BLANK.match(self.text, self.at)
            assert blank is not None
            self.at = blank.end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more(PIECE)

    def expect(self, character: str) -> None:
        """Pass over `character`; raises `Invalid` where there is another."""
        if self.peek() != character:
            raise self.error(f"Expecting '{character}' delimiter")
        self.at += 1

    def object(self, number: int, max_size: int) -> Values:
        """The object that begins here."""
        if (first := self.peek()) != "{":
            if first and first in '["-0123456789tfnNI':
                raise Invalid(
                    f"{self.name}: item {number} of the array is not an object", "Every row must be {column: value}."
                )
            raise self.error("Expecting value")
        while True:
            try:
                row: Values | None
                row, end = self._json.raw_decode(self.text, self.at)
            except JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - NEAR_END
                if not cut or self.ended:
                    raise self.error(error.msg, error.pos) from None
                row, end = None, len(self.text)
            except (RecursionError, ValueError) as error:
                raise Invalid(f"{self.name} is not JSON that can be read: {error}") from None
            if end - self.at > max_size:
                raise Invalid(
                    f"{self.name}: item {number} of the array is longer than {max_size:,} characters",
                    "Is this file what its name says?",
                )
            if row is not None:
                self.at = end
                return row
            self.more(max(PIECE, len(self.text) - self.at))  # twice as much each time: what is read again adds up

    def more(self, size: int) -> None:
        """Drop what is behind us, and read on."""
        gone = self.text[: self.at]
        breaks = gone.count("\n")
        self.lines += breaks
        self.column = len(gone) - gone.rfind("\n") - 1 if breaks else self.column + len(gone)
        piece = self.file.read(size)
        self.ended = not piece
        waiting = len(self._decoder.getstate()[0])
        try:
            self.text = self.text[self.at :] + self._decoder.decode(piece, final=self.ended)
        except UnicodeDecodeError as error:
            raise not_utf8(self.name, self.read - waiting + error.start) from None
        self.read += len(piece)
        self.at = 0

    def error(self, message: str, at: int | None = None) -> Invalid:
        """What breaks JSON, at a place of the text."""
        at = self.at if at is None else at
        line = self.lines + self.text.count("\n", 0, at) + 1
        before = self.text.rfind("\n", 0, at)
        column = at - before if before >= 0 else self.column + at + 1
        return Invalid(f"{self.name}:{line} is not valid JSON: {message} (column {column})", "Is the file complete?")
