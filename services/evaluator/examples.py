"""The questions that a report shows with all answers: some where the items differ most, then some drawn from the rest.

Neither is a measure of quality. Reads only the rows it shows, where a metric says how far apart the items are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.evaluator.measure import Tables, answers_file
from services.evaluator.metrics.classification import Classification
from services.evaluator.metrics.family import Family, Floats
from services.evaluator.panels import Questionnaire
from understudy.metrics import known
from understudy.records import Example, Prediction, pick_jsonl, read_jsonl
from understudy.report import Answer, Picked, Shown

SHOWN = 6
"""Rows shown per panel for each of the two ways they are picked."""


@dataclass(frozen=True)
class Examples:
    """Of one panel; `answers` and `tables` by item, the first a folder of answers."""

    asked: Questionnaire
    families: Sequence[Family]
    answers: Mapping[str, Path]
    tables: Mapping[str, Tables]

    def shown(self, seed: int) -> Iterator[Shown]:
        """Twelve at most."""
        spread = self._spread()
        rows = range(len(spread))
        differing = sorted((row for row in rows if spread[row] > 0), key=lambda row: (-spread[row], row))[:SHOWN]
        rest = [row for row in rows if row not in set(differing)]
        drawn = sorted(random.Random(f"{seed}/{self.asked.name}").sample(rest, min(SHOWN, len(rest))))
        numbers = {*differing, *drawn}
        questions = pick_jsonl(self.asked.file, Example, numbers)
        said = {name: pick_jsonl(self._file(name), Prediction, numbers) for name in self.answers}
        picked: list[tuple[int, Picked]] = [(row, "answers differ most") for row in differing]
        picked += [(row, "at random") for row in drawn]
        for row, how in picked:
            question = questions[row]
            yield Shown(
                id=question.id,
                picked=how,
                prompt=question.prompt,
                reference=question.completion,
                answers={name: self._answer(name, row, question, answers[row]) for name, answers in said.items()},
            )

    def _answer(self, item: str, row: int, question: Example, given: Prediction) -> Answer:
        classes: dict[str, str | None] = {
            family.reading: family.said(self.tables[item][family.key][row])
            for family in self.families
            if isinstance(family, Classification) and family.key in self.tables[item]
        }
        label = classes.get("written")
        return Answer(
            text=given.text,
            finish_reason=given.finish_reason,
            label=label,
            right=label == question.label if "written" in classes else None,
            likeliest=classes.get("likeliest"),
        )

    def _spread(self) -> Floats:
        """(n,): how far apart the items are on each question: in being right, else in the metric of answers that the table of
        metrics names last, else in whether they wrote the same."""
        written = [f for f in self.families if isinstance(f, Classification) and f.reading == "written"]
        of_answers = [f for f in reversed(self.families) if known(f.names[0]).needs == "reference"]
        for family in written or of_answers:
            measured = [tables[family.key] for tables in self.tables.values() if family.key in tables]
            if len(measured) == len(self.tables) and all(table[:, -1].any() for table in measured):
                by_item = np.stack([np.nan_to_num(family.values(table)[family.names[0]]) for table in measured])
                spread: Floats = by_item.max(axis=0) - by_item.min(axis=0)
                return spread
        texts = zip(*([p.text for p in read_jsonl(self._file(name), Prediction)] for name in self.answers), strict=True)
        return np.array([float(len(set(row)) > 1) for row in texts])

    def _file(self, item: str) -> Path:
        return answers_file(self.answers[item], self.asked.name)
