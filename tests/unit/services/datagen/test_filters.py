"""Filters: text is cleaned of web leftovers only, and every row that cannot be used is rejected with its reason."""

from __future__ import annotations

import pytest

from services.datagen.filters import Sieve, classify, clean, normalised, passthrough, prompts
from services.datagen.sources import Row
from understudy.recipe import Columns

COLUMNS = Columns()


def sift(sieve: Sieve, *rows: dict[str, str]) -> tuple[list[tuple[str, str]], dict[int, str]]:
    """((text, answer) of the candidates, row -> reason of the rejected)."""
    for number, values in enumerate(rows):
        sieve.take(Row(number, values))
    kept = [(candidate.text, candidate.answer) for candidate in sieve.candidates()]
    return kept, {reject.row: reject.reason for reject in sieve.rejected}


def labelled(
    *pairs: tuple[str, str], labels: dict[str, str] | None = None, most: int = 100
) -> tuple[list[tuple[str, str]], dict[int, str]]:
    return sift(
        Sieve(classify(COLUMNS, labels or {}), most), *({"text": text, "label": label} for text, label in pairs)
    )


def test_cleaning_removes_markup_leftovers_and_keeps_the_rest() -> None:
    assert clean(" A<br /><BR>good&nbsp;film &amp;\t<i>more</i> @me :) ") == "A good film & <i>more</i> @me :)"


def test_labels_are_mapped_and_unknown_ones_rejected() -> None:
    labels = {"0": "negative", "True": "positive"}
    kept, rejected = labelled(("a", "0"), ("b", " true "), ("c", "2"), ("d", ""), labels=labels)
    assert kept == [("a", "negative"), ("b", "positive")]
    assert rejected == {2: "label `2` is not among the recipe's labels (0, True)", 3: "empty label"}


def test_without_a_map_the_values_are_the_classes() -> None:
    assert labelled(("a", "very  good"))[0] == [("a", "very good")]


def test_empty_and_long_texts_are_rejected() -> None:
    kept, rejected = labelled(("<br/> ", "x"), ("long" * 30, "x"), ("fine", "x"))
    assert kept == [("fine", "x")]
    assert rejected == {0: "empty text", 1: "too long: 120 characters, at most 100 are taken"}


def test_a_text_that_comes_twice_is_kept_once() -> None:
    kept, rejected = labelled(("Good  Film", "x"), ("good film", "x"), ("ｇood film", "x"))
    assert kept == [("Good Film", "x")]
    assert rejected == {1: "duplicate of row 0", 2: "duplicate of row 0"}


def test_contradicting_rows_are_all_rejected() -> None:
    kept, rejected = labelled(("so so", "x"), ("other", "x"), ("So so", "y"), ("so so", "x"))
    assert kept == [("other", "x")]
    assert sorted(rejected) == [0, 2, 3]
    assert "contradict" in rejected[0]
    assert "contradicts row 0" in rejected[2]


def test_passthrough_joins_instruction_and_input_and_keeps_their_form() -> None:
    rows = [
        {"instruction": "Sort.", "input": "3\n  1", "output": "1\n3\n"},
        {"instruction": "Hi", "input": " ", "output": "Hello"},
        {"instruction": " ", "input": "x", "output": "y"},
        {"instruction": "x", "input": "", "output": ""},
        {"instruction": "hi", "input": "", "output": "Another answer"},
    ]
    kept, rejected = sift(Sieve(passthrough(COLUMNS), 100), *rows)
    assert kept == [("Sort.\n\n3\n  1", "1\n3"), ("Hi", "Hello")]
    assert rejected == {2: "empty instruction", 3: "empty output", 4: "duplicate of row 1"}


def test_prompts_need_no_reference() -> None:
    kept, rejected = sift(Sieve(prompts, 100), {"prompt": "Why?", "reference": ""}, {"prompt": "", "reference": "x"})
    assert kept == [("Why?", "")]
    assert rejected == {1: "empty text"}


def test_rejected_content_is_bounded() -> None:
    sieve = Sieve(classify(COLUMNS, {}), 10)
    sieve.take(Row(0, {"text": "x" * 5000, "label": "a"}))
    assert len(sieve.rejected[0].content) == 2000


@pytest.mark.parametrize(("one", "other"), [("Straße", "STRASSE"), ("a\u00a0b", "a b"), ("ﬁne", "fine")])
def test_normalised_texts_are_equal(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


def test_ids_depend_on_dataset_and_content_alone() -> None:
    sieve = Sieve(classify(COLUMNS, {}), 100)
    sieve.take(Row(7, {"text": "hello", "label": "a"}))
    other = Sieve(classify(COLUMNS, {}), 100)
    other.take(Row(0, {"text": "Hello ", "label": "a"}))
    (one,), (two,) = sieve.candidates(), other.candidates()
    assert one.id("d") == two.id("d")
    assert one.id("d") != one.id("e")
