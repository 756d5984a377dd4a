"""Proves the join and the idempotence of both handlers: one report, the same bytes, whatever came in between."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from services.evaluator.handlers import Evaluator
from services.evaluator.join import newest_report
from services.evaluator.predict import Asker
from understudy.belt.contracts import (
    Message,
    Progress,
    ReportPublished,
    RunFailed,
    VariantFailed,
    VariantScored,
    encode,
)
from understudy.records import Prediction, Scores, read_jsonl
from understudy.testing import drain, local_store

Endpoint = Any
World = Any
VARIANTS = ("base", "tuned", "broad")
ROOT = Path(__file__).resolve().parents[4]


def evaluator(world: World, endpoint: Endpoint, concurrency: int = 8) -> Evaluator:
    work = world.folder / "work"
    work.mkdir(exist_ok=True)
    return Evaluator(store=world.store, asker=Asker(endpoint.url, concurrency), work=work)


def failed(world: World, variant: str, reason: str = "out of memory") -> VariantFailed:
    return VariantFailed(
        run="r1", variant=variant, recipe=world.recipe, datasets=world.datasets, station="trainer", reason=reason
    )


@pytest.fixture
def small(tmp_path: Path, world_of: Any) -> World:
    return world_of(tmp_path / "small", rows=12)


def scored(world: World, endpoint: Endpoint, *variants: str) -> dict[str, VariantScored]:
    station = evaluator(world, endpoint)
    return {variant: one(drain(station.evaluate(world.served(variant)))) for variant in variants}


def one(messages: list[Message]) -> Any:
    (message,) = messages
    return message


def test_a_served_variant_is_asked_and_scored_on_every_panel(small: World, endpoint: Endpoint) -> None:
    station = evaluator(small, endpoint)
    outputs = list(station.evaluate(small.served("tuned")))
    message = outputs[-1]
    assert isinstance(message, VariantScored)
    assert {o.step for o in outputs if isinstance(o, Progress)} == {"in-domain", "general", "out-of-sample"}
    folder = small.store.fetch(message.scores)
    assert sorted(p.name for p in folder.iterdir()) == [
        "predictions-general.jsonl",
        "predictions-in-domain.jsonl",
        "predictions-out-of-sample.jsonl",
        "scores.json",
        "training.json",
    ]
    scores = Scores.model_validate_json((folder / "scores.json").read_bytes())
    found = [(score.panel, score.metric) for score in scores.scores]
    assert found == [
        *(("in-domain", metric) for metric in ("accuracy", "precision", "recall", "f1")),
        *(("general", metric) for metric in ("perplexity", "bleu", "rougeL")),
    ]  # nothing to hold out-of-sample answers against
    assert all(score.low <= score.value <= score.high for score in scores.scores)
    labels = [p.label for p in read_jsonl(folder / "predictions-in-domain.jsonl", Prediction)]
    assert set(labels) <= {"negative", "positive", None}
    assert scores.parse_failures == {"in-domain": labels.count(None)}


def test_done_before_means_no_work_and_the_same_message(small: World, endpoint: Endpoint) -> None:
    first = scored(small, endpoint, "base")["base"]
    endpoint.requests.clear()
    again = list(evaluator(small, endpoint).evaluate(small.served("base")))
    assert again == [first]
    assert not endpoint.requests


KILLED = """
import sys
from pathlib import Path
from services.evaluator.handlers import Evaluator
from services.evaluator.join import newest_report
from services.evaluator.predict import Asker
from understudy.belt.contracts import decode
from understudy.testing import local_store
folder = Path(sys.argv[1])
station = Evaluator(local_store(folder), Asker(sys.argv[2], 4), folder / "work")
for _ in station.evaluate(decode((folder / "served.json").read_bytes())): pass
"""


def test_killed_half_way_and_delivered_again_gives_the_same_digest(
    tmp_path: Path, world_of: Any, endpoint: Endpoint
) -> None:
    undisturbed = one(
        drain(evaluator(world := world_of(tmp_path / "a", rows=12), endpoint).evaluate(world.served("base")))
    )
    world = world_of(tmp_path / "b", rows=12)
    station = evaluator(world, endpoint)
    (world.folder / "served.json").write_bytes(encode(world.served("base")))
    endpoint.requests.clear()
    endpoint.hold_after = 20  # 12 answers of the first panel, and some of the second
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(world.folder), endpoint.url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        deadline = time.monotonic() + 60
        while len(endpoint.requests) < 22 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with (world.folder / "work" / "r1" / "base" / "general.jsonl").open("ab") as file:
        file.write(b'{"id":"general-11","text":"cut in the mid')
    endpoint.hold_after = None
    endpoint.requests.clear()
    message = one(drain(station.evaluate(world.served("base"))))
    assert message.scores.sha256 == undisturbed.scores.sha256
    assert len(endpoint.requests) < 12 + 24 + 12  # of which the first panel and some more were there
    assert not (world.folder / "work" / "r1" / "base").exists()


@pytest.fixture(scope="module")
def answers(
    tmp_path_factory: pytest.TempPathFactory, world_of: Any, endpoint_for_module: Endpoint
) -> tuple[World, dict[str, VariantScored]]:
    world = world_of(tmp_path_factory.mktemp("answers"), rows=12)
    return world, scored(world, endpoint_for_module, *VARIANTS)


@pytest.mark.parametrize(
    ("order", "lost"),
    [
        *((order, None) for order in itertools.permutations(VARIANTS)),
        *((order, lost) for lost in ("tuned", "base") for order in (VARIANTS, VARIANTS[::-1])),
    ],
)
def test_any_order_of_ends_gives_one_report_with_the_last(
    answers: tuple[World, dict[str, VariantScored]], tmp_path: Path, order: tuple[str, ...], lost: str | None
) -> None:
    world, messages = answers
    store = _forgetful_copy(world, tmp_path)
    station = Evaluator(store=store, asker=Asker("http://127.0.0.1:9/v1", 1), work=tmp_path)
    if lost:
        store.drop(f"runs/r1/scores/{lost}")
    ends = [drain(station.finish(failed(world, v) if v == lost else messages[v])) for v in order]
    assert ends[:-1] == [[], []]
    report = one(ends[-1])
    assert isinstance(report, ReportPublished)
    assert report.failed == ({lost: "out of memory"} if lost else {})
    assert _digest_of.setdefault(lost, report.report.sha256) == report.report.sha256
    again = drain(station.finish(failed(world, order[-1]) if order[-1] == lost else messages[order[-1]]))
    assert again == [report]  # delivered again after a crash between publishing and committing


_digest_of: dict[str | None, str] = {}
"""Which variant was lost -> digest of the report; the same for every order."""


@pytest.mark.parametrize("order", list(itertools.permutations(("base", "broad", "tuned", "tuned failed")))[::3])
def test_a_variant_that_came_through_after_all_leaves_the_report_it_would_have_had(
    answers: tuple[World, dict[str, VariantScored]], tmp_path: Path, order: tuple[str, ...]
) -> None:
    """Whenever its failure and its score arrive: in the end no trace of the failure, and the bytes of an undisturbed run."""
    world, messages = answers
    store = _forgetful_copy(world, tmp_path)
    station = Evaluator(store=store, asker=Asker("http://127.0.0.1:9/v1", 1), work=tmp_path)
    ends = {**messages, "tuned failed": failed(world, "tuned")}
    words = [drain(station.finish(ends[name])) for name in order]
    report = one(words[-1])
    assert isinstance(report, ReportPublished)
    assert report.failed == {}
    assert _digest_of.setdefault(None, report.report.sha256) == report.report.sha256
    assert newest_report(store, "r1") == report.report
    for word in itertools.chain(*words[:-1]):
        assert (word.failed == {}) == (word.report == report.report)
        assert store.fetch(word.report).is_dir(), "an earlier report is kept"
    assert drain(station.finish(ends[order[-1]])) == [report]


def test_another_reason_is_another_report_and_the_same_reason_is_the_same(
    answers: tuple[World, dict[str, VariantScored]], tmp_path: Path
) -> None:
    world, messages = answers
    store = _forgetful_copy(world, tmp_path)
    station = Evaluator(store=store, asker=Asker("http://127.0.0.1:9/v1", 1), work=tmp_path)
    drain(station.finish(messages["base"]))
    drain(station.finish(messages["broad"]))
    reports = []
    for reason in ("no base", "no base", "no data", "no base"):
        report = one(drain(station.finish(failed(world, "tuned", reason))))
        assert report.failed == {"tuned": reason}
        assert json.loads((store.fetch(report.report) / "report.json").read_text())["failed"] == report.failed
        assert newest_report(store, "r1") == report.report
        reports.append(report.report)
    assert reports[0] == reports[1] == reports[3] != reports[2]


def test_without_any_scores_the_run_has_failed(small: World, endpoint: Endpoint) -> None:
    station = evaluator(small, endpoint)
    assert drain(station.finish(failed(small, "tuned"))) == []
    assert drain(station.finish(failed(small, "base", "no such model"))) == []
    end = one(drain(station.finish(failed(small, "broad"))))
    assert isinstance(end, RunFailed)
    assert "no such model" in end.reason
    assert end.failed == {"base": "no such model", "tuned": "out of memory", "broad": "out of memory"}
    assert small.store.find("runs/r1/reports") is None


def test_the_report_has_what_the_command_line_shows(
    answers: tuple[World, dict[str, VariantScored]], tmp_path: Path
) -> None:
    world, messages = answers
    store = _forgetful_copy(world, tmp_path)
    station = Evaluator(store=store, asker=Asker("http://127.0.0.1:9/v1", 1), work=tmp_path)
    outputs = [message for v in VARIANTS for message in station.finish(messages[v])]
    assert any(isinstance(o, Progress) and o.step == "report" for o in outputs)
    report = json.loads((store.fetch(outputs[-1].report) / "report.json").read_text())
    assert report["run"] == "r1"
    assert report["variants"] == list(VARIANTS)
    assert [panel["name"] for panel in report["panels"]] == list(world.recipe.evaluation.panels)
    first = report["panels"][0]["metrics"][0]
    assert (first["metric"], first["n"], first["higher_is_better"]) == ("accuracy", 12, True)
    assert first["cells"]["base"]["delta"] is None
    cell = first["cells"]["tuned"]
    assert cell["delta"] == pytest.approx(cell["value"] - first["cells"]["base"]["value"], abs=1e-6)
    assert cell["delta_low"] <= cell["delta"] <= cell["delta_high"]
    assert cell["verdict"] in ("better", "worse", "no clear difference")
    assert report["panels"][2]["not_computed"] == {"rougeL": "no question has a reference answer"}
    assert report["training"]["tuned"]["steps"] == 300
    assert report["datasets"]["remarks"]["rejected"] == 7
    scores = Scores.model_validate_json((store.fetch(messages["tuned"].scores) / "scores.json").read_bytes())
    assert {(s.value, s.low, s.high) for s in scores.scores if s.metric == "accuracy"} == {
        (cell["value"], cell["low"], cell["high"])
    }


def _forgetful_copy(world: World, folder: Path) -> Any:
    """A store with the same artifacts, where nothing was joined yet."""
    store = local_store(folder)
    for key in ("datasets", "scores"):
        for ref in world.store.keys(f"runs/r1/{key}"):
            store.put(ref, world.store.fetch(world.store.find(ref)))
    return store
