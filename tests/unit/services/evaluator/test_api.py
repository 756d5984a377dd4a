"""Proves what /v1/reports answers: the newest stored report, locked down, or 404 in OpenAI's shape."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from services.evaluator.api import router
from services.evaluator.reports import Reports
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import ItemFailed, Message, RunClosed, RunDeleted, RunRequested
from understudy.belt.folds.control import Control
from understudy.belt.folds.reader import Reader
from understudy.belt.folds.runs import Runs
from understudy.belt.turns import Book, apply, outcome
from understudy.plan import PlannedBase, make
from understudy.recipe import parse
from understudy.records import write_json
from understudy.report import Cell
from understudy.service.web import add_errors
from understudy.store import keys
from understudy.store.plans import Plans
from understudy.terms import Artifact
from understudy.testing import local_store, report_of

PLAN = make(
    parse({"datasets": {"d": {"source": "d.csv"}}}, "test"), lambda base: PlannedBase(name=base, reference=base)
)
REQUEST = RunRequested(run="x-1.2", plan=Artifact(sha256="0" * 64), name="x", items=1)
FAILED = ItemFailed(run="x-1.2", item="base", station="trainer", reason="no data")


def client(folder: Path, *said: Message) -> TestClient:
    """The API over the store in `folder`, on a bus where only this was said."""
    bus = EmbeddedBus(folder / f"bus-{len(said)}.sqlite")
    bus.publish(*said)
    control = Control()
    runs = Runs(control)
    Reader(bus, (control, runs)).load()
    app = FastAPI()
    add_errors(app)
    store = local_store(folder)
    app.include_router(router(Reports(store, Plans(store)), runs))
    return TestClient(app)


def closed(folder: Path, word: str, *said: Message, attempt: int = 1) -> RunClosed:
    """The run's end after what was said, with a report on a plan of this name."""
    book = Book()
    for message in said:
        book = apply(book, message)
    made = folder / outcome(book)
    made.mkdir(exist_ok=True)
    cells = {"base": Cell(n=100, value=0.5, low=0.4, high=0.6)}
    write_json(made / "report.json", report_of(PLAN.model_copy(update={"name": word}), cells, run="x-1.2"))
    report = local_store(folder).put(keys.report("x-1.2", outcome(book)), made)
    return RunClosed(run="x-1.2", attempt=attempt, status="finished", outcome=outcome(book), report=report)


def test_the_report_as_page_and_as_data(tmp_path: Path) -> None:
    with client(tmp_path, REQUEST, closed(tmp_path, "hello")) as server:
        page = server.get("/v1/reports/x-1.2")
        assert page.text.startswith("<!doctype html>")
        assert "<h1>hello</h1>" in page.text
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        assert server.get("/v1/reports/x-1.2.json").json()["plan"]["name"] == "hello"


def test_the_newest_report_is_shown_also_while_and_after_something_is_tried_again(tmp_path: Path) -> None:
    first, second = closed(tmp_path, "first"), closed(tmp_path, "second", FAILED)
    said: list[Message] = [REQUEST, first]
    for word, shown in (
        (FAILED, "first"),  # which has no closing yet
        (second, "second"),
        (REQUEST.model_copy(update={"generation": 2}), "second"),
        (RunClosed(run="x-1.2", generation=2, status="failed", station="datagen", reason="no table"), "second"),
    ):
        said.append(word)
        assert client(tmp_path, *said).get("/v1/reports/x-1.2.json").json()["plan"]["name"] == shown


def test_no_report_yet_is_not_found(tmp_path: Path) -> None:
    server = client(tmp_path, REQUEST)
    for path in ("/v1/reports/x-1.2", "/v1/reports/x-1.2.json"):
        answer = server.get(path)
        assert answer.status_code == 404
        assert "Run `x-1.2` has no report yet" in answer.json()["error"]["message"]
    assert "There is no run `nowhere`" in server.get("/v1/reports/nowhere").json()["error"]["message"]


def test_a_baseline_that_was_not_scored_is_a_mistake_of_the_question(tmp_path: Path) -> None:
    answer = client(tmp_path, REQUEST, closed(tmp_path, "hello")).get("/v1/reports/x-1.2?baseline=nobody")
    assert answer.status_code == 400
    assert "No item `nobody` was scored" in answer.json()["error"]["message"]


def test_a_report_that_was_made_while_its_run_was_deleted_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion had looked at what there was before; what comes after it goes too."""
    bus, store = EmbeddedBus(tmp_path / "bus.sqlite"), local_store(tmp_path)
    bus.publish(REQUEST, closed(tmp_path, "hello"))
    control = Control()
    runs = Runs(control)
    reader = Reader(bus, (control, runs))
    reader.load()
    app = FastAPI()
    add_errors(app)
    app.include_router(router(Reports(store, Plans(store)), runs))

    def against(self: Reports, report: Artifact, baseline: str) -> Artifact:
        bus.publish(RunDeleted(run="x-1.2"))
        reader.load()
        store.delete_all(keys.run("x-1.2"))
        with store.draft() as folder:
            (folder / "report.json").write_text("{}")
            return store.put(keys.report("x-1.2", "late"), folder)

    monkeypatch.setattr(Reports, "against", against)
    assert TestClient(app).get("/v1/reports/x-1.2.json?baseline=base").status_code == 404
    assert store.keys(keys.run("x-1.2")) == []
