"""The prompts of a panel need no reference."""

from __future__ import annotations

from services.datagen.filters import Sieve
from services.datagen.sources import Row
from services.datagen.tasks.prompts import TASK


def test_prompts_need_no_reference() -> None:
    sieve = Sieve(TASK.read, 100)
    sieve.take(Row(0, {"prompt": "Why?", "reference": ""}))
    sieve.take(Row(1, {"prompt": "", "reference": "x"}))
    assert [(each.text, each.answer, each.label) for each in sieve.candidates()] == [("Why?", "", None)]
    assert [(reject.row, reject.reason) for reject in sieve.rejected] == [(1, "empty text")]
