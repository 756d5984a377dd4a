"""From the recipe file to what is sent: nothing is added that the user did not write, because the run's id follows from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from understudy.errors import Invalid
from understudy.recipe import load, parse
from understudy_cli.prepare import prepare, upload

SMALL = "datasets: {d: {source: d.csv}}\n"
FULL = """
name: full
base: [./mine, seedling]
datasets:
  d: {source: d.csv, labels: {0: bad, 1: good}, rows: {train: 5}}
  h: {source: 'hf:a/b@1', task: passthrough}
  u: {source: file-0123456789abcdef01234567}
variants:
  v: {train: [d, {d: 1, h: 2}], training: {epochs: 2, lora: {r: 16}}}
training: {epochs: 4}
evaluation:
  panels:
    p: {dataset: d, metrics: [accuracy]}
    q: {prompts: q.jsonl, metrics: [bleu]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "seedling").mkdir(parents=True)
    (tmp_path / "recipes" / "d.csv").write_text("text,label\na,1\n")
    (tmp_path / "recipes" / "q.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "own.csv").write_text("text,label\nb,1\n")
    return tmp_path


def written(folder: Path, content: str) -> Path:
    path = folder / "recipes" / "r.yaml"
    path.write_text(content)
    return path


def test_keys_that_were_not_written_are_not_sent(folder: Path) -> None:
    """Not even `base` and `evaluation`, which are looked through for local paths."""
    ready = upload(prepare(written(folder, SMALL), models=folder / "models"), lambda path: f"file-{path.name[0]}")
    assert ready.written() == {"datasets": {"d": {"source": "file-d"}}}


def test_everything_that_was_written_is_sent_with_paths_replaced(folder: Path) -> None:
    """The server, which parses what is sent, comes to the same id; every file is uploaded once."""
    path, sent = written(folder, FULL), []

    def send(file: Path) -> str:
        sent.append(file.name)
        return f"file-{file.name[0]}"

    ready = upload(prepare(path, models=folder / "models"), send)
    expected = load(path).written()
    expected["base"] = [str(folder / "recipes" / "mine"), "seedling"]
    expected["datasets"]["d"]["source"] = "file-d"
    expected["evaluation"]["panels"]["q"]["prompts"] = "file-q"
    assert ready.written() == expected
    assert sent == ["d.csv", "q.jsonl"]
    arrived = parse(json.loads(json.dumps(ready.written())), "the request")
    assert arrived.run_id() == ready.run_id()
    assert arrived.run_id("2") == ready.run_id("2") != ready.run_id()


def test_a_file_that_is_not_there_is_named_with_its_nearest_neighbour(folder: Path) -> None:
    """This is the user's own machine; the server says nothing of what lies on its own."""
    path = written(folder, "datasets: {d: {source: dd.csv}}")
    with pytest.raises(Invalid, match=r"there is no file .*dd\.csv \(did you mean `d\.csv`\?\)"):
        prepare(path)
    with pytest.raises(Invalid, match=r"there is no file .*nowhere/d\.csv\. Paths"):
        prepare(written(folder, "datasets: {d: {source: nowhere/d.csv}}"))


def test_options_replace_and_are_part_of_the_run(folder: Path) -> None:
    """--source starts where the user is, a recipe's path at its folder; --base takes the place of all bases."""
    path = written(folder, FULL)
    ready = prepare(path, ["own.csv"], "seedling", folder / "models")
    assert ready.datasets["d"].source == str(folder / "own.csv")
    assert ready.base == "seedling"
    small = prepare(written(folder, SMALL), [], "seedling", folder / "models")
    assert small.written()["base"] == "seedling"
    assert small.run_id() != prepare(written(folder, SMALL), models=folder / "models").run_id()
