"""Proves that a run is closed with one report for each outcome, the same bytes whatever came in between, and at once."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.evaluator.handlers import Evaluator
from services.evaluator.predict import Asker
from services.evaluator.reporter import Reporter
from services.evaluator.reports import Reports
from understudy.belt import turns
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import (
    CancelRequested,
    DatasetsMade,
    ItemFailed,
    ItemScored,
    ItemServed,
    Message,
    Progress,
    ReportRequested,
    RunClosed,
)
from understudy.belt.folds.control import Control
from understudy.belt.folds.reader import Reader
from understudy.errors import Invalid
from understudy.report import Report
from understudy.store import keys
from understudy.store.plans import Plans
from understudy.testing import drain, local_store

Endpoint = Any
World = Any
ITEMS = ("base", "tuned", "broad")


@pytest.fixture(scope="module")
def answers(
    tmp_path_factory: pytest.TempPathFactory, world_of: Any, endpoint_for_module: Endpoint
) -> tuple[World, dict[str, ItemScored]]:
    """A world and the end of each item when all goes well."""
    world = world_of(tmp_path_factory.mktemp("answers"), rows=12)
    work = world.folder / "work"
    work.mkdir()
    station = Evaluator(world.store, world.plans, Asker(endpoint_for_module.url, 8), work)
    ends = {item: drain(station.evaluate(world.asking(item)))[0] for item in ITEMS}
    return world, ends


def failed(item: str, reason: str = "out of memory", **more: Any) -> ItemFailed:
    return ItemFailed(run="r1", item=item, station="trainer", reason=reason, **more)


class Bench:
    """A reporter on a store of its own, which holds what was scored and no report, and reads what was said."""

    def __init__(self, world: World, folder: Path) -> None:
        self.made: DatasetsMade = world.made
        self.store = local_store(folder)
        for key in ("runs/r1/datasets", "runs/r1/answers", "runs/r1/measures", "runs/r1"):
            for name in world.store.keys(key):
                self.store.put(name, world.store.fetch(world.store.find(name)))
        self.bus = EmbeddedBus(folder / "bus.sqlite")
        self.control = Control()
        self.offset = -1
        self.work = folder / "work"
        self.work.mkdir(exist_ok=True)
        self.reader = Reader(self.bus, [self.control])
        plans = Plans(self.store)
        self.reports = Reports(self.store, plans)
        self.reporter = Reporter(self.reports, plans, self.control, self.reader, self.work)

    def hear(self, *said: Message) -> ReportRequested:
        """Read what was said of the run; what the closer asks for after it."""
        self.bus.publish(*said)
        self.offset += len(said)
        self.reader.load()
        return ReportRequested(
            run="r1",
            outcome=turns.outcome(self.control.book("r1")),
            until=self.offset,
            status="finished",
            plan=self.made.plan,
            datasets=self.made.datasets,
        )

    def close(self, request: ReportRequested) -> RunClosed:
        (end,) = drain(self.reporter.close(request))
        assert isinstance(end, RunClosed)
        return end

    def report(self, end: RunClosed) -> Report:
        assert end.report
        return self.reports.read(end.report)


@pytest.fixture
def bench(answers: tuple[World, dict[str, ItemScored]], tmp_path: Path) -> Bench:
    return Bench(answers[0], tmp_path)


_digest_of: dict[str, str] = {}
"""What was lost -> digest of the report; the same for every order."""


@pytest.mark.parametrize("lost", ["", "tuned", "base"])
@pytest.mark.parametrize("order", list(itertools.permutations(ITEMS))[::2])
def test_any_order_of_ends_gives_the_same_report(
    answers: tuple[World, dict[str, ItemScored]], bench: Bench, lost: str, order: tuple[str, ...]
) -> None:
    ends = [failed(item) if item == lost else answers[1][item] for item in order]
    end = bench.close(bench.hear(bench.made, *ends))
    assert end.report
    assert _digest_of.setdefault(lost, end.report.sha256) == end.report.sha256
    report = bench.report(end)
    assert end.report == bench.store.find(keys.report("r1", report.inputs.digest))
    assert report.inputs.failed == ((lost,) if lost else ())
    assert report.items == tuple(item for item in ITEMS if item != lost)
    assert (report.inputs.cancelled, report.run) == ((), "r1")
    assert bench.close(bench.hear()) == end, "handed out again after it was made"
    again = bench.close(bench.hear().model_copy(update={"generation": 2, "attempt": 3, "status": "failed"}))
    assert (again.generation, again.attempt, again.status, again.report) == (2, 3, "failed", end.report)


def test_what_came_through_after_all_leaves_the_report_it_would_have_had(
    answers: tuple[World, dict[str, ItemScored]], bench: Bench, tmp_path: Path
) -> None:
    """Whatever was lost before: in the end no trace of it, and the bytes of an undisturbed run."""
    undisturbed = Bench(answers[0], tmp_path / "undisturbed")
    expected = undisturbed.close(undisturbed.hear(bench.made, *answers[1].values()))
    ends = answers[1]
    first = bench.close(bench.hear(bench.made, failed("tuned"), CancelRequested(run="r1", item="broad"), ends["base"]))
    assert bench.report(first).inputs.cancelled == ("broad",)
    again = bench.made.model_copy(update={"generation": 2})
    second = bench.close(
        bench.hear(again, *(ends[item].model_copy(update={"generation": 2}) for item in ("tuned", "broad")))
    )
    assert second.report == expected.report
    assert first.report != second.report
    assert first.report
    assert bench.store.fetch(first.report).is_dir(), "an earlier report is kept"


def test_why_an_item_failed_is_no_part_of_the_report(
    answers: tuple[World, dict[str, ItemScored]], bench: Bench
) -> None:
    """How often and of what it failed is in the run's state: the report follows from what was measured."""
    ends = answers[1]
    bench.hear(bench.made, ends["base"], ends["broad"])
    reports = set()
    for attempt, reason in enumerate(("no base", "no data", "no base"), start=1):
        end = bench.close(bench.hear(failed("tuned", reason, attempt=attempt)))
        assert bench.report(end).inputs.failed == ("tuned",)
        reports.add(end.report)
    assert len(reports) == 1


