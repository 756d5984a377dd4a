"""What a task is: all that is particular to how rows of one dataset become examples.

    sieve = Sieve(task.read, max_chars)                                  # sorts source.rows(*task.columns)
    labels = task.classes(Seen(where, candidates, rejected, whole), 100)
    made = yield from task.make(Order(...), chosen, folder, models, say)  # of the candidates that splits were given

Reads no source, chooses no rows, writes no files. Holds no task but the one without a thought of its own, `Verbatim`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from services.datagen.filters import Candidate, Read
from services.datagen.pace import Say, paced
from understudy import recipe
from understudy.belt.contracts import Progress
from understudy.llm.providers import Providers
from understudy.records import Example, Provenance, Rejected, Turn

Made = dict[int, tuple[Example, ...] | Rejected]
"""Row in the source -> the examples made of it, or why there are none."""


@dataclass(frozen=True)
class Seen:
    """The usable rows of a source, or of its beginning."""

    where: str
    """The dataset and its source, as errors name them."""
    candidates: Sequence[Candidate]
    rejected: Sequence[Rejected]
    whole: bool
    """All rows of the source were looked at."""


@dataclass(frozen=True)
class Order:
    """The dataset that examples are made for."""

    dataset: str
    source: str
    labels: tuple[str, ...]
    """Its classes, sorted; none where answers are none."""
    seed: int

    def example(self, candidate: Candidate, prompt: str, generator: str) -> Example:
        """The one example of a row, with the prompt that `generator` wrote."""
        return Example(
            id=candidate.id(self.dataset),
            prompt=(Turn(role="user", content=prompt),),
            completion=candidate.answer,
            label=candidate.label,
            provenance=Provenance(source=self.source, row=candidate.row, generator=generator),
        )


class Asked(NamedTuple):
    """What a language model is asked for every row, for those who want to know before."""

    generator: recipe.Generator
    characters: Callable[[Candidate, Order], int]
    """Of the first request for a row."""
    max_tokens: int
    """Of an answer."""


class Models(NamedTuple):
    """The language models that may be asked."""

    providers: Providers
    tries: int
    """Requests for a row until an answer is usable."""

    def check(self, generator: recipe.Generator) -> None:
        """Raises `Invalid` when it asks a model that cannot be asked."""
        if generator.kind == "llm":
            self.providers.of(generator)


class Task(Protocol):
    """One dataset's task. Its module has `task(dataset)`, which makes it from what the recipe says."""

    @property
    def columns(self) -> tuple[Sequence[str], Sequence[str]]:
        """Columns of the source that are read: those that must be there, and those that may."""

    @property
    def read(self) -> Read:
        """A row's values -> (text, answer, label); raises `Reject`."""

    @property
    def asked(self) -> Asked | None:
        """None when no language model is asked."""

    def classes(self, seen: Seen, most: int) -> tuple[str, ...]:
        """The classes, sorted; none where answers are none.

        Raises `Invalid` when there is nothing to learn from these rows and, unless they are the whole, from more of them.
        """

    def make(
        self, order: Order, chosen: Sequence[Candidate], work: Path, models: Models, say: Say
    ) -> Generator[Progress, None, Made]:
        """The examples of each chosen row. What is paid for is kept in the folder `work`, which need not exist yet."""

    def foretell(self, candidate: Candidate, order: Order) -> tuple[str, str]:
        """(what the user says, the answer) of a row's example; about, where a language model would have to be asked."""


@dataclass(frozen=True)
class Verbatim:
    """Rows that are examples already, and become them as they are."""

    columns: tuple[Sequence[str], Sequence[str]]
    read: Read
    generator: str
    """As in `Provenance`."""
    asked: None = None

    def classes(self, seen: Seen, most: int) -> tuple[str, ...]:
        return ()

    def make(
        self, order: Order, chosen: Sequence[Candidate], work: Path, models: Models, say: Say
    ) -> Generator[Progress, None, Made]:
        return one_each(order, chosen, lambda candidate: (candidate.text, self.generator), say)

    def foretell(self, candidate: Candidate, order: Order) -> tuple[str, str]:
        return candidate.text, candidate.answer


def one_each(
    order: Order, chosen: Sequence[Candidate], write: Callable[[Candidate], tuple[str, str]], say: Say
) -> Generator[Progress, None, Made]:
    """One example of each row; `write` gives the prompt and what wrote it, at once."""
    made: Made = {}

    def make(candidate: Candidate) -> None:
        made[candidate.row] = (order.example(candidate, *write(candidate)),)

    for count in paced(chosen, make):
        yield say(step=f"{order.dataset}: writing instructions", done=count, total=len(chosen))
    return made
