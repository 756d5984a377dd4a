"""The metrics that a recipe may ask for: one line each, and the only place that lists them.

Recipes are checked against this table, reports are spoken from it, and the evaluator finds the code of a metric by its
`family`, a module of `services/evaluator/metrics`. Computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Needs = Literal["classes", "reference", "likelihood"]
"""Questions that ask for a class; questions with a reference answer; an endpoint that says how likely it finds that."""
Reading = Literal["written", "strict", "likeliest"]
"""Which class an answer stands for: the one that it names, the one that it is word for word, or the one that the model finds most likely
after the same prompt. A model that knows the class and not the format fails by the first two alone."""
SPOKEN: dict[Reading, str] = {"written": "", "strict": " word for word", "likeliest": " by likelihood"}
"""After a metric's title."""
MOST_LIKELIEST = 20
"""Classes up to which the likeliest one is asked for: each is a question of its own."""


class Metric(NamedTuple):
    """One metric."""

    name: str
    """As in recipes."""
    title: str
    """As people write it."""
    family: str
    """Module that computes it, with those that come from the same sums."""
    needs: Needs
    decimals: int
    """That people want to see."""
    share: bool = False
    """Between 0 and 1, and shown in per cent."""
    higher_is_better: bool = True


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy", "classification", "classes", 1, share=True),
        Metric("precision", "precision", "classification", "classes", 1, share=True),
        Metric("recall", "recall", "classification", "classes", 1, share=True),
        Metric("f1", "F1", "classification", "classes", 1, share=True),
        Metric("precision_micro", "micro precision", "classification", "classes", 1, share=True),
        Metric("recall_micro", "micro recall", "classification", "classes", 1, share=True),
        Metric("f1_micro", "micro F1", "classification", "classes", 1, share=True),
        Metric("precision_positive", "precision of the positive class", "classification", "classes", 1, share=True),
        Metric("recall_positive", "recall of the positive class", "classification", "classes", 1, share=True),
        Metric("f1_positive", "F1 of the positive class", "classification", "classes", 1, share=True),
        Metric("unreadable", "unreadable answers", "classification", "classes", 1, share=True, higher_is_better=False),
        Metric("perplexity", "perplexity", "perplexity", "likelihood", 1, higher_is_better=False),
        Metric("bleu", "BLEU", "bleu", "reference", 2),
        Metric("rougeL", "ROUGE-L", "rouge", "reference", 3),
    )
}


def known(name: str) -> Metric:
    """The metric called `name`; a stranger, which a newer version knows, is told as it is."""
    return METRICS.get(name) or Metric(name, name, "", "reference", 3)


def of_classes(names: Sequence[str]) -> tuple[str, ...]:
    """Those of `names` for which an answer is right or wrong."""
    return tuple(name for name in names if known(name).needs == "classes")


def of_one_class(names: Sequence[str]) -> tuple[str, ...]:
    """Those of `names` that are of the panel's positive class."""
    return tuple(name for name in names if name.endswith("_positive"))


def asks_likeliest(names: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether a panel with these metrics and classes asks which class is the likeliest: each class is a question of its own."""
    return bool(of_classes(names)) and len(labels) <= MOST_LIKELIEST
