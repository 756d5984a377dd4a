"""The llm generator's prompt and its checks: the label survives, and the instruction does not give it away."""

from __future__ import annotations

import json

import pytest

from services.datagen.filters import Candidate
from services.datagen.instructions import STYLES, Unusable, ask, read, schema

LABELS = ("positive", "negative", "not negative", "pro")
ROW = Candidate(0, "key", "What a lovely and quiet little machine", "positive", "positive")
FINE = "Say whether this is pro, positive, negative or not negative."


def answer(instruction: object = FINE, label: object = "positive") -> str:
    return json.dumps({"instruction": instruction, "answer": label})


def test_a_usable_answer_gives_the_instruction() -> None:
    assert read(answer(), ROW, LABELS) == FINE
    assert read(f"```json\n{answer()}\n```", ROW, LABELS) == FINE


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("", "not JSON"),
        ("[1]", "not JSON"),
        ('{"instruction": "x"}', "not JSON"),
        (answer(5), "not JSON"),
        (answer(label="negative"), "the answer is `negative` where the right label is `positive`"),
        (answer("Short"), "5 characters"),
        (answer(FINE * 20), "1200 characters"),
        (answer("Is this positive, negative or not negative?"), "does not name the label `pro`"),
        (answer("Is this product positive, negative or not negative?"), "does not name the label `pro`"),
        (answer(FINE + " It sounds Positive."), "more often than another: `positive`"),
        (answer(FINE + " It was positively reviewed."), "more often than another: `positive`"),
        (answer(f"{FINE} what a LOVELY  and quiet little machine"), "quotes the text"),
    ],
)
def test_an_unusable_answer_is_told_why(given: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        read(given, ROW, LABELS)


def test_the_prompt_varies_between_examples_and_is_fixed_for_one() -> None:
    asked = {str(ask(ROW, LABELS, f"id{n}", 1)[1].content.split("style")[1]) for n in range(100)}
    assert len(asked) == len(STYLES)
    assert ask(ROW, LABELS, "id", 1) == ask(ROW, LABELS, "id", 1)


def test_the_prompt_is_bounded_and_shows_text_and_label() -> None:
    long = Candidate(0, "key", "word " * 5000, "pro", "pro")
    system, user = ask(long, LABELS, "id", 1)
    assert len(user.content) < 2000
    assert json.loads(user.content)["right label"] == "pro"
    assert "JSON" in system.content


def test_the_schema_allows_only_the_labels() -> None:
    shape = schema(LABELS)["response_format"]["json_schema"]["schema"]
    assert shape["properties"]["answer"]["enum"] == list(LABELS)
    assert shape["additionalProperties"] is False
