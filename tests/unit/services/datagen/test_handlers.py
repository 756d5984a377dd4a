"""datagen as a station: from a plan and tables to stored datasets and the word that they are made, the same after any crash."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.datagen.build import Builder
from services.datagen.handlers import Datagen
from services.datagen.pools import Pools
from services.datagen.sources import Bounds, Sources
from services.datagen.tasks.task import Models
from understudy.belt.contracts import DatasetsMade, Message, Progress, RunRequested
from understudy.errors import Fatal, Invalid
from understudy.llm.providers import Providers
from understudy.plan import Item, Plan, PlannedBase, make
from understudy.recipe import Panel, Recipe, parse
from understudy.records import DatasetCard, Example, Rejected, read_json, read_jsonl
from understudy.store.artifacts import FsspecArtifactStore
from understudy.store.plans import Plans, put_datasets, put_plan
from understudy.terms import Artifact
from understudy.testing import drain, local_store, uploaded
from understudy_cli.prepare import upload


def station(folder: Path) -> tuple[Datagen, FsspecArtifactStore]:
    store = local_store(folder)
    pools = Pools(Sources(store, Bounds(max_bytes=1 << 30)), max_text_chars=5000, max_labels=20)
    return Datagen(store, Plans(store), pools, Builder(folder / "work", Models(Providers(), tries=3))), store


def table(path: Path, rows: list[tuple[str, Any]], header: tuple[str, str] = ("text", "label")) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def remarks(path: Path, count: int = 200) -> str:
    return table(path, [(f"remark number {n} is {'fine' if n % 2 else 'bad'}", n % 2) for n in range(count)])


def recipe(source: str, **more: Any) -> Recipe:
    rows = {"train": 60, "validation": 10, "test": 30}
    dataset = {"source": source, "labels": {0: "negative", 1: "positive"}, "rows": rows}
    return parse({"name": "r", "datasets": {"remarks": dataset}} | more, "the test")


def plan(asked: Recipe) -> Plan:
    return make(asked, lambda base: PlannedBase(name=base, reference=base))


def request(store: FsspecArtifactStore, asked: Recipe | Plan, **more: Any) -> RunRequested:
    """What the door publishes once files are uploaded and the plan is stored."""
    if isinstance(asked, Plan):
        run, planned = asked.name, asked
    else:
        sent = upload(asked, lambda path: uploaded(store, path.name, path.read_bytes()))
        run, planned = asked.run_id(), plan(sent)
    return RunRequested(
        run=run, plan=put_plan(store, run, planned), name=planned.name, items=len(planned.items), **more
    )


def run(folder: Path, asked: Recipe) -> list[Message]:
    datagen, store = station(folder)
    return drain(datagen.make(request(store, asked)))


def made(store: FsspecArtifactStore, message: Message) -> dict[str, Artifact]:
    assert isinstance(message, DatasetsMade)
    return Plans(store).datasets(message.datasets)


def examples(store: FsspecArtifactStore, message: Message, dataset: str = "remarks") -> dict[str, list[Example]]:
    folder = store.fetch(made(store, message)[dataset])
    return {split: list(read_jsonl(folder / f"{split}.jsonl", Example)) for split in ("train", "validation", "test")}


def test_a_table_becomes_a_dataset_and_that_is_said_once(tmp_path: Path) -> None:
    datagen, store = station(tmp_path)
    asked = request(store, recipe(remarks(tmp_path / "remarks.csv")), generation=3, attempt=2)
    messages = list(datagen.make(asked))
    (output,) = drain(messages)
    assert isinstance(output, DatasetsMade)
    assert (output.run, output.generation, output.attempt, output.plan) == (asked.run, 3, 2, asked.plan)
    assert {(m.run, m.generation, m.attempt) for m in messages} == {(asked.run, 3, 2)}, "progress too"
    splits = examples(store, output)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 60, "validation": 10, "test": 30}
    assert {name: Counter(r.label for r in rows)["positive"] for name, rows in splits.items()} == {
        "train": 30,
        "validation": 5,
        "test": 15,
    }
    everything = [row for rows in splits.values() for row in rows]
    assert len({row.id for row in everything}) == len({row.provenance.row for row in everything}) == 100
    for row in everything:
        assert row.completion == row.label == ("positive" if row.provenance.row % 2 else "negative")
        assert f"remark number {row.provenance.row} is" in row.prompt[-1].content
        assert row.provenance.generator.startswith("template:")
    assert len({row.provenance.generator for row in everything}) > 15
    card = read_json(store.fetch(made(store, output)["remarks"]) / "card.json", DatasetCard)
    assert (card.labels, card.rejected, card.task) == (("negative", "positive"), 0, "classify")
    assert any(isinstance(m, Progress) and m.done == 100 for m in messages)
    assert not list((tmp_path / "work").iterdir()), "nothing unfinished is left"


def test_a_second_delivery_does_no_work_and_a_new_machine_makes_the_same_bytes(tmp_path: Path) -> None:
    asked = recipe(remarks(tmp_path / "remarks.csv"))
    datagen, store = station(tmp_path / "one")
    first = drain(datagen.make(request(store, asked)))
    again = list(datagen.make(request(store, asked)))
    assert again == first, "no progress, the same messages"
    other, elsewhere = station(tmp_path / "two")
    assert drain(other.make(request(elsewhere, asked))) == first, "the same digests"


def test_a_crash_between_datasets_keeps_the_finished_one(tmp_path: Path) -> None:
    source = remarks(tmp_path / "remarks.csv")
    datasets = {name: {"source": source, "rows": {"train": 20, "validation": 0, "test": 10}} for name in ("one", "two")}
    asked = parse({"datasets": datasets}, "the test")
    datagen, store = station(tmp_path)
    steps: Iterator[Message] = datagen.make(request(store, asked))
    for message in steps:
        if isinstance(message, Progress) and message.step.startswith("two: 20"):
            break  # `one` is stored, `two` is not
    steps.close()  # type: ignore[attr-defined]
    assert [store.find(f"runs/{asked.run_id()}/datasets/{name}") is not None for name in ("one", "two")] == [
        True,
        False,
    ]
    fresh, elsewhere = station(tmp_path / "elsewhere")
    assert drain(datagen.make(request(store, asked))) == drain(fresh.make(request(elsewhere, asked)))


def test_no_test_question_of_one_dataset_is_trained_on_in_another(tmp_path: Path) -> None:
    """Two datasets of one table, of which one asks for no test rows and all the rest for training."""
    source = remarks(tmp_path / "remarks.csv", 100)
    datasets = {
        "small": {"source": source, "rows": {"train": 10, "validation": 0, "test": 40}},
        "large": {"source": source, "rows": {"train": 100, "validation": 0, "test": 0}},
    }
    datagen, store = station(tmp_path)
    output = drain(datagen.make(request(store, parse({"datasets": datasets}, "the test"))))[0]
    tested = {row.provenance.row for row in examples(store, output, "small")["test"]}
    trained = {row.provenance.row for row in examples(store, output, "large")["train"]}
    assert len(tested) == 40
    assert len(trained) == 60
    assert not tested & trained


def test_too_few_rows_are_said_and_shared(tmp_path: Path) -> None:
    datagen, store = station(tmp_path)
    messages = list(datagen.make(request(store, recipe(remarks(tmp_path / "remarks.csv", 50)))))
    assert {name: len(rows) for name, rows in examples(store, messages[-1]).items()} == {
        "train": 30,
        "validation": 5,
        "test": 15,
    }
    steps = [m.step for m in messages if isinstance(m, Progress)]
    assert "remarks: 30 train, 5 validation, 15 test, fewer than asked for: the source has only 50 usable rows" in steps


def test_rejected_rows_are_kept_with_their_reasons(tmp_path: Path) -> None:
    rows = [(f"text {n}", n % 2) for n in range(20)] + [("", 1), ("text 3", 1), ("odd", 7), ("both", 0), ("Both", 1)]
    datagen, store = station(tmp_path)
    counted = REGISTRY.get_sample_value("understudy_datagen_rows_total", {"outcome": "rejected"})
    output = drain(datagen.make(request(store, recipe(table(tmp_path / "t.csv", rows)))))[0]
    assert REGISTRY.get_sample_value("understudy_datagen_rows_total", {"outcome": "rejected"}) == counted + 5
    folder = store.fetch(made(store, output)["remarks"])
    rejected = list(read_jsonl(folder / "rejected.jsonl", Rejected))
    assert [row.row for row in rejected] == [20, 21, 22, 23, 24]
    assert json.loads((folder / "card.json").read_text())["rejected"] == 5


def test_passthrough_and_prompts_have_no_labels(tmp_path: Path) -> None:
    alpaca = [{"instruction": f"Do {n}", "input": "x" if n % 2 else "", "output": f"done {n}"} for n in range(30)]
    (tmp_path / "a.json").write_text(json.dumps(alpaca))
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "Why?", "source": "x"}\n{"prompt": "How?", "reference": "So."}\n{"prompt": ""}\n'
    )
    datasets = {
        "alpaca": {
            "source": str(tmp_path / "a.json"),
            "task": "passthrough",
            "rows": {"train": 20, "validation": 0, "test": 10},
        }
    }
    panels = {"open": {"prompts": str(tmp_path / "p.jsonl"), "metrics": ["bleu"]}}
    datagen, store = station(tmp_path)
    asked = parse({"datasets": datasets, "evaluation": {"panels": panels}}, "the test")
    (output,) = drain(datagen.make(request(store, asked)))
    row = next(row for row in examples(store, output, "alpaca")["train"] if row.provenance.row % 2)
    assert row.prompt[0].content == f"Do {row.provenance.row}\n\nx"
    assert row.completion == f"done {row.provenance.row}"
    assert row.label is None
    panel = examples(store, output, "panel:open")
    assert sorted((row.prompt[0].content, row.completion) for row in panel["test"]) == [("How?", "So."), ("Why?", "")]
    assert not panel["train"]


def test_a_run_that_trains_nothing_has_its_questions_made(tmp_path: Path) -> None:
    rows = {"train": 0, "validation": 0, "test": 10}
    asked = parse({"datasets": {"d": {"source": remarks(tmp_path / "r.csv"), "rows": rows}}}, "the test")
    datagen, store = station(tmp_path)
    (output,) = drain(datagen.make(request(store, asked)))
    assert {split: len(found) for split, found in examples(store, output, "d").items()} == rows


BASES = (PlannedBase(name="tiny", reference="tiny"),)
BARE = Plan(name="bare", bases=BASES, items=(Item(name="base", ends_at="served"),))


def test_a_run_that_needs_no_data_goes_on_at_once(tmp_path: Path) -> None:
    """A base that is only to be served: no panel, no dataset, and still the word that all is made."""
    datagen, store = station(tmp_path)
    (output,) = datagen.make(request(store, BARE))
    assert made(store, output) == {}


def test_a_model_that_is_served_already_has_its_questions_made(tmp_path: Path) -> None:
    """An item that names a model and trains nothing, asked a panel of one's own prompts."""
    items = (Item(name="old", model="adapter-of-last-week"),)
    datagen, store = station(tmp_path)
    prompts = uploaded(store, "p.jsonl", b'{"prompt": "Why?"}\n{"prompt": "How?"}\n')
    panels = {"open": Panel(prompts=prompts, metrics=("bleu",))}
    asked = Plan(name="second-look", bases=BASES, panels=panels, items=items)
    (output,) = drain(datagen.make(request(store, asked)))
    assert len(examples(store, output, "panel:open")["test"]) == 2


