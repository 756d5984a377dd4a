"""ROUGE-L F-measure, equal to the `rouge_score` package, with the longest common subsequence in native code.

Tokens and stemmer are that package's own; stems are remembered, because a corpus has few distinct words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version

import numpy as np

from services.evaluator.metrics.family import Floats, Measure, ratio
from understudy.records import Example, Prediction


@dataclass(frozen=True)
class _Stemmer:
    """The Porter stemmer with a memory, in the shape that `rouge_score` expects."""

    stem: Callable[[str], str]


@cache
def _stemmer() -> _Stemmer:
    from nltk.stem.porter import PorterStemmer

    return _Stemmer(lru_cache(maxsize=1 << 16)(PorterStemmer().stem))


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of one answer: with l the length of the LCS, P = l / |answer|, R = l / |reference|, F = 2PR / (P + R)."""
    from rapidfuzz.distance import LCSseq
    from rouge_score.tokenize import tokenize

    said, wanted = tokenize(answer, _stemmer()), _reference_tokens(reference)
    common = LCSseq.similarity(said, wanted)
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


@lru_cache(maxsize=1 << 12)
def _reference_tokens(reference: str) -> tuple[str, ...]:
    """Every variant is held against the same references."""
    from rouge_score.tokenize import tokenize

    return tuple(tokenize(reference, _stemmer()))


@dataclass(frozen=True)
class RougeL:
    """Statistics: the row's F-measure, then 1. Rows without a reference do not count; an empty answer counts 0."""

    def measures(self) -> tuple[Measure, ...]:
        signature = f"rougeL|fmeasure|mean over rows|stemmer:porter|tokens:rouge_score-{version('rouge_score')}"
        return (Measure("rougeL", signature),)

    def statistics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Floats:
        rows = [
            (rouge_l(prediction.text, example.completion), 1.0) if example.completion.strip() else (0.0, 0.0)
            for example, prediction in zip(examples, predictions, strict=True)
        ]
        return np.array(rows).reshape(-1, 2)

    def values(self, sums: Floats) -> dict[str, Floats]:
        return {"rougeL": ratio(sums[..., 0], sums[..., 1], np.nan)}
