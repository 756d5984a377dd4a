"""From rows to candidates: how text is cleaned, and which rows are rejected with what reason.

    Sieve(read, max_chars).take(row) ... .candidates(), .rejected

A row is rejected when it is empty, too long, has a label that the recipe does not map, asks the same as an earlier
row, or contradicts another one (the same text with different labels: all of them go, because nobody knows which is
right). Does not know what a task reads in a row (`tasks/`), choose splits or write instructions.
"""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from services.datagen.sources import Row
from understudy.records import Rejected

MAX_REJECTED_CHARS = 2000
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


class Reject(Exception):
    """This row cannot become an example; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row that can become an example."""

    row: int
    key: str
    """Digest of the normalised question: two rows with equal keys ask the same."""
    text: str
    """The text to label; for other tasks the whole user turn."""
    answer: str
    label: str | None = None

    def id(self, dataset: str) -> str:
        """The example's id: depends on the dataset's name and the content alone, not on file order."""
        return _digest(dataset, self.key)[:16]


Read = Callable[[Mapping[str, str]], tuple[str, str, str | None]]
"""A row's values -> (text, answer, label); raises `Reject`."""


@dataclass
class Sieve:
    """Takes rows one by one; sorts out what cannot be used. Memory grows with the text of the usable rows."""

    read: Read
    max_chars: int
    rejected: list[Rejected] = field(default_factory=list)
    _seen: dict[str, Candidate] = field(default_factory=dict)
    _contradicted: set[str] = field(default_factory=set)

    def take(self, row: Row) -> None:
        """Sort one row."""
        try:
            candidate = self._candidate(row)
        except Reject as reason:
            self._reject(row.number, str(reason), " | ".join(row.values.values()))
            return
        first = self._seen.setdefault(candidate.key, candidate)
        if first is candidate:
            return
        if first.label == candidate.label:
            self._reject(row.number, f"duplicate of row {first.row}", candidate.text)
        else:
            self._contradicted.add(candidate.key)
            self._reject(row.number, f"contradicts row {first.row}: the same text with another label", candidate.text)

    def candidates(self) -> list[Candidate]:
        """What is left, in row order. Call it once, after the last row."""
        for first in (self._seen.pop(key) for key in self._contradicted):
            self._reject(first.row, "contradicted by a later row: the same text with another label", first.text)
        self.rejected.sort(key=lambda reject: reject.row)
        return list(self._seen.values())

    def _candidate(self, row: Row) -> Candidate:
        text, answer, label = self.read(row.values)
        if not text:
            raise Reject("empty text")
        if (longest := max(len(text), len(answer))) > self.max_chars:
            raise Reject(f"too long: {longest:,} characters, at most {self.max_chars:,} are taken")
        return Candidate(row.number, _digest(normalised(text)), text, answer, label)

    def _reject(self, row: int, reason: str, content: str) -> None:
        self.rejected.append(Rejected(row=row, reason=reason, content=content[:MAX_REJECTED_CHARS]))


def clean(text: str) -> str:
    """Web leftovers out of a text: HTML line breaks and runs of white space become one space, entities their characters."""
    if "<" in text:
        text = _LINE_BREAK.sub(" ", text)
    return " ".join(html.unescape(text).split())


def normalised(text: str) -> str:
    """What counts as the same text: without regard to case, white space and Unicode's compatible forms."""
    return " ".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold().split())


def reasons(rejected: Sequence[Rejected]) -> str:
    """Half a sentence about why rows were rejected; empty when none was."""
    if not rejected:
        return ""
    (reason, count), *_ = Counter(row.reason for row in rejected).most_common(1)
    return f"; {len(rejected):,} rows were rejected, {count:,} of them because: {reason}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
