"""`classify`: a text and its class become an instruction that names all classes, and the class as the answer.

Instructions come from templates (`templates.py`) or from a language model (`generate.py`), as the recipe says.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.datagen import instructions
from services.datagen.filters import MAX_REJECTED_CHARS, Candidate, Read, Reject, clean, reasons
from services.datagen.generate import Row, Writer
from services.datagen.pace import Say
from services.datagen.tasks.task import Asked, Made, Models, Order, Seen, Task, one_each
from services.datagen.templates import chance, instruct
from understudy.belt.contracts import Progress
from understudy.errors import Invalid
from understudy.recipe import Dataset
from understudy.records import Rejected

INSTRUCTION = "instruction " * 13
"""Judgement: about as long as what a language model writes."""


def task(dataset: Dataset) -> Task:
    """The task, with the dataset's columns, labels and generator."""
    return Classify(dataset)


@dataclass(frozen=True)
class Classify:
    """The task of one dataset."""

    dataset: Dataset

    @property
    def columns(self) -> tuple[Sequence[str], Sequence[str]]:
        return [self.dataset.columns.text, self.dataset.columns.label], []

    @property
    def read(self) -> Read:
        """Text and class name. A label is looked up as it is, then without regard to case."""
        columns, labels = self.dataset.columns, self.dataset.labels
        loose = {value.casefold(): name for value, name in labels.items()}

        def read(values: Mapping[str, str]) -> tuple[str, str, str]:
            value = " ".join(values[columns.label].split())
            name = (labels.get(value) or loose.get(value.casefold())) if labels else value
            if not value:
                raise Reject("empty label")
            if not name:
                raise Reject(f"label `{value[:80]}` is not among the recipe's labels ({', '.join(labels)})")
            return clean(values[columns.text]), name, name

        return read

    @property
    def asked(self) -> Asked | None:
        generator = self.dataset.generator
        return Asked(generator, _characters, instructions.MAX_ANSWER_TOKENS) if generator.kind == "llm" else None

    def classes(self, seen: Seen, most: int) -> tuple[str, ...]:
        """Two to `most` of them. That there are too many is certain from any rows, that there are too few from all of them."""
        labels, column = sorted({str(candidate.label) for candidate in seen.candidates}), self.dataset.columns.label
        if seen.whole and len(labels) == 1:
            raise Invalid(
                f"{seen.where} has one label only: all {len(seen.candidates):,} usable rows are `{labels[0]}`"
                f"{reasons(seen.rejected)}",
                f"There is nothing to tell apart. Check column `{column}` and `labels:` in the recipe.",
            )
        if len(labels) > most:
            raise Invalid(
                f"{seen.where} has {len(labels):,} different labels in column `{column}`, at most {most} are taken",
                "Is this the right column? Or map its values to fewer classes under `labels:`.",
            )
        return tuple(labels)

    def make(
        self, order: Order, chosen: Sequence[Candidate], work: Path, models: Models, say: Say
    ) -> Generator[Progress, None, Made]:
        if self.asked:
            return self._ask(order, chosen, work, models, say)
        return one_each(order, chosen, lambda candidate: _templated(candidate, order), say)

    def foretell(self, candidate: Candidate, order: Order) -> tuple[str, str]:
        prompt = f"{INSTRUCTION}\n\n{candidate.text}" if self.asked else _templated(candidate, order)[0]
        return prompt, candidate.answer

    def _ask(
        self, order: Order, chosen: Sequence[Candidate], work: Path, models: Models, say: Say
    ) -> Generator[Progress, None, Made]:
        """Examples whose instructions a language model writes, before or after the text."""
        generator = self.dataset.generator
        provider = models.providers.of(generator)
        writer = Writer(generator, provider, order.labels, order.seed, work / "written.jsonl", models.tries)
        written = yield from writer.write(
            [Row(candidate.id(order.dataset), candidate) for candidate in chosen],
            lambda done, total, figures: say(
                step=f"{order.dataset}: writing instructions", done=done, total=total, figures=figures
            ),
        )
        made: Made = {}
        for candidate, line in zip(chosen, written, strict=True):
            if line.instruction is None:
                content = candidate.text[:MAX_REJECTED_CHARS]
                made[candidate.row] = Rejected(row=candidate.row, reason=line.reason or "", content=content)
                continue
            first, second = line.instruction, candidate.text
            if chance(line.id, order.seed) >> 64 & 1:
                first, second = second, first
            made[candidate.row] = (order.example(candidate, f"{first}\n\n{second}", f"llm:{generator.model}"),)
        return made


def _templated(candidate: Candidate, order: Order) -> tuple[str, str]:
    prompt, form = instruct(candidate.text, order.labels, candidate.id(order.dataset), order.seed)
    return prompt, f"template:{form}"


def _characters(candidate: Candidate, order: Order) -> int:
    turns = instructions.ask(candidate, order.labels, candidate.id(order.dataset), order.seed)
    return sum(len(turn.content) for turn in turns) + len(json.dumps(instructions.schema(order.labels)))
