"""Which candidates go to which split: seeded, disjoint, balanced by label, the same for any order of the file.

A candidate's place is the digest of seed and content, so the same text gets the same place in every dataset of a run.
That, and `held_out`, keep the questions of one dataset's test out of the training rows of another made from the same
source. Stops when `interrupt.check` says so. Does not reject rows.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from services.datagen.filters import Candidate
from understudy.interrupt import check


def choose_test(candidates: Sequence[Candidate], wanted: Mapping[str, int], seed: int) -> list[Candidate]:
    """The test rows: the first of all rows that the splits want together, so that a rare label is not used up in the test."""
    counts = shares(wanted, len(candidates))
    return balanced(candidates, sum(counts.values()), seed)[: counts["test"]]


def choose_rest(
    candidates: Sequence[Candidate], wanted: Mapping[str, int], held_out: frozenset[str], seed: int
) -> tuple[list[Candidate], list[Candidate]]:
    """Validation and training rows from the candidates whose key is not held out."""
    free = [candidate for candidate in candidates if candidate.key not in held_out]
    counts = shares({"validation": wanted["validation"], "train": wanted["train"]}, len(free))
    chosen = balanced(free, sum(counts.values()), seed)
    return chosen[: counts["validation"]], chosen[counts["validation"] :]


def shares(wanted: Mapping[str, int], available: int) -> dict[str, int]:
    """How many rows each split gets: what is wanted, or that in proportion when there are not enough.

    Then the largest remainders round up, and every wanted split gets a row before another gets its second, if there are so many.
    """
    total = sum(wanted.values())
    if total <= available:
        return dict(wanted)
    exact = {name: available * count / total for name, count in wanted.items()}
    counts = {name: int(share) for name, share in exact.items()}
    for name in sorted(wanted, key=lambda name: counts[name] - exact[name])[: available - sum(counts.values())]:
        counts[name] += 1
    for name in [name for name in wanted if wanted[name] and not counts[name]]:
        richest = max(counts, key=lambda other: counts[other])
        if counts[richest] > 1:
            counts[richest] -= 1
            counts[name] += 1
    return counts


def balanced(candidates: Sequence[Candidate], count: int, seed: int) -> list[Candidate]:
    """The first `count` candidates, as many of each label as there are, and so interleaved that every stretch is balanced alike.

    A label with too few rows gives them all; the others fill up.
    """
    groups: defaultdict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        groups[candidate.label or ""].append(candidate)
    placed: list[tuple[float, str, Candidate]] = []
    left = min(count, len(candidates))
    by_size = sorted(groups, key=lambda label: (len(groups[label]), label))
    for position, label in enumerate(by_size):
        size = min(len(groups[label]), left // (len(groups) - position))
        left -= size
        first = sorted(groups[label], key=lambda candidate: _place(candidate, seed))[:size]
        placed += [((index + 0.5) / size, label, candidate) for index, candidate in enumerate(first)]
    placed.sort(key=lambda entry: entry[:2])
    return [candidate for _, _, candidate in placed]


def _place(candidate: Candidate, seed: int) -> bytes:
    check()  # of millions of rows
    return hashlib.sha256(f"{seed}\0{candidate.key}".encode()).digest()
