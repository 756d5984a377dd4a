"""Proves the bootstrap's arithmetic against plain resampling, and that verdicts need evidence."""

from __future__ import annotations

import math

import numpy as np
import pytest

from services.evaluator import stats
from services.evaluator.stats import Difference

ALL = np.zeros(400, dtype=np.intp)
"""One stratum."""


def test_every_resample_draws_n_rows_and_each_row_equally_often() -> None:
    counts = np.concatenate(list(stats.count_blocks(np.zeros(50, dtype=np.intp), 4000, (1, 2))))
    assert counts.shape == (4000, 50)
    assert (counts.sum(axis=1) == 50).all()
    assert np.abs(counts.mean(axis=0) - 1).max() < 0.08
    assert counts.var() == pytest.approx(1 - 1 / 50, abs=0.02)  # multinomial


def test_the_size_of_blocks_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.arange(60.0).reshape(30, 2)
    whole = stats.resampled_sums(table, ALL[:30], 100, (7,))
    monkeypatch.setattr(stats, "BLOCK_BYTES", 1)
    np.testing.assert_array_equal(stats.resampled_sums(table, ALL[:30], 100, (7,)), whole)


def test_sums_are_those_of_the_drawn_rows() -> None:
    table = np.random.default_rng(0).random((20, 3))
    dice = np.random.default_rng((5,))
    expected = [table[dice.integers(0, 20, size=20)].sum(axis=0) for _ in range(10)]
    np.testing.assert_allclose(stats.resampled_sums(table, ALL[:20], 10, (5,)), expected)


def test_each_class_is_drawn_as_often_as_it_has_rows() -> None:
    classes = np.array([2, 0, 1, 1, 0, 2, 2, 2, 2, 0])
    counts = np.concatenate(list(stats.count_blocks(classes, 500, (3,))))
    for label in range(3):
        assert (counts[:, classes == label].sum(axis=1) == (classes == label).sum()).all()
    assert (counts.var(axis=0)[classes != 1] > 0.3).all()


def test_interval_of_a_mean_agrees_with_theory() -> None:
    data = np.random.default_rng(3).normal(5, 2, size=400)
    means = stats.resampled_sums(data[:, None], ALL[:400], 4000, (1,))[:, 0] / 400
    found = stats.interval(data.mean(), means)
    half = 1.96 * data.std() / math.sqrt(400)
    assert (found.low, found.high) == pytest.approx((data.mean() - half, data.mean() + half), abs=0.02)


def test_pairing_sees_a_small_steady_difference_that_unpaired_noise_would_hide() -> None:
    dice = np.random.default_rng(4)
    base = dice.normal(0, 10, size=200)
    better = base + 0.5 + dice.normal(0, 0.5, size=200)
    sums = stats.resampled_sums(np.stack([base, better], axis=1), ALL[:200], 1000, (9,)) / 200
    change = stats.difference(better.mean(), base.mean(), sums[:, 1], sums[:, 0])
    assert 0.3 < change.low < change.high < 0.7
    assert change.p == pytest.approx(2 / 1001, abs=1e-6)
    assert stats.verdict(change, True, 200) == "better"
    assert stats.verdict(change, False, 200) == "worse"


def test_no_verdict_without_difference_or_with_too_few_rows() -> None:
    assert stats.verdict(Difference(0.0, 0.0, 0.0, 1.0), True, 500) == "no clear difference"
    assert stats.verdict(Difference(0.1, -0.01, 0.2, 0.08), True, 500) == "no clear difference"
    assert stats.verdict(Difference(*[math.nan] * 4), False, 500) == "no clear difference"
    assert stats.verdict(Difference(1.0, 1.0, 1.0, 0.002), True, stats.FEWEST_ROWS - 1) == "no clear difference"


def test_identical_models_have_p_one() -> None:
    sums = stats.resampled_sums(np.random.default_rng(0).random((30, 1)), ALL[:30], 200, (0,))[:, 0]
    assert stats.difference(0.5, 0.5, sums, sums).p == 1.0


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (3, 9), (9, 3), (40, 22), (1200, 1100)])
def test_mcnemar_is_an_exact_toss_of_coins(gained: int, lost: int) -> None:
    """p = 2 P(X <= min), X ~ Binomial(gained + lost, 1/2), at most 1: counted in whole numbers."""
    tosses = gained + lost
    tail = sum(math.comb(tosses, heads) for heads in range(min(gained, lost) + 1))
    assert stats.mcnemar(gained, lost) == round(min(1.0, 2 * tail / (1 << tosses)), stats.DIGITS)


def test_panels_have_seeds_of_their_own() -> None:
    assert stats.seed_of(17, "a") != stats.seed_of(17, "b")
    assert stats.seed_of(-3, "a")[0] >= 0  # numpy takes no other
