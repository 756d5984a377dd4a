"""Proves how one item is asked and scored: once, on every panel, with the same bytes whatever came in between."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from services.evaluator.handlers import Evaluator
from services.evaluator.metrics.bleu import Bleu
from services.evaluator.metrics.classification import Classification
from services.evaluator.metrics.perplexity import Perplexity
from services.evaluator.metrics.reading import named
from services.evaluator.metrics.rouge import RougeL
from services.evaluator.predict import Asker
from services.evaluator.reports import Reports
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import CancelRequested, ItemScored, Message, encode
from understudy.records import Measured, Prediction, read_json, read_jsonl
from understudy.report import Inputs, Scored
from understudy.store import keys
from understudy.testing import drain

Endpoint = Any
World = Any
LABELS = ("negative", "positive")
ROOT = Path(__file__).resolve().parents[4]


def evaluator(world: World, endpoint: Endpoint, concurrency: int = 8) -> Evaluator:
    work = world.folder / "work"
    work.mkdir(exist_ok=True)
    return Evaluator(world.store, world.plans, Asker(endpoint.url, concurrency), work)


@pytest.fixture
def small(tmp_path: Path, world_of: Any) -> World:
    return world_of(tmp_path / "small", rows=12)


def one(messages: list[Message]) -> Any:
    (message,) = messages
    return message


def test_a_served_item_is_asked_and_scored_on_every_panel(small: World, endpoint: Endpoint) -> None:
    request = small.asking("tuned", generation=2, attempt=3)
    *progress, message = evaluator(small, endpoint).evaluate(request)
    assert isinstance(message, ItemScored)
    assert (message.item, message.generation, message.attempt) == ("tuned", 2, 3)
    assert {p.step for p in progress} == {"in-domain", "general", "out-of-sample", "measuring"}
    assert {(p.station, p.item, p.generation, p.attempt) for p in progress} == {("evaluator", "tuned", 2, 3)}
    assert {"rows_per_second", "eta_seconds"} == set(progress[0].figures)
    marks = [p.mark for p in progress]
    assert marks == sorted(marks)
    assert marks[-1] == 12 + 12 + 12 + 2, "rows over all panels, then panels that are measured"
    assert message.answers == small.store.find(keys.answers("r1", "tuned"))
    assert message.measures == small.store.find(keys.measures("r1", "tuned"))
    said, measures = small.store.fetch(message.answers), small.store.fetch(message.measures)
    panels = ("general", "in-domain", "out-of-sample")
    assert sorted(p.name for p in said.iterdir()) == [*(f"answers-{panel}.jsonl" for panel in panels), "answers.json"]
    assert sorted(p.name for p in measures.iterdir()) == [
        *(f"measures-{panel}.npz" for panel in panels),
        "measures.json",
        "training.json",
    ]
    measured = read_json(measures / "measures.json", Measured)
    assert (measured.format, measured.item, measured.model) == ("understudy.measures.v1", "tuned", "tuned")
    assert {name: (panel.n, panel.references) for name, panel in measured.panels.items()} == {
        "in-domain": (12, 12),
        "general": (12, 12),
        "out-of-sample": (12, 0),
    }
    assert set(measured.panels["general"].signatures) == {"perplexity", "bleu", "rouge"}
    answers = list(read_jsonl(said / "answers-in-domain.jsonl", Prediction))
    with np.load(measures / "measures-in-domain.npz", allow_pickle=False) as tables:
        family = Classification(LABELS, ("accuracy",))
        labels = [family.said(row) for row in tables[family.key]]
        likely = Classification(LABELS, ("accuracy",), "likeliest")
        assert tables[likely.key][:, -1].all()
        assert [likely.said(row) for row in tables[likely.key]] == [
            LABELS[int(np.argmax(answer.label_logprobs or ()))] for answer in answers
        ]
    assert labels == [named(answer.text, LABELS) for answer in answers]


def test_answers_that_are_there_are_not_asked_again_and_measures_not_made_again(
    small: World, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every metric of every item and panel is computed once, however often it is asked for and reported."""
    computed: list[str] = []
    for family in (Bleu, Classification, Perplexity, RougeL):
        once = family.statistics

        def counting(self: Any, examples: Any, predictions: Any, once: Any = once) -> Any:
            computed.append(self.key)
            return once(self, examples, predictions)

        monkeypatch.setattr(family, "statistics", counting)
    first = one(drain(evaluator(small, endpoint).evaluate(small.asking("tuned"))))
    keys_of = ["bleu", "classification-likeliest", "classification-strict", "classification-written"]
    keys_of += ["perplexity", "rouge", "rouge"]
    assert sorted(computed) == keys_of
    endpoint.requests.clear()
    small.store.delete(keys.measures("r1", "tuned"))
    assert one(drain(evaluator(small, endpoint).evaluate(small.asking("tuned")))) == first
    assert not endpoint.requests, "the answers were there"
    computed.clear()
    scored = {"tuned": Scored(answers=first.answers, measures=first.measures)}
    inputs = Inputs(run="r1", plan=small.made.plan, datasets=small.made.datasets, scored=scored)
    assert Reports(small.store, small.plans).of(inputs)
    assert not computed, "a report only adds up"


