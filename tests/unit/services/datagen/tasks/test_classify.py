"""`classify`: labels are mapped or rejected, a table with nothing to tell apart is refused, and what is foretold is made."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from services.datagen.filters import Candidate, Sieve
from services.datagen.sources import Row
from services.datagen.tasks.classify import task
from services.datagen.tasks.task import Made, Order, Seen
from understudy.belt.contracts import Progress
from understudy.errors import Invalid
from understudy.recipe import Dataset
from understudy.recipe import Generator as Writes

PLAIN = Dataset(source="d.csv")
ORDER = Order("d", "d.csv", ("bad", "fine"), seed=17)
LLM = Writes(kind="llm", model="m")


def labelled(dataset: Dataset, *pairs: tuple[str, str]) -> tuple[list[tuple[str, str, str | None]], dict[int, str]]:
    """((text, answer, label) of the candidates, row -> reason of the rejected)."""
    sieve = Sieve(task(dataset).read, 100)
    for number, (text, label) in enumerate(pairs):
        sieve.take(Row(number, {"text": text, "label": label}))
    kept = [(each.text, each.answer, each.label) for each in sieve.candidates()]
    return kept, {reject.row: reject.reason for reject in sieve.rejected}


def rows(*labels: str) -> list[Candidate]:
    return [Candidate(n, f"key{n}", f"text {n}", label, label) for n, label in enumerate(labels)]


def seen(*labels: str, whole: bool = True) -> Seen:
    return Seen("Dataset `d`: d.csv", rows(*labels), [], whole)


def say(**said: object) -> Progress:
    return Progress(run="r", station="datagen", **said)


def drained(steps: Generator[Progress, None, Made]) -> Made:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_labels_are_mapped_and_unknown_ones_rejected() -> None:
    mapped = PLAIN.model_copy(update={"labels": {"0": "negative", "True": "positive"}})
    kept, rejected = labelled(mapped, ("a", "0"), ("b", " true "), ("c", "2"), ("d", ""))
    assert kept == [("a", "negative", "negative"), ("b", "positive", "positive")]
    assert rejected == {2: "label `2` is not among the recipe's labels (0, True)", 3: "empty label"}


def test_without_a_map_the_values_are_the_classes() -> None:
    assert labelled(PLAIN, ("a", "very  good"))[0] == [("a", "very good", "very good")]


def test_web_leftovers_go_out_of_the_text() -> None:
    assert labelled(PLAIN, ("a<br />b &amp; c", "x"))[0] == [("a b & c", "x", "x")]


def test_classes_are_sorted_and_bounded() -> None:
    assert task(PLAIN).classes(seen("b", "a", "b"), most=2) == ("a", "b")
    for whole in (True, False):
        with pytest.raises(Invalid, match=r"d\.csv has 3 different labels in column `label`, at most 2 are taken"):
            task(PLAIN).classes(seen("a", "b", "c", whole=whole), most=2)


def test_one_label_is_too_few_only_when_all_rows_were_seen() -> None:
    assert task(PLAIN).classes(seen("a", "a", whole=False), most=2) == ("a",)
    with pytest.raises(Invalid, match="has one label only: all 2 usable rows are `a`"):
        task(PLAIN).classes(seen("a", "a"), most=2)


def test_what_templates_will_say_is_foretold_to_the_letter(tmp_path: Path) -> None:
    chosen = rows("bad", "fine")
    made = drained(task(PLAIN).make(ORDER, chosen, tmp_path, 3, say))
    for candidate in chosen:
        (example,) = made[candidate.row]
        assert (example.prompt[0].content, example.completion) == task(PLAIN).foretell(candidate, ORDER)


def test_who_is_asked_is_known_before() -> None:
    """The row's text is in what is asked and in what is foretold; templates ask nobody."""
    asking, (short,) = task(PLAIN.model_copy(update={"generator": LLM})), rows("bad")
    long = Candidate(1, "key1", "word " * 100, "fine", "fine")
    assert task(PLAIN).asked is None
    assert asking.asked is not None
    assert asking.asked.generator == LLM
    assert asking.asked.characters(long, ORDER) - asking.asked.characters(short, ORDER) > 400
    assert asking.foretell(short, ORDER)[0].endswith("\n\ntext 0")
