"""`passthrough`: instruction and input are joined, and all keeps its form."""

from __future__ import annotations

from services.datagen.filters import Sieve
from services.datagen.sources import Row
from services.datagen.tasks.passthrough import task
from understudy.recipe import Columns, Dataset


def test_instruction_and_input_are_joined_and_keep_their_form() -> None:
    rows = [
        {"instruction": "Sort.", "input": "3\n  1", "output": "1\n3\n"},
        {"instruction": "Hi", "input": " ", "output": "Hello"},
        {"instruction": " ", "input": "x", "output": "y"},
        {"instruction": "x", "input": "", "output": ""},
        {"instruction": "hi", "input": "", "output": "Another answer"},
    ]
    sieve = Sieve(task(Dataset(source="d.json")).read, 100)
    for number, values in enumerate(rows):
        sieve.take(Row(number, values))
    kept = [(each.text, each.answer, each.label) for each in sieve.candidates()]
    assert kept == [("Sort.\n\n3\n  1", "1\n3", None), ("Hi", "Hello", None)]
    assert {reject.row: reject.reason for reject in sieve.rejected} == {
        2: "empty instruction",
        3: "empty output",
        4: "duplicate of row 1",
    }


def test_the_input_may_be_missing_and_columns_have_the_recipes_names() -> None:
    columns = Columns(instruction="q", output="a")
    assert task(Dataset(source="d.json", columns=columns)).columns == (["q", "a"], ["input"])