def test_done_before_means_no_work_and_the_same_message(small: World, endpoint: Endpoint) -> None:
    first = one(drain(evaluator(small, endpoint).evaluate(small.asking("base"))))
    endpoint.requests.clear()
    assert list(evaluator(small, endpoint).evaluate(small.asking("base"))) == [first]
    (again,) = evaluator(small, endpoint).evaluate(small.asking("base", generation=2, attempt=2))
    assert again == first.model_copy(update={"generation": 2, "attempt": 2})
    assert not endpoint.requests


def test_an_item_without_panels_gives_empty_measures(tmp_path: Path, world_of: Any) -> None:
    world = world_of(tmp_path / "bare", rows=12, panels=False)
    nobody = SimpleNamespace(url="http://127.0.0.1:9/v1")
    message = one(list(evaluator(world, nobody).evaluate(world.asking("tuned"))))
    folder = world.store.fetch(message.measures)
    assert read_json(folder / "measures.json", Measured).panels == {}
    assert (folder / "training.json").is_file()


KILLED = """
import sys
from pathlib import Path
from services.evaluator.handlers import Evaluator
from services.evaluator.predict import Asker
from understudy.belt.contracts import decode
from understudy.store.plans import Plans
from understudy.testing import local_store
folder = Path(sys.argv[1])
store = local_store(folder)
station = Evaluator(store, Plans(store), Asker(sys.argv[2], 4), folder / "work")
for _ in station.evaluate(decode((folder / "request.json").read_bytes())): pass
"""


def test_killed_half_way_and_delivered_again_gives_the_same_digest(
    tmp_path: Path, world_of: Any, endpoint: Endpoint
) -> None:
    undisturbed = one(
        drain(evaluator(world := world_of(tmp_path / "a", rows=12), endpoint).evaluate(world.asking("base")))
    )
    world = world_of(tmp_path / "b", rows=12)
    station = evaluator(world, endpoint)
    (world.folder / "request.json").write_bytes(encode(world.asking("base")))
    endpoint.requests.clear()
    endpoint.hold_after = 20  # 12 answers of the first panel, and some of the second
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(world.folder), endpoint.url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        deadline = time.monotonic() + 60
        while len(endpoint.asked) < 22 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (answers,) = (world.folder / "work" / "r1" / "base").glob("general.*.jsonl")
    with answers.open("ab") as file:
        file.write(b'{"id":"general-11","text":"cut in the mid')
    endpoint.hold_after = None
    endpoint.requests.clear()
    message = one(drain(station.evaluate(world.asking("base"))))
    assert (message.answers, message.measures) == (undisturbed.answers, undisturbed.measures)
    assert len(endpoint.asked) < 12 + 12 + 12  # of which the first panel and some more were there
    assert not (world.folder / "work" / "r1" / "base").exists()


class Silent:
    """Takes connections, and never says a word."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}/v1"
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self.connections.append(self.server.accept()[0])
            except OSError:
                return

    def open(self) -> int:
        """How many requests are under way: connections that the other side has not closed."""
        count = 0
        for connection in self.connections:
            connection.setblocking(False)
            try:
                while connection.recv(65536):
                    pass
            except BlockingIOError:
                count += 1
            except OSError:
                pass
        return count


def test_cancelled_while_nobody_answers_it_ends_within_two_seconds_and_answers_stay(
    small: World, endpoint: Endpoint, bus: EmbeddedBus, lanes: Any, until: Any, said: Any
) -> None:
    request = small.asking("tuned")
    asked = small.folder / "work" / "evaluator" / "0" / "r1" / "tuned"
    endpoint.hold_after = 5
    bus.publish(request)
    with lanes(bus, small.folder, endpoint.url, groups=["evaluator"]):
        until(lambda: any(p.mark == 5 for p in said(bus, "progress")))
    silent = Silent()
    with lanes(bus, small.folder, silent.url, groups=["evaluator"]):
        until(lambda: silent.open() == 7)  # the questions that are left of the first panel
        began = time.monotonic()
        bus.publish(CancelRequested(run="r1"))
        until(lambda: bus.lag("evaluator")["scoring-requested"] == 0)
        assert time.monotonic() - began < 2
        until(lambda: silent.open() == 0, seconds=0.5)
    silent.server.close()
    assert not said(bus, "run-control", "dead-letters")[1:], "nothing but the wish"
    (answers,) = asked.glob("in-domain.*.jsonl")
    assert len(answers.read_bytes().splitlines()) == 5

    endpoint.hold_after = None
    endpoint.requests.clear()
    bus.publish(request.model_copy(update={"generation": 2}))
    with lanes(bus, small.folder, endpoint.url, groups=["evaluator"]):
        until(lambda: [m for m in said(bus, "run-control") if isinstance(m, ItemScored)])
    first_panel = [body for body in endpoint.asked if body["max_tokens"] == 8]
    assert len(first_panel) == 12 - 5
    assert not asked.exists()
