"""Proves that items are compared on the same rows, and that one alone gets the same interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.evaluator.measure import Tables
from services.evaluator.metrics import families
from services.evaluator.panels import Questionnaire
from services.evaluator.scoring import Result, score
from understudy.records import Prediction

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


def scored(metrics: Sequence[str], asked: Questionnaire, answers: dict[str, list[Prediction]], n: int) -> list[Result]:
    chosen = families(metrics, asked.labels)
    tables: dict[str, Tables] = {
        item: {family.key: family.statistics(asked.examples, said) for family in chosen}
        for item, said in answers.items()
    }
    return score(chosen, tables, n, (1,))


def test_rows_that_one_item_lacks_count_for_none(remarks: Questionnaire) -> None:
    base = [answer(e.id, "positive", -5.0) for e in remarks.examples]
    tuned = [answer(e.id, "positive", None if i < 10 else -5.0) for i, e in enumerate(remarks.examples)]
    (result,) = scored(["perplexity"], remarks, {"base": base, "tuned": tuned}, 100)
    assert result.n == 30
    assert result.change("tuned", "base").value == 0
    assert result.values["base"] == result.values["tuned"]


def test_company_does_not_change_an_items_interval(remarks: Questionnaire) -> None:
    one = [answer(e.id, "positive") for e in remarks.examples]
    two = [answer(e.id, e.completion) for e in remarks.examples]
    alone = scored(["f1", "accuracy"], remarks, {"a": one}, 300)
    together = scored(["f1", "accuracy"], remarks, {"b": two, "a": one}, 300)
    assert [r.measure.name for r in alone] == ["accuracy", "f1"], "nobody knows which class is the likeliest"
    assert [r.values["a"] for r in alone] == [r.values["a"] for r in together]


def test_an_item_that_was_not_measured_takes_nothing_from_the_others(remarks: Questionnaire) -> None:
    chosen = families(["f1"], remarks.labels)
    table = chosen[0].statistics(remarks.examples, [answer(e.id, e.completion) for e in remarks.examples])
    (result,) = score(chosen, {"a": {chosen[0].key: table}, "b": {}}, 100, (1,))
    assert list(result.values) == ["a"]


def test_nobody_answered_no_results(remarks: Questionnaire) -> None:
    assert score(families(["bleu"], ()), {}, 100, (1,)) == []