def test_any_item_can_be_what_the_others_are_held_against(
    answers: tuple[World, dict[str, ItemScored]], bench: Bench
) -> None:
    end = bench.close(bench.hear(bench.made, *answers[1].values()))
    assert end.report
    against = bench.reports.read(bench.reports.against(end.report, "tuned"))
    assert against.compared_with == {"base": "tuned", "broad": "tuned"}
    before = bench.report(end).panels[0].row("accuracy")
    after = against.panels[0].row("accuracy")
    assert before
    assert after
    assert after.cells["base"].delta == -(before.cells["tuned"].delta or 0)
    assert after.cells["base"].mcnemar_p == before.cells["tuned"].mcnemar_p
    assert after.cells["tuned"].delta is None
    assert bench.reports.against(end.report, "tuned") == bench.store.find(keys.report("r1", against.inputs.digest))
    with pytest.raises(Invalid, match=r"No item `tunned` was scored \(did you mean `tuned`\?\)"):
        bench.reports.against(end.report, "tunned")


def test_when_more_was_said_since_the_request_is_passed_over(
    answers: tuple[World, dict[str, ItemScored]], bench: Bench
) -> None:
    ends = answers[1]
    request = bench.hear(bench.made, *ends.values())
    newer = bench.hear(ends["tuned"].model_copy(update={"attempt": 2}))
    assert drain(bench.reporter.close(request)) == []
    assert bench.store.keys("runs/r1/reports") == []
    assert bench.close(newer).report


def test_it_waits_until_this_process_has_read_what_the_closer_had(
    answers: tuple[World, dict[str, ItemScored]], bench: Bench, tmp_path: Path
) -> None:
    ahead = Bench(answers[0], tmp_path / "ahead")
    request = ahead.hear(bench.made, *answers[1].values())
    bench.hear(bench.made)
    threading.Timer(0.5, lambda: bench.hear(*answers[1].values())).start()
    assert bench.close(request).report


def test_without_any_scores_there_is_no_report(bench: Bench) -> None:
    request = bench.hear(bench.made, failed("base"), failed("tuned"), ItemServed(run="r1", item="broad", model="m"))
    end = bench.close(request.model_copy(update={"status": "failed", "reason": "No item came through."}))
    assert (end.status, end.reason, end.report) == ("failed", "No item came through.", None)
    nothing = request.model_copy(update={"status": "cancelled", "plan": None, "datasets": None})
    assert bench.close(nothing).report is None


@pytest.mark.parametrize("last", ["scored", "failed", "cancelled"])
def test_unfinished_work_is_forgotten_when_all_came_through_and_kept_otherwise(
    answers: tuple[World, dict[str, ItemScored]], bench: Bench, last: str
) -> None:
    (bench.work / "r1" / "broad").mkdir(parents=True)
    ends = answers[1]
    end: dict[str, Message] = {
        "scored": ends["broad"],
        "failed": failed("broad"),
        "cancelled": CancelRequested(run="r1"),
    }
    bench.close(bench.hear(bench.made, ends["base"], ends["tuned"], end[last]))
    assert (bench.work / "r1").exists() == (last != "scored")