def test_a_list_that_a_deleted_generation_left_behind_is_replaced(tmp_path: Path) -> None:
    """Whoever was at work when its run was deleted may store one thing more."""
    asked = recipe(remarks(tmp_path / "remarks.csv"))
    datagen, store = station(tmp_path)
    put_datasets(store, asked.run_id(), {"remarks": Artifact(sha256="0" * 64)})
    (output,) = drain(datagen.make(request(store, asked, generation=2)))
    assert len(examples(store, output)["train"]) == 60
    assert drain(datagen.make(request(store, asked, generation=2))) == [output]


def test_the_mark_only_grows_and_is_the_same_when_a_finished_dataset_is_passed_over(tmp_path: Path) -> None:
    source = remarks(tmp_path / "remarks.csv")
    datasets = {name: {"source": source, "rows": {"train": 20, "validation": 0, "test": 10}} for name in ("one", "two")}
    datagen, store = station(tmp_path)
    asked = request(store, parse({"datasets": datasets}, "the test"))

    def marks(until: str) -> list[int]:
        told, steps = [], datagen.make(asked)
        for message in steps:
            if isinstance(message, Progress):
                assert message.mark is not None
                told.append(message.mark)
                if message.step.startswith(until):
                    break
        steps.close()  # type: ignore[attr-defined]
        assert told == sorted(told)
        return told

    first = marks("two: 20")
    assert store.find(f"runs/{asked.run}/datasets/one")
    assert marks("two: 20")[-1] == first[-1] == 2 * (200 + 30), "200 rows read and 30 written, twice"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("a", 1), ("b", 1), ("c", 5)], "one label only: all 2 usable rows are `positive`; 1 rows were rejected"),
        ([("a", "x"), ("b", "y")], "no usable row; 2 rows were rejected, 1 of them because: label `x` is not among"),
    ],
)
def test_a_table_with_nothing_to_learn_is_refused(tmp_path: Path, rows: list[tuple[str, Any]], said: str) -> None:
    with pytest.raises(Invalid) as error:
        run(tmp_path, recipe(table(tmp_path / "t.csv", rows)))
    assert said in str(error.value)
    assert "t.csv" in str(error.value)


