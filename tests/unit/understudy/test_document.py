"""YAML takes no more memory than its text is worth, whoever wrote it; what it says is covered by `test_recipe.py`."""

from __future__ import annotations

import pytest
import yaml

from understudy import document
from understudy.errors import Invalid

MERGES = "a: &a {k: 1}\n" + "".join(
    f"{letter}: &{letter} {{<<: [{','.join(['*' + chr(ord(letter) - 1)] * 9)}]}}\n" for letter in "bcdefghij"
)


def test_merge_keys_that_name_each_other_are_refused() -> None:
    with pytest.raises(yaml.YAMLError, match="merge keys bring more than 20,000"):
        document.parsed(MERGES)


def test_aliases_and_merge_keys_may_be_used() -> None:
    assert document.parsed("a: &a {k: 1}\nb: {<<: *a, l: 2}\nc: [*a, *a]\n") == {
        "a": {"k": 1},
        "b": {"k": 1, "l": 2},
        "c": [{"k": 1}, {"k": 1}],
    }


def test_nothing_of_another_kind_is_made() -> None:
    with pytest.raises(yaml.YAMLError):
        document.parsed("!!python/object/apply:os.system [true]")


def test_what_is_used_often_counts_often() -> None:
    row = [0] * 100
    document.check([row] * 190, "it")
    with pytest.raises(Invalid, match="it has too many keys and values"):
        document.check([row] * 210, "it")
