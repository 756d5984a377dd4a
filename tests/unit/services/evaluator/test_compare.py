"""Proves that items are compared on the same rows, and that one alone gets the same interval."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from services.evaluator.compare import Compared, compare
from services.evaluator.measure import Tables
from services.evaluator.metrics import families
from services.evaluator.metrics.classification import Classification
from services.evaluator.panels import Questionnaire
from services.evaluator.stats import Interval
from understudy.records import Example, Prediction, Provenance, Turn

World = Any


def answer(example_id: str, text: str, logprob: float | None = None) -> Prediction:
    return Prediction(
        id=example_id,
        text=text,
        finish_reason="stop",
        prompt_tokens=1,
        completion_tokens=1,
        reference_logprob=logprob,
        reference_tokens=None if logprob is None else 5,
    )


OTHERS = {"tuned": "base", "broad": "base"}


def compared(
    metrics: Sequence[str], asked: Questionnaire, answers: dict[str, list[Prediction]], resamples: int = 300
) -> list[Compared]:
    chosen = families(metrics, asked.labels)
    tables: dict[str, Tables] = {
        item: {family.key: family.statistics(asked.examples, said) for family in chosen}
        for item, said in answers.items()
    }
    return compare(chosen, tables, OTHERS, np.zeros(len(asked.examples), dtype=np.intp), resamples, (1,))


def test_a_difference_is_of_the_rows_that_count_for_both(remarks: Questionnaire) -> None:
    base = [answer(e.id, "positive", -5.0) for e in remarks.examples]
    tuned = [answer(e.id, "positive", None if i < 10 else -5.0) for i, e in enumerate(remarks.examples)]
    (result,) = compared(["perplexity"], remarks, {"base": base, "tuned": tuned})
    assert {item: n for item, (_, n) in result.values.items()} == {"base": 40, "tuned": 30}
    change, n = result.changes["tuned"]
    assert (change.value, change.low, change.high, n) == (0, 0, 0, 30)


def test_an_item_with_hardly_a_row_takes_nothing_from_the_others(remarks: Questionnaire) -> None:
    dice = random.Random(2)
    base = [answer(e.id, "positive", -9.0 - dice.random()) for e in remarks.examples]
    tuned = [answer(e.id, "positive", -5.0 - dice.random()) for e in remarks.examples]
    broad = [answer(e.id, "positive", None if i else -5.0) for i, e in enumerate(remarks.examples)]
    (alone,) = compared(["perplexity"], remarks, {"base": base, "tuned": tuned})
    (beside,) = compared(["perplexity"], remarks, {"base": base, "tuned": tuned, "broad": broad})
    assert beside.changes["tuned"] == alone.changes["tuned"]
    assert beside.values["base"] == alone.values["base"]
    assert beside.changes["broad"][1] == 1


def test_company_does_not_change_an_items_interval(remarks: Questionnaire) -> None:
    one = [answer(e.id, "positive") for e in remarks.examples]
    two = [answer(e.id, e.completion) for e in remarks.examples]
    alone = compared(["f1", "accuracy"], remarks, {"a": one})
    together = compared(["f1", "accuracy"], remarks, {"b": two, "a": one})
    assert [each.metric for each in alone] == ["accuracy", "f1", "accuracy"], (
        "nobody knows which class is the likeliest"
    )
    assert [each.values["a"] for each in alone] == [each.values["a"] for each in together]


def test_the_interval_of_a_macro_average_holds_the_value_also_with_many_small_classes() -> None:
    """Of 77 classes many have two questions: a resample without one of them says nothing about it."""
    dice = random.Random(5)
    labels = tuple(f"c{number}" for number in range(77))
    gold = [label for label in labels for _ in range(dice.choice((2, 3)))]
    provenance = Provenance(source="s", row=0, generator="g")
    turn = (Turn(role="user", content="?"),)
    examples = [
        Example(id=str(i), prompt=turn, completion=label, label=label, provenance=provenance)
        for i, label in enumerate(gold)
    ]
    said = [answer(e.id, e.completion if dice.random() < 0.6 else dice.choice(labels)) for e in examples]
    chosen = families(["f1"], labels)
    perfect = [answer(e.id, e.completion) for e in examples]
    tables = {
        item: {chosen[0].key: chosen[0].statistics(examples, each)} for item, each in (("a", said), ("b", perfect))
    }
    family = chosen[0]
    assert isinstance(family, Classification)
    strata = family.strata(tables["a"][family.key])
    (result,) = compare(chosen, tables, {}, strata, 1000, (1,))
    value = result.values["a"][0]
    assert value.low < value.value < value.high
    assert result.values["b"][0] == Interval(1, 1, 1)


def test_an_item_that_was_not_measured_takes_nothing_from_the_others(remarks: Questionnaire) -> None:
    chosen = families(["f1"], remarks.labels)
    table = chosen[0].statistics(remarks.examples, [answer(e.id, e.completion) for e in remarks.examples])
    strata = np.zeros(len(table), dtype=np.intp)
    (result,) = compare(chosen, {"a": {chosen[0].key: table}, "b": {}}, OTHERS, strata, 100, (1,))
    assert list(result.values) == ["a"]


def test_nobody_answered_no_results(remarks: Questionnaire) -> None:
    assert compare(families(["bleu"], ()), {}, {}, np.zeros(0, dtype=np.intp), 100, (1,)) == []
