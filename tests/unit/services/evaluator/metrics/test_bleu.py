"""Proves that BLEU from summed per-row statistics is sacreBLEU's corpus BLEU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sacrebleu.metrics import BLEU

from services.evaluator.metrics.bleu import Bleu
from services.evaluator.metrics.family import Floats
from understudy.records import Example, Prediction, Provenance, Turn


def statistics(answers: list[str], references: list[str]) -> Floats:
    examples = [
        Example(
            id=str(i),
            prompt=(Turn(role="user", content="?"),),
            completion=text,
            provenance=Provenance(source="s", row=i, generator="g"),
        )
        for i, text in enumerate(references)
    ]
    predictions = [
        Prediction(id=str(i), text=text, finish_reason="stop", prompt_tokens=1, completion_tokens=1)
        for i, text in enumerate(answers)
    ]
    return Bleu().statistics(examples, predictions)


def bleu(answers: list[str], references: list[str]) -> float:
    return float(Bleu().values(statistics(answers, references).sum(axis=0))["bleu"])


@pytest.mark.parametrize(
    ("answers", "references"),
    [
        (["the cat sat on the mat today", "a dog"], ["the cat sat on a mat today", "the dog"]),
        (["the cat"], ["the cat sat on the mat"]),  # no 3-grams at all
        (["one two three four five six"], ["six five four three two one"]),  # every longer order smoothed
        (["the the the the the", "x y"], ["the cat sat on the mat, and slept.", "x y z w v"]),
        (["", "the mat was red and old"], ["the cat", "the mat was red and blue"]),
        (["", ""], ["the cat", "the dog"]),
        (["nothing in common here at all"], ["the cat sat on the mat"]),
    ],
)
def test_equals_sacrebleu(answers: list[str], references: list[str]) -> None:
    assert bleu(answers, references) == pytest.approx(BLEU().corpus_score(answers, [references]).score, abs=1e-9)


def test_equals_sacrebleu_on_real_answers(real_data: Path) -> None:
    rows = json.loads((real_data / "dolly" / "dolly_3k.json").read_text())[:400]
    references = [row["output"] for row in rows]
    answers = [" ".join(row["output"].split()[:-3]) + " " + rows[i - 1]["output"][:30] for i, row in enumerate(rows)]
    assert bleu(answers, references) == pytest.approx(BLEU().corpus_score(answers, [references]).score, abs=1e-9)


def test_equals_the_published_vectors_with_one_reference(real_data: Path) -> None:
    vectors = json.loads((real_data / "metrics" / "sacrebleu" / "test_vectors.json").read_text())["test_bleu"]
    cases = [(h, r[0], 100 * e) for h, r, e in vectors["test_raw_bleu_cases"] if len(r[0]) == len(h) == 1]
    plain = [
        (h, r, e) for h, r, e in cases if abs(BLEU().corpus_score(h, [r]).score - e) < 1e-6
    ]  # others smooth otherwise
    assert plain
    for answers, references, expected in plain:
        assert bleu(answers, references) == pytest.approx(expected, abs=1e-6)


def test_rows_without_a_reference_do_not_count_and_empty_answers_do() -> None:
    rows = statistics(["some text", ""], ["", "the cat"])
    assert rows[:, -1].tolist() == [0, 1]
    assert not rows[0].any()


def test_the_signature_is_sacrebleus_own() -> None:
    assert Bleu().signatures()["bleu"].startswith("bleu|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
