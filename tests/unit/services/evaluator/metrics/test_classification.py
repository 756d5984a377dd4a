"""Proves that class metrics are scikit-learn's, and that classes are read from answers as the signature says."""

from __future__ import annotations

import random

import pytest

from services.evaluator.metrics import families
from services.evaluator.metrics.classification import Classification
from services.evaluator.metrics.family import Unavailable
from understudy.records import Example, Prediction, Provenance, Turn

LABELS = ("anger", "joy", "sadness")
NAMES = ("accuracy", "precision", "recall", "f1")


def rows(pairs: list[tuple[str, str | None]]) -> tuple[list[Example], list[Prediction]]:
    examples = [
        Example(
            id=str(i),
            prompt=(Turn(role="user", content="?"),),
            completion=gold,
            label=gold,
            provenance=Provenance(source="s", row=i, generator="g"),
        )
        for i, (gold, _) in enumerate(pairs)
    ]
    predictions = [
        Prediction(id=str(i), text=said or "who knows", finish_reason="stop", prompt_tokens=1, completion_tokens=1)
        for i, (_, said) in enumerate(pairs)
    ]
    return examples, predictions


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("never_said", [(), ("joy",)])
def test_equals_scikit_learn_also_with_unread_classes_and_classes_never_said(
    seed: int, never_said: tuple[str, ...]
) -> None:
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    dice = random.Random(seed)
    sayable = [label for label in (*LABELS, None) if label not in never_said]
    pairs = [(dice.choice(LABELS), dice.choice(sayable)) for _ in range(60)]
    family = Classification(LABELS, NAMES)
    found = family.values(family.statistics(*rows(pairs)).sum(axis=0))
    gold, said = [g for g, _ in pairs], [s or "no class" for _, s in pairs]
    precision, recall, f1, _ = precision_recall_fscore_support(
        gold, said, labels=list(LABELS), average="macro", zero_division=0
    )
    expected = {"accuracy": accuracy_score(gold, said), "precision": precision, "recall": recall, "f1": f1}
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, abs=1e-12)


def test_signatures_tell_average_zero_division_classes_and_parse_rule() -> None:
    signatures = Classification(LABELS, NAMES).signatures()
    assert signatures["f1"] == (
        "f1|average:macro over classes with rows|zero_division:0|labels:3"
        "|parse:one class named, not negated|NFKC, casefold"
    )
    assert signatures["accuracy"] == "accuracy|labels:3|parse:one class named, not negated|NFKC, casefold"


@pytest.mark.parametrize("seed", range(5))
def test_micro_averages_one_class_and_each_class_equal_scikit_learn(seed: int) -> None:
    from sklearn.metrics import precision_recall_fscore_support

    dice = random.Random(seed)
    pairs = [(dice.choice(LABELS), dice.choice((*LABELS, None))) for _ in range(60)]
    kinds = ("precision", "recall", "f1")
    names = tuple(f"{kind}_{how}" for kind in kinds for how in ("micro", "positive"))
    family = Classification(LABELS, names, positive="joy")
    sums = family.statistics(*rows(pairs)).sum(axis=0)
    gold, said = [g for g, _ in pairs], [s or "no class" for _, s in pairs]
    found = {name: float(value) for name, value in family.values(sums).items()}
    micro = precision_recall_fscore_support(gold, said, labels=list(LABELS), average="micro", zero_division=0)
    each = precision_recall_fscore_support(gold, said, labels=list(LABELS), average=None, zero_division=0)
    for kind, of_all, of_classes in zip(kinds, micro, each, strict=False):
        assert found[f"{kind}_micro"] == pytest.approx(of_all, abs=1e-12)
        assert found[f"{kind}_positive"] == pytest.approx(of_classes[LABELS.index("joy")], abs=1e-12)
        assert family.of_classes(sums)[kind] == pytest.approx(of_classes, abs=1e-12)


def test_a_positive_class_that_the_data_does_not_have_is_said_to_be_missing() -> None:
    family = Classification(LABELS, ("f1_positive",), positive="spam")
    with pytest.raises(Unavailable, match="no question has the class `spam`"):
        family.statistics(*rows([("joy", "joy")]))


def test_unreadable_answers_are_counted_and_the_strict_reading_stands_beside_the_lenient() -> None:
    examples, said = rows([("joy", "joy"), ("joy", "It is joy."), ("anger", None), ("anger", "joy or anger")])
    written, strict, likeliest = families(["unreadable", "f1", "accuracy"], LABELS)
    assert (written.names, strict.names) == (("accuracy", "f1", "unreadable"), ("accuracy", "unreadable"))
    assert likeliest.names == ("accuracy", "f1"), "a likeliest class there always is"
    found = [family.values(family.statistics(examples, said).sum(axis=0)) for family in (written, strict)]
    assert [float(values["unreadable"]) for values in found] == [0.5, 0.75]
    assert [float(values["accuracy"]) for values in found] == [0.5, 0.25]


def test_the_likeliest_class_counts_also_where_another_was_written_and_rows_without_it_do_not() -> None:
    examples, written = rows([("joy", "anger"), ("joy", None), ("anger", "anger"), ("sadness", "sadness")])
    sure = [(-3.0, -1.0, -2.0), (-3.0, -1.0, -2.0), (-3.0, -2.0, -1.0), None]
    said = [p.model_copy(update={"label_logprobs": likely}) for p, likely in zip(written, sure, strict=True)]
    family = Classification(LABELS, NAMES, "likeliest")
    table = family.statistics(examples, said)
    assert table[:, -1].tolist() == [1, 1, 1, 0]
    assert [family.said(row) for row in table] == ["joy", "joy", "sadness", None]
    assert family.values(table.sum(axis=0))["accuracy"] == pytest.approx(2 / 3)
    assert family.right(table).tolist() == [1, 1, 0, 0]
    assert "argmax over labels" in family.signatures()["f1"]


def test_confusion_has_actual_by_said_with_none_last() -> None:
    family = Classification(LABELS, NAMES)
    table = family.statistics(*rows([("joy", "anger"), ("joy", None), ("joy", "joy"), ("anger", "anger")]))
    assert family.confusion(table).tolist() == [[1, 0, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0]]


def test_of_many_classes_the_likeliest_is_not_asked_for() -> None:
    few, many = (tuple(f"c{number}" for number in range(count)) for count in (20, 21))
    read = ["classification-written", "classification-strict"]
    assert [family.key for family in families(["f1"], few)] == [*read, "classification-likeliest"]
    assert [family.key for family in families(["f1"], many)] == read
