"""Perplexity of the reference answers: how surprised a model is by what it should have said. Lower is better."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.evaluator.metrics.family import Asked, Floats, ratio
from understudy.metrics import Reading
from understudy.records import Example, Prediction

LARGEST = 700.0
"""Nats per token; e to more than this is no number any more."""


class Perplexity:
    """Statistics: log-probability of the reference's tokens, their number, then 1.

    exp(-sum of log-probabilities / number of tokens) over all rows together, so long references weigh more. The end of
    the turn is not among the tokens. Depends on the tokenizer: compare only items of one base.
    """

    key = "perplexity"
    names = ("perplexity",)
    reading: Reading = "written"
    by_class: tuple[str, ...] = ()

    def signatures(self) -> dict[str, str]:
        return {"perplexity": "perplexity|of:reference answer|micro over tokens|end of turn:no"}

    def statistics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Floats:
        rows = [
            (p.reference_logprob, p.reference_tokens, 1.0) if p.reference_logprob is not None else (0.0, 0.0, 0.0)
            for p in predictions
        ]
        return np.array(rows, dtype=np.float64).reshape(-1, 3)

    def values(self, sums: Floats) -> dict[str, Floats]:
        return {"perplexity": np.exp(np.minimum(LARGEST, -ratio(sums[..., 0], sums[..., 1], np.nan)))}


def families(names: tuple[str, ...], asked: Asked) -> list[Perplexity]:
    """What computes `names`."""
    return [Perplexity()]