def test_the_report_has_what_the_command_line_shows(answers: tuple[World, dict[str, ItemScored]], bench: Bench) -> None:
    world, ends = answers
    outputs = list(bench.reporter.close(bench.hear(bench.made, *ends.values())))
    assert any(isinstance(o, Progress) and o.step == "report" for o in outputs)
    report = json.loads((bench.store.fetch(outputs[-1].report) / "report.json").read_text())
    assert report["format"] == "understudy.report.v3"
    assert report["inputs"]["run"] == "r1"
    assert report["items"] == list(ITEMS)
    assert report["compared_with"] == {"tuned": "base", "broad": "base"}
    assert [item["name"] for item in report["plan"]["items"]] == list(ITEMS)
    assert [panel["name"] for panel in report["panels"]] == list(world.plan.panels)
    first = report["panels"][0]["metrics"][0]
    assert (first["metric"], first["cells"]["base"]["n"], first["higher_is_better"]) == ("accuracy", 12, True)
    assert first["cells"]["base"]["delta"] is None
    cell = first["cells"]["tuned"]
    assert cell["delta"] == pytest.approx(cell["value"] - first["cells"]["base"]["value"], abs=1e-6)
    assert cell["delta_low"] <= cell["delta"] <= cell["delta_high"]
    assert cell["verdict"] in ("better", "worse", "no clear difference")
    assert report["panels"][2]["not_computed"] == {"rougeL": "no question has a reference answer"}
    assert report["training"]["tuned"]["steps"] == 300
    assert report["datasets"]["remarks"]["rejected"] == 7
    readings = [(row["metric"], row["reading"]) for row in report["panels"][0]["metrics"]]
    names = ("accuracy", "precision", "recall", "f1")
    written = [(name, "written") for name in names]
    likely = [(name, "likeliest") for name in names]
    assert readings == [written[0], ("accuracy", "strict"), *written[1:], *likely]
    assert 0 < cell["mcnemar_p"] <= 1


def test_a_run_is_closed_within_a_second_while_another_one_is_asked_for_minutes(
    tmp_path: Path,
    world_of: Any,
    endpoint: Endpoint,
    bus: EmbeddedBus,
    lanes: Any,
    until: Callable[..., None],
    said: Callable[..., list[Any]],
) -> None:
    """All three lanes in one process: run A's endpoint answers no more, run B's last item is scored."""
    world = world_of(tmp_path / "world", rows=40)
    work = tmp_path / "elsewhere"
    work.mkdir()
    elsewhere = Evaluator(world.store, world.plans, Asker(endpoint.url, 8), work)
    runs = [world.begun(name) for name in ("warm", "b")]
    ends = {made.run: [drain(elsewhere.evaluate(world.asking(item, made)))[0] for item in ITEMS] for made in runs}
    answered = len(endpoint.asked)
    endpoint.hold_after = answered + 20

    def closed(run: str) -> list[RunClosed]:
        return [end for end in said(bus, "run-closed") if end.run == run]

    with lanes(bus, world.folder, endpoint.url, concurrency=4):
        bus.publish(runs[0], *ends["warm"])
        until(lambda: closed("warm"))
        bus.publish(runs[1], *ends["b"][:2])
        bus.publish(world.begun("a"), world.asking("base", world.begun("a")))
        until(lambda: len(endpoint.asked) >= answered + 24)  # 20 were answered, 4 wait for ever
        assert not closed("b")
        began = time.monotonic()
        bus.publish(ends["b"][2])
        until(lambda: closed("b"))
        took = time.monotonic() - began
        [end] = closed("b")
        assert (end.status, bool(end.report)) == ("finished", True)
        assert took < 1
        assert bus.lag("evaluator") == {"scoring-requested": 1}, "A is still being asked"
        [first] = closed("warm")
        reports = [
            Report.model_validate_json((world.store.fetch(e.report) / "report.json").read_bytes()) for e in (first, end)
        ]
        assert reports[0].model_copy(update={"inputs": reports[1].inputs}) == reports[1]


def test_a_cancelled_run_is_closed_with_the_report_on_what_was_scored(
    tmp_path: Path,
    world_of: Any,
    endpoint: Endpoint,
    bus: EmbeddedBus,
    lanes: Any,
    until: Callable[..., None],
    said: Callable[..., list[Any]],
) -> None:
    world = world_of(tmp_path / "world", rows=12)
    with lanes(bus, world.folder, endpoint.url) as running:
        bus.publish(world.made, world.asking("base"))
        until(lambda: any(isinstance(message, ItemScored) for message in said(bus, "run-control")))
        endpoint.hold_after = len(endpoint.asked)
        bus.publish(world.asking("tuned"))
        until(lambda: len(endpoint.asked) > (endpoint.hold_after or 0))
        bus.publish(CancelRequested(run="r1"))
        until(lambda: said(bus, "run-closed"), seconds=3)
        [end] = said(bus, "run-closed")
        assert (end.status, end.reason) == ("cancelled", None)
        report = Report.model_validate_json((world.store.fetch(end.report) / "report.json").read_bytes())
        assert (report.items, report.inputs.cancelled, report.inputs.failed) == (("base",), ("tuned", "broad"), ())
        until(lambda: bus.lag("evaluator") == {"scoring-requested": 0}, seconds=2)
        assert running.kernel.control.book("r1").cancelled == 1
    assert (world.folder / "work" / "evaluator" / "0" / "r1" / "tuned").is_dir()
