"""ROUGE-L: ours against the `rouge_score` package, on the same texts in the same process, in CPU time.

Prints one ratio. Target: at least 40x at 200 tokens, and equal values. Ours scores a panel as the evaluator does, the
answers of three models against 2,000 references, and begins with an empty memory of stems; the package, which remembers
nothing, is measured on the first of them.

    python -m bench.rouge
"""

from __future__ import annotations

import random
import time

from services.evaluator.metrics.rouge import rouge_l

TOKENS, ROWS, MODELS, SAMPLE, VOCABULARY = 200, 2000, 3, 40, 5000


def main() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    dice = random.Random(17)
    stems = ["".join(dice.choices("abcdefghilmnoprstuvw", k=dice.randint(2, 7))) for _ in range(VOCABULARY)]
    endings = ["", "", "s", "ing", "ed", "ly", "ation"]
    weights = [1 / rank for rank in range(1, VOCABULARY + 1)]  # words are as unequal as in prose

    def text() -> str:
        return " ".join(stem + dice.choice(endings) for stem in dice.choices(stems, weights, k=TOKENS))

    references = [text() for _ in range(ROWS)]
    pairs = [(text(), reference) for _ in range(MODELS) for reference in references]
    theirs = RougeScorer(["rougeL"], use_stemmer=True)
    rouge_l("warm", "up")  # loads the libraries
    began = time.process_time()
    expected = [theirs.score(reference, answer)["rougeL"].fmeasure for answer, reference in pairs[:SAMPLE]]
    package = (time.process_time() - began) / SAMPLE
    began = time.process_time()
    found = [rouge_l(answer, reference) for answer, reference in pairs]
    ours = (time.process_time() - began) / len(pairs)
    error = max(abs(one - other) for one, other in zip(found, expected, strict=False))
    print(f"ROUGE-L of {TOKENS} tokens: rouge_score {1e3 * package:.2f} ms, ours {1e3 * ours:.3f} ms a pair")
    print(f"ratio {package / ours:.0f}x (target 40x), largest difference {error:.1e} (target 1e-9)")


if __name__ == "__main__":
    main()
