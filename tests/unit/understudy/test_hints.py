"""An unknown word is answered with the one that was probably meant, or with what there is, in time and in a line."""

from __future__ import annotations

import time

from understudy.hints import meant, nearest


def test_a_near_word_is_offered_whatever_its_case() -> None:
    assert nearest("trainning", ["training", "name"]) == " (did you mean `training`?)"
    assert nearest("TEXT", ["label", "Text"]) == " (did you mean `Text`?)"
    assert meant("label", ["Label", "text"]) == " (did you mean `Label`?)"


def test_without_one_the_error_says_what_there_is() -> None:
    assert nearest("xyzzy", ["b", "a"]) == " (known: a, b)"
    assert nearest("x", []) == " (known: none)"
    assert nearest("xyzzy", [f"name-{n}" for n in range(21)]) == " (21 are known)"
    assert meant("xyzzy", ["b", "a"]) == ""


def test_among_very_many_nobody_waits_for_a_search() -> None:
    words = [f"a-rather-long-name-of-something-{n}" for n in range(200_000)]
    began = time.monotonic()
    assert nearest("a-rather-long-name-of-something", words) == " (200,000 are known)"
    assert time.monotonic() - began < 0.5
