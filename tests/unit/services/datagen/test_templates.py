"""Templates: many short forms, all labels named, and nothing in form or order that gives the label away."""

from __future__ import annotations

from collections import Counter

import pytest

from services.datagen.templates import FORMS, instruct, shuffled

LABELS = ("negative", "positive")


def test_there_are_many_forms_and_each_is_short() -> None:
    assert len(set(FORMS)) == len(FORMS) >= 24
    for index in range(len(FORMS)):
        bare = FORMS[index].format(
            text="", either="a or b", commas="a, b", slashes="a / b", quoted='"a" or "b"', bullets="- a\n- b"
        )
        assert len(bare.split()) <= 20, bare


def test_every_form_names_all_labels_once_and_holds_the_text_as_it_is() -> None:
    seen = set()
    text = "costs {5} & {text} %s"
    for number in range(2000):
        prompt, index = instruct(text, LABELS, f"id{number}", seed=1)
        seen.add(index)
        assert prompt.count(text) == 1
        rest = prompt.replace(text, "")
        assert [rest.count(label) for label in LABELS] == [1, 1], prompt
    assert seen == set(range(len(FORMS)))


def test_the_choice_is_fixed_by_example_and_seed() -> None:
    assert instruct("t", LABELS, "id", 1) == instruct("t", LABELS, "id", 1)
    assert len({instruct("t", LABELS, "id", seed) for seed in range(50)}) > 10


def test_no_label_comes_first_more_often() -> None:
    first = Counter(min(LABELS, key=instruct("t", LABELS, f"id{n}", 1)[0].index) for n in range(2000))
    assert abs(first["negative"] - 1000) < 100


@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_every_order_has_every_label(count: int) -> None:
    labels = [f"label {n}" for n in range(count)]
    assert sorted(shuffled(labels, 2**200 + 12345)) == sorted(labels)


def test_three_labels_read_like_a_sentence() -> None:
    prompts = [instruct("t", ("a", "b", "c"), f"id{n}", 1)[0] for n in range(200)]
    assert any(f"{x}, {y} or {z}?" in prompt for prompt in prompts for x, y, z in ("abc", "bca", "cab"))
