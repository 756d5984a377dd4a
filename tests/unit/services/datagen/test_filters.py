"""Filters: text is cleaned of web leftovers only, and every row that cannot be used is rejected with its reason."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from services.datagen.filters import Sieve, clean, normalised
from services.datagen.sources import Row


def read(values: Mapping[str, str]) -> tuple[str, str, str]:
    """As a task with classes might."""
    return clean(values["text"]), values["label"], values["label"]


def sift(sieve: Sieve, *rows: dict[str, str]) -> tuple[list[tuple[str, str]], dict[int, str]]:
    """((text, answer) of the candidates, row -> reason of the rejected)."""
    for number, values in enumerate(rows):
        sieve.take(Row(number, values))
    kept = [(candidate.text, candidate.answer) for candidate in sieve.candidates()]
    return kept, {reject.row: reject.reason for reject in sieve.rejected}


def labelled(*pairs: tuple[str, str]) -> tuple[list[tuple[str, str]], dict[int, str]]:
    return sift(Sieve(read, 100), *({"text": text, "label": label} for text, label in pairs))


def test_cleaning_removes_markup_leftovers_and_keeps_the_rest() -> None:
    assert clean(" A<br /><BR>good&nbsp;film &amp;\t<i>more</i> @me :) ") == "A good film & <i>more</i> @me :)"


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


def test_rejected_content_is_bounded() -> None:
    sieve = Sieve(read, 10)
    sieve.take(Row(0, {"text": "x" * 5000, "label": "a"}))
    assert len(sieve.rejected[0].content) == 2000


@pytest.mark.parametrize(("one", "other"), [("Straße", "STRASSE"), ("a\u00a0b", "a b"), ("ﬁne", "fine")])
def test_normalised_texts_are_equal(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


def test_ids_depend_on_dataset_and_content_alone() -> None:
    sieve = Sieve(read, 100)
    sieve.take(Row(7, {"text": "hello", "label": "a"}))
    other = Sieve(read, 100)
    other.take(Row(0, {"text": "Hello ", "label": "a"}))
    (one,), (two,) = sieve.candidates(), other.candidates()
    assert one.id("d") == two.id("d")
    assert one.id("d") != one.id("e")
