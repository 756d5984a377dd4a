"""Proves that perplexity is that of all reference tokens together, and that rows without one do not count."""

from __future__ import annotations

import math

import numpy as np
import pytest

from services.evaluator.metrics.perplexity import Perplexity
from understudy.records import Prediction


def row(logprob: float | None, tokens: int | None) -> Prediction:
    return Prediction(
        id="x",
        text="",
        finish_reason="stop",
        prompt_tokens=1,
        completion_tokens=1,
        reference_logprob=logprob,
        reference_tokens=tokens,
    )


def test_long_references_weigh_more() -> None:
    family = Perplexity()
    sums = family.statistics([], [row(-2.0, 2), row(-30.0, 10), row(None, None)]).sum(axis=0)
    assert float(family.values(sums)["perplexity"]) == pytest.approx(math.exp(32 / 12))
    assert sums[-1] == 2


def test_nothing_to_count_is_no_number() -> None:
    assert np.isnan(Perplexity().values(np.zeros(3))["perplexity"])


def test_what_is_impossible_to_say_is_a_large_number_and_no_infinity() -> None:
    assert np.isfinite(Perplexity().values(np.array([-9000.0, 1, 1]))["perplexity"])
