"""Splits: disjoint, balanced by label, independent of file order, never overlapping across datasets of one source."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from services.datagen.filters import Candidate
from services.datagen.splits import balanced, choose_rest, choose_test, shares

SEED = 17


def candidates(**labels: int) -> list[Candidate]:
    """So many candidates of each label."""
    return [Candidate(n, f"{label}{n}", "t", label, label) for label, size in labels.items() for n in range(size)]


def all_splits(rows: list[Candidate], seed: int = SEED, **wanted: int) -> dict[str, list[Candidate]]:
    test = choose_test(rows, wanted, seed)
    validation, train = choose_rest(rows, wanted, frozenset(row.key for row in test), seed)
    return {"test": test, "validation": validation, "train": train}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=4),
    st.tuples(st.integers(0, 60), st.integers(0, 20), st.integers(0, 20)),
)
def test_splits_never_overlap_and_are_never_larger_than_asked(sizes: list[int], asked: tuple[int, int, int]) -> None:
    rows = candidates(**{f"l{i}_": size for i, size in enumerate(sizes)})
    wanted = dict(zip(("train", "validation", "test"), asked, strict=True))
    splits = all_splits(rows, **wanted)
    keys = [row.key for split in splits.values() for row in split]
    assert len(keys) == len(set(keys)) == min(len(rows), sum(asked))
    assert all(len(splits[name]) <= count for name, count in wanted.items())


def test_the_order_of_the_file_does_not_matter_but_the_seed_does() -> None:
    rows = candidates(a=300, b=300)
    shuffled = random.Random(1).sample(rows, len(rows))
    asked = {"train": 100, "validation": 20, "test": 40}
    assert all_splits(rows, **asked) == all_splits(shuffled, **asked)
    assert all_splits(rows, **asked) != all_splits(rows, seed=18, **asked)


def test_every_split_has_as_many_of_each_label() -> None:
    splits = all_splits(candidates(a=500, b=5000), train=600, validation=50, test=100)
    counts = {name: Counter(row.label for row in split) for name, split in splits.items()}
    assert counts == {"train": {"a": 300, "b": 300}, "validation": {"a": 25, "b": 25}, "test": {"a": 50, "b": 50}}


def test_a_rare_label_is_spread_over_the_splits_and_the_others_fill_up() -> None:
    splits = all_splits(candidates(rare=50, common=5000), train=800, validation=100, test=100)
    rare = {name: sum(row.label == "rare" for row in split) for name, split in splits.items()}
    assert {name: len(split) for name, split in splits.items()} == {"train": 800, "validation": 100, "test": 100}
    assert sum(rare.values()) == 50
    assert abs(rare["test"] - 5) <= 1
    assert abs(rare["train"] - 40) <= 2


def test_any_stretch_of_rows_is_balanced() -> None:
    chosen = balanced(candidates(a=100, b=100, c=100), 300, SEED)
    for start in range(0, 290):
        counts = Counter(row.label for row in chosen[start : start + 9])
        assert max(counts.values()) - min(counts.values()) <= 2


def test_too_few_rows_are_shared_in_proportion() -> None:
    assert shares({"test": 500, "validation": 200, "train": 8000}, 2000) == {
        "test": 115,
        "validation": 46,
        "train": 1839,
    }
    assert shares({"test": 500, "validation": 200, "train": 8000}, 10) == {"test": 1, "validation": 1, "train": 8}
    assert shares({"test": 5, "validation": 0, "train": 5}, 0) == {"test": 0, "validation": 0, "train": 0}
    assert shares({"test": 1, "validation": 1, "train": 1}, 9) == {"test": 1, "validation": 1, "train": 1}


def test_what_is_held_out_goes_to_no_training_row() -> None:
    rows = candidates(a=50, b=50)
    held_out = frozenset(row.key for row in rows[:10])
    validation, train = choose_rest(rows, {"validation": 10, "train": 80}, held_out, SEED)
    assert not held_out & {row.key for row in [*validation, *train]}
    assert len(validation) + len(train) == 90


def test_the_same_source_gives_the_same_test_rows_whatever_else_is_asked() -> None:
    rows = candidates(a=500, b=500)
    small, large = (
        all_splits(rows, train=50, validation=0, test=100),
        all_splits(rows, train=700, validation=50, test=100),
    )
    assert small["test"] == large["test"]
