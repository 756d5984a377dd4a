"""Corpus BLEU, equal to sacreBLEU's defaults (13a tokens, exponential smoothing), 0 to 100."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.evaluator.metrics.family import Asked, Floats, ratio
from understudy.interrupt import check
from understudy.metrics import Reading
from understudy.records import Example, Prediction

ORDER = 4


class Bleu:
    """Statistics: matching n-grams (4 columns), n-grams (4), length of the answer, of the reference, then 1.

    Rows without a reference do not count; an empty answer does.
    """

    key = "bleu"
    names = ("bleu",)
    reading: Reading = "written"
    by_class: tuple[str, ...] = ()

    def signatures(self) -> dict[str, str]:
        from sacrebleu.metrics import BLEU

        scorer = BLEU()
        scorer.corpus_score(["a"], [["a"]])  # the signature knows the number of references only after use
        return {"bleu": f"bleu|{scorer.get_signature()}"}

    def statistics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Floats:
        from sacrebleu.metrics import BLEU

        scorer = BLEU()
        rows = np.zeros((len(examples), 2 * ORDER + 3))
        for row, example, prediction in zip(rows, examples, predictions, strict=True):
            check()
            if example.completion.strip():
                score = scorer.corpus_score([prediction.text], [[example.completion]])
                row[:] = [*score.counts, *score.totals, score.sys_len, score.ref_len, 1]
        return rows

    def values(self, sums: Floats) -> dict[str, Floats]:
        """BLEU = BP exp(mean of log n-gram precisions); each order without a match counts as half of the one before
        (Chen and Cherry 2014, method 3, as sacreBLEU has it); 0 when no word matches or an order has no n-grams."""
        right, total = sums[..., :ORDER], sums[..., ORDER : 2 * ORDER]
        answer, reference, rows = sums[..., -3], sums[..., -2], sums[..., -1]
        missing = (right == 0) & (total > 0)
        smoothed = np.where(missing, 0.5 ** np.cumsum(missing, axis=-1), right)
        precision = ratio(smoothed, total, 1)
        brevity = np.exp(np.minimum(0, 1 - ratio(reference, answer, np.inf)))
        score = 100 * brevity * np.exp(np.log(precision).mean(axis=-1))
        possible = (right > 0).any(axis=-1) & (total > 0).all(axis=-1)
        return {"bleu": np.where(rows == 0, np.nan, np.where(possible, score, 0.0))}


def families(names: tuple[str, ...], asked: Asked) -> list[Bleu]:
    """What computes `names`."""
    return [Bleu()]