def test_a_label_column_of_free_text_is_refused(tmp_path: Path) -> None:
    source = table(tmp_path / "t.csv", [(f"text {n}", f"opinion {n}") for n in range(30)])
    asked = parse({"datasets": {"d": {"source": source}}}, "the test")
    with pytest.raises(Invalid, match=r"30 different labels in column `label`, at most 20 are taken"):
        run(tmp_path, asked)


def test_a_full_disk_is_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("services.datagen.build.write_jsonl", full)
    with pytest.raises(Fatal, match="is full"):
        run(tmp_path, recipe(remarks(tmp_path / "r.csv")))


def test_real_tweets_go_through_in_seconds(real_data: Path, tmp_path: Path) -> None:
    labels, columns = {0: "negative", 1: "positive"}, {"label": "feeling"}
    rows = {"train": 20_000, "validation": 1_000, "test": 2_000}
    dataset = {"source": str(real_data / "tweets" / "tweets.csv"), "labels": labels, "columns": columns, "rows": rows}
    datagen, store = station(tmp_path)
    output = drain(datagen.make(request(store, parse({"datasets": {"tweets": dataset}}, "the test"))))[0]
    splits = examples(store, output, "tweets")
    assert {name: len(found) for name, found in splits.items()} == rows
    assert all(Counter(row.label for row in found)["positive"] * 2 == len(found) for found in splits.values())


def test_html_line_breaks_are_gone_from_real_reviews(real_data: Path, tmp_path: Path) -> None:
    dataset = {
        "source": str(real_data / "imdb" / "reviews.csv"),
        "labels": {0: "negative", 1: "positive"},
        "rows": {"train": 500},
    }
    datagen, store = station(tmp_path)
    output = drain(datagen.make(request(store, parse({"datasets": {"imdb": dataset}}, "the test"))))[0]
    texts = [row.prompt[0].content for rows in examples(store, output, "imdb").values() for row in rows]
    assert len(texts) == 1200
    assert not [text for text in texts if "<br" in text]
