"""Proves that a class is read from an answer as the signature says: one class named and not negated, or none."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.evaluator.metrics.reading import is_only, named

MOODS = ("negative", "positive", "very positive")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("positive", "positive"),
        ("Positive, I think.", "positive"),
        ("**Positive**\n", "positive"),
        ("_positive_", "positive"),
        ("ＰＯＳＩＴＩＶＥ", "positive"),
        ("positive positive positive", "positive"),
        ("very   positive indeed", "very positive"),
        ("I do not know: positive", "positive"),
        ("Negative because it does not work", "negative"),
        ("The client went for positive", "positive"),
        ("positively charming", None),
        ("", None),
        ("I cannot say", None),
    ],
)
def test_the_one_class_that_is_named_counts(text: str, label: str | None) -> None:
    assert named(text, MOODS) == label


@pytest.mark.parametrize(
    "text",
    [
        "It is negative, not positive",
        "Options are positive or negative. Answer: negative",
        "positive, or very positive",
        "not negative",
        "This isn't positive",
        "This isn’t positive",
        "it is not a very positive review",
        "non-negative",
        "I would never call it negative",
        "far from positive",
        "Positive is not right",
        "positive? no: negative",
    ],
)
def test_several_classes_and_a_negated_one_are_none(text: str) -> None:
    assert named(text, MOODS) is None


def test_a_class_whose_name_is_a_negation_is_read() -> None:
    assert named("This is not spam.", ("spam", "not spam")) == "not spam"
    assert named("No, it isn't", ("yes", "no")) == "no"
    assert named("This isn't spam", ("spam", "ham")) is None


@pytest.mark.parametrize(
    ("text", "labels", "label"),
    [
        ("答案是正面。", ("正面", "负面"), "正面"),
        ("这条评论非常正面", ("正面", "负面"), "正面"),
        ("不是正面", ("正面", "负面"), None),
        ("我不认为它是正面", ("正面", "负面"), None),
        ("正面还是负面？负面", ("正面", "负面"), None),
        ("このレビューはネガティブだと思います", ("ポジティブ", "ネガティブ"), "ネガティブ"),
        ("ﾎﾟｼﾞﾃｨﾌﾞ", ("ポジティブ", "ネガティブ"), "ポジティブ"),
        ("ポジティブではありません", ("ポジティブ", "ネガティブ"), None),
        ("긍정입니다", ("긍정", "부정"), "긍정"),
        ("긍정이 아닙니다", ("긍정", "부정"), None),
        ("Das ist nicht positiv", ("positiv", "negativ"), None),
        ("Ce n'est pas positif", ("positif", "négatif"), None),
        ("C'est négatif", ("positif", "négatif"), "négatif"),
        ("STRASSE", ("Straße", "Weg"), "Straße"),
    ],
)
def test_other_languages_are_read_too(text: str, labels: tuple[str, ...], label: str | None) -> None:
    assert named(text, labels) == label


def test_class_names_with_signs_are_taken_literally() -> None:
    assert named("answer: c++", ("c", "c++")) == "c++"
    assert named("C#.", ("c", "c#")) == "c#"
    assert named("answer: c++ (not c)", ("c", "c++")) is None


def test_classes_that_differ_in_case_alone_are_told_apart_only_by_an_answer_that_is_one() -> None:
    both = ("Positive", "positive")
    assert [named(text, both) for text in ("Positive", "positive.", "POSITIVE", "it is Positive")] == [
        *both,
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("positive", "positive"),
        (' "Positive!"\n', "positive"),
        ("very\npositive.", "very positive"),
        ("positive, I think", None),
        ("it is positive", None),
        ("not positive", None),
        ("", None),
        ("...", None),
    ],
)
def test_strictly_the_answer_is_a_class_and_nothing_else(text: str, label: str | None) -> None:
    assert is_only(text, MOODS) == label


@given(st.text(max_size=80), st.sampled_from(MOODS))
def test_whatever_a_model_says_is_read_and_strict_is_never_more_than_lenient(text: str, label: str) -> None:
    for said in (text, text + label, f"{label} {text}"):
        assert named(said, MOODS) in (*MOODS, None)
        if only := is_only(said, MOODS):
            assert named(said, MOODS) == only


def test_an_answer_of_a_model_that_never_stops_is_read_in_linear_time() -> None:
    began = time.perf_counter()
    for text in ("positive " * 5000, "_ " * 20_000 + "x", "not " * 10_000 + "positive"):
        named(text, MOODS)
    assert time.perf_counter() - began < 5
