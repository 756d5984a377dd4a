"""Proves that ROUGE-L is the `rouge_score` package's, to 1e-9."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer

from services.evaluator.metrics.rouge import rouge_l


@pytest.fixture(scope="module")
def package() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)


def test_equals_the_package_on_texts_made_to_be_difficult(package: RougeScorer) -> None:
    dice = random.Random(3)
    words = [
        "Running",
        "runs",
        "ran",
        "the",
        "a",
        "U.S.",
        "naïve",
        "İstanbul",
        "42",
        "don't",
        "--",
        "x_y",
        "\n",
        "ies",
        "generously",
    ]
    for _ in range(300):
        answer, reference = (" ".join(dice.choices(words, k=dice.randint(0, 25))) for _ in range(2))
        assert rouge_l(answer, reference) == pytest.approx(
            package.score(reference, answer)["rougeL"].fmeasure, abs=1e-9
        )


def test_equals_the_package_on_real_answers(real_data: Path, package: RougeScorer) -> None:
    rows = json.loads((real_data / "dolly" / "dolly_3k.json").read_text())[:60]
    for row, other in itertools.pairwise(rows):
        answer, reference = f"{row['output'][:200]} {other['output'][:200]}", other["output"][:600]
        assert rouge_l(answer, reference) == pytest.approx(
            package.score(reference, answer)["rougeL"].fmeasure, abs=1e-9
        )


def test_equals_the_published_vectors(real_data: Path, package: RougeScorer) -> None:
    cases = json.loads((real_data / "metrics" / "rouge" / "test_vectors.json").read_text())["cases"]
    chosen = [case for case in cases if case["rouge_type"] == "rougeL" and isinstance(case["target"], str)]
    for case in chosen:
        stemmed = package.score(case["target"], case["prediction"])["rougeL"].fmeasure
        assert rouge_l(case["prediction"], case["target"]) == pytest.approx(stemmed, abs=1e-9)
        if abs(stemmed - case["fmeasure"]) < 1e-9:  # the vector does not depend on the stemmer
            assert rouge_l(case["prediction"], case["target"]) == pytest.approx(
                case["fmeasure"], abs=10 ** -case["places"]
            )
    assert chosen
