"""Proves that items are compared on the same rows, and that one scored alone gets the same interval."""

from __future__ import annotations

from typing import Any

from services.evaluator.panels import Questionnaire
from services.evaluator.scoring import mcnemar_p, score
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


def test_rows_that_one_item_lacks_count_for_none(remarks: Questionnaire) -> None:
    base = [answer(e.id, "positive", -5.0) for e in remarks.examples]
    tuned = [answer(e.id, "positive", None if i < 10 else -5.0) for i, e in enumerate(remarks.examples)]
    (result,) = score(["perplexity"], (), remarks.examples, {"base": base, "tuned": tuned}, 100, (1,))
    assert result.n == 30
    assert result.change("tuned", "base").value == 0
    assert result.values["base"] == result.values["tuned"]


def test_company_does_not_change_an_items_interval(remarks: Questionnaire) -> None:
    one = remarks.label([answer(e.id, "positive") for e in remarks.examples])
    two = remarks.label([answer(e.id, e.completion) for e in remarks.examples])
    alone = score(["f1", "accuracy"], remarks.labels, remarks.examples, {"a": one}, 300, (1,))
    together = score(["f1", "accuracy"], remarks.labels, remarks.examples, {"b": two, "a": one}, 300, (1,))
    assert [r.measure.name for r in alone] == ["f1", "accuracy"]  # in the recipe's order
    assert [r.values["a"] for r in alone] == [r.values["a"] for r in together]


def test_mcnemar_counts_only_rows_where_one_of_the_two_is_right(remarks: Questionnaire) -> None:
    gold = remarks.label([answer(e.id, e.completion) for e in remarks.examples])
    off = remarks.label([answer(e.id, "who knows" if i < 6 else e.completion) for i, e in enumerate(remarks.examples)])
    assert mcnemar_p(remarks.examples, gold, off) == 2 / 2**6
    assert mcnemar_p(remarks.examples, gold, gold) == 1


def test_no_questions_no_results() -> None:
    assert score(["bleu"], (), [], {"a": []}, 100, (1,)) == []
