"""A task is a name in the recipe and the file of that name: all that are named are there, and nothing else knows them."""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import pytest

from services.datagen import tasks
from services.datagen.build import Builder
from services.datagen.filters import Candidate
from services.datagen.pace import Say
from services.datagen.pools import Pools
from services.datagen.sources import Bounds, Sources
from services.datagen.tasks import Wanted, wanted
from services.datagen.tasks.task import Made, Models, Order, Seen, one_each
from understudy.belt.contracts import Progress
from understudy.errors import Unsupported
from understudy.llm.providers import Providers
from understudy.plan import Plan, PlannedBase
from understudy.recipe import TASKS, Dataset, Panel, Rows
from understudy.records import DatasetCard, Example, Rejected, read_json, read_jsonl
from understudy.testing import local_store, uploaded

T = TypeVar("T")


def test_every_task_of_the_recipe_has_its_file() -> None:
    for name in TASKS:
        required, optional = tasks.task(Dataset(source="d.csv", task=name)).columns
        assert required
        assert not set(required) & set(optional)


def test_a_task_of_a_newer_version_waits_for_one() -> None:
    with pytest.raises(Unsupported, match="newer than this replica"):
        tasks.task(Dataset(source="d.csv", task="../../pools"))


def test_a_run_wants_its_datasets_and_the_prompts_of_its_panels() -> None:
    datasets = {"one": Dataset(source="a.csv"), "two": Dataset(source="b.json", task="passthrough")}
    panels = {"open": Panel(prompts="p.jsonl", metrics=()), "own": Panel(dataset="one", metrics=())}
    bases = (PlannedBase(name="tiny", reference="tiny"),)
    found = wanted(Plan(name="r", bases=bases, datasets=datasets, panels=panels, items=()))
    assert [(each.name, each.source, each.kind) for each in found] == [
        ("one", "a.csv", "classify"),
        ("two", "b.json", "passthrough"),
        ("panel:open", "p.jsonl", "prompts"),
    ]
    assert found[0].counts() == {"test": 500, "validation": 200, "train": 8000}
    assert found[2].counts() == {}, "all are test rows"


@dataclass(frozen=True)
class Echo:
    """A task that nobody has heard of: two examples of each row, none of some."""

    columns: tuple[Sequence[str], Sequence[str]] = (("word",), ())
    asked: None = None

    def read(self, values: Mapping[str, str]) -> tuple[str, str, None]:
        return values["word"], "", None

    def classes(self, seen: Seen, most: int) -> tuple[str, ...]:
        return ()

    def make(
        self, order: Order, chosen: Sequence[Candidate], work: Path, models: Models, say: Say
    ) -> Generator[Progress, None, Made]:
        made = yield from one_each(order, chosen, lambda candidate: (f"Say {candidate.text}", "echo"), say)
        for row in made:
            if row % 10 == 0:
                made[row] = Rejected(row=row, reason="it echoes nothing", content="")
            else:
                made[row] = (*made[row], *made[row])
        return made

    def foretell(self, candidate: Candidate, order: Order) -> tuple[str, str]:
        return candidate.text, candidate.answer


def say(**said: object) -> Progress:
    return Progress(run="r", station="datagen", **{name: value for name, value in said.items() if value is not None})


def drained(steps: Generator[Progress, None, T], said: list[Progress]) -> T:
    while True:
        try:
            said.append(next(steps))
        except StopIteration as end:
            return end.value


def test_a_new_task_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are read, split, made, some several times and some not at all, and written, by code that has not heard of it."""
    module = ModuleType("services.datagen.tasks.echo")
    module.task = lambda dataset: Echo()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(TASKS, "echo", False)
    store = local_store(tmp_path)
    source = uploaded(store, "d.csv", "\n".join(["word", *(f"word {n}" for n in range(40))]).encode())
    rows = Rows(train=30, validation=0, test=10)
    echo = tasks.task(Dataset(source="d.csv", task="echo"))
    asked = Wanted("d", source, "echo", echo, rows)

    pools, said = Pools(Sources(store, Bounds(1 << 20)), max_text_chars=100, max_labels=5), list[Progress]()
    pools.check(asked)
    pool = drained(pools.read(asked, 17, say), said)
    held_out = frozenset(row.key for row in pool.test)
    folder = drained(Builder(tmp_path / "work", Models(Providers(), 3)).build("r", pool, held_out, 17, say), said)

    assert (said[-1].done, said[-1].total) == (36, 40), "rows, however many examples they gave"
    card = read_json(folder / "card.json", DatasetCard)
    assert (card.task, card.rows["train"] + card.rows["test"], card.rejected) == ("echo", 72, 4)
    made = [row for split in ("train", "test") for row in read_jsonl(folder / f"{split}.jsonl", Example)]
    assert len({row.provenance.row for row in made}) == 36
