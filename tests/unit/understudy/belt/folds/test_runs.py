"""What users see is a fold over the log: the same after a restart, whatever the order between topics and however often
failed variants were tried."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from understudy.belt import contracts as c
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.folds.runs import Ledger, RunState
from understudy.belt.topics import topic_of
from understudy.recipe import parse

RECIPE = parse({"datasets": {"d": {"source": "d.csv"}}, "variants": {"v": {"train": "d"}}}, "r")
ARTIFACT = c.Artifact(uri="file:///a", sha256="0")
BELT = {"run": "r", "variant": "v", "recipe": RECIPE, "datasets": {}}
STORY: list[c.Message] = [
    c.RunRequested(run="r", recipe=RECIPE),
    c.TrainingRequested(**BELT),
    c.ModelServed(**BELT, model="ft:v", adapter=ARTIFACT),
    c.VariantScored(**BELT, scores=ARTIFACT),
    c.ReportPublished(run="r", report=ARTIFACT),
]


def ledger(path: Path, messages: list[c.Message]) -> Ledger:
    bus = EmbeddedBus(path)
    for message in messages:
        bus.publish(message)
    return Ledger(bus).load()


def test_the_stages_of_a_variant(tmp_path: Path) -> None:
    stages = []
    for count in range(1, len(STORY) + 1):
        state = ledger(tmp_path / f"{count}.sqlite", STORY[:count]).run("r")
        assert state
        stages.append((state.status, state.variants["v"].stage))
    assert stages == [
        ("queued", "waiting"),
        ("running", "training"),
        ("running", "evaluating"),
        ("running", "scored"),
        ("finished", "scored"),
    ]


def test_any_order_and_any_repetition_give_the_same_state(tmp_path: Path) -> None:
    expected = ledger(tmp_path / "0.sqlite", STORY).run("r")
    assert expected
    for number, order in enumerate(itertools.permutations(STORY), start=1):
        if number % 7:
            continue
        state = ledger(tmp_path / f"{number}.sqlite", [*order, *order[:2]]).run("r")
        assert state
        assert state.model_copy(update={"created_at": 0}) == expected.model_copy(update={"created_at": 0})


def test_failures_keep_their_reasons(tmp_path: Path) -> None:
    failed = c.VariantFailed(**BELT, station="trainer", reason="too long")
    end = c.RunFailed(run="r", station="evaluator", reason="none left")
    state = ledger(tmp_path / "bus.sqlite", [*STORY[:2], failed, end]).run("r")
    assert state
    assert (state.variants["v"].stage, state.variants["v"].reason) == ("failed", "too long")
    assert (state.status, state.reason) == ("failed", "none left")


def test_a_second_try_is_under_way_until_a_report_knows_of_it(tmp_path: Path) -> None:
    """Failed, replayed, trained, served, scored, reported: `understudy watch` follows each step, and ends with the new report."""
    first, second = ARTIFACT, c.Artifact(uri="file:///b", sha256="1")
    story = [
        STORY[0],
        STORY[1],
        c.VariantFailed(**BELT, station="trainer", reason="no base"),
        c.ReportPublished(run="r", report=first, failed={"v": "no base"}),
        STORY[1],
        c.ModelTrained(**BELT, adapter=ARTIFACT),
        STORY[2],
        STORY[3],
        c.ReportPublished(run="r", report=second),
    ]
    seen = []
    for count in range(3, len(story) + 1):
        state = ledger(tmp_path / f"{count}.sqlite", story[:count]).run("r")
        assert state
        v = state.variants["v"]
        seen.append((state.status, v.stage, v.reason, state.report and state.report.sha256))
    assert seen == [
        ("running", "failed", "no base", None),
        ("finished", "failed", "no base", "0"),
        ("running", "training", None, "0"),
        ("running", "serving", None, "0"),
        ("running", "evaluating", None, "0"),
        ("running", "scored", None, "0"),
        ("finished", "scored", None, "1"),
    ]


def test_a_run_whose_request_died_runs_again(tmp_path: Path) -> None:
    """datagen could not make the data: failed at once. Replayed: running, not failed."""
    story = [STORY[0], c.RunFailed(run="r", station="datagen", reason="no table"), STORY[0]]
    states = [ledger(tmp_path / f"{n}.sqlite", story[:n]).run("r") for n in (2, 3)]
    assert [(s.status, s.reason) for s in states if s] == [("failed", "no table"), ("running", None)]


VARIANTS = ("base", "v", "w")
TWO = parse(
    {"datasets": {"d": {"source": "d.csv"}}, "variants": {name: {"train": "d"} for name in VARIANTS[1:]}}, "two"
)


class Life:
    """A run's whole life in the order of its messages: stations that fail now and then, an operator who replays what died."""

    def __init__(self, dice: Random) -> None:
        self.dice = dice
        self.queues: dict[str, list[c.Message]] = defaultdict(list)
        self.dead: list[c.Message] = []
        self.scored: set[str] = set()
        self.failed: dict[str, str] = {}

    def messages(self) -> Iterator[c.Message]:
        """Until nothing waits any more, and the operator has given up."""
        yield self._put(c.RunRequested(run="r", recipe=TWO))
        replays = self.dice.randrange(8)
        while any(self.queues.values()) or (self.dead and replays):
            if waiting := [queue for queue in self.queues.values() if queue]:
                for output in self._work(self.dice.choice(waiting).pop(0)):
                    yield self._put(output)
            if self.dead and replays and (not waiting or self.dice.random() < 0.2):
                replays -= 1
                yield self._put(self.dead.pop(self.dice.randrange(len(self.dead))))

    def retried(self) -> bool:
        """Whether a variant that failed before is on the belt, or its new end not yet in a report."""
        waiting = [message for queue in self.queues.values() for message in queue]
        ends = any(isinstance(m, c.VariantScored | c.VariantFailed) for m in waiting)
        return ends or any(isinstance(m, c.OnBelt) and m.variant in self.failed for m in waiting)

    def _put(self, message: c.Message) -> c.Message:
        if not isinstance(message, c.ReportPublished | c.RunFailed):
            self.queues[topic_of(message).name].append(message)
        return message

    def _work(self, message: c.Message) -> list[c.Message]:
        if isinstance(message, c.VariantScored | c.VariantFailed):
            return self._join(message)
        station: c.Station = STATION[type(message)]
        if self.dice.random() < 0.3:
            self.dead.append(message)
            return [c.failure(message, station, f"{self.dice.random()}")]
        if isinstance(message, c.RunRequested):
            return [c.TrainingRequested(run="r", variant=v, recipe=TWO, datasets={}) for v in VARIANTS]
        assert isinstance(message, c.OnBelt)
        if isinstance(message, c.TrainingRequested):
            return [c.ModelTrained.following(message, adapter=None)]
        if isinstance(message, c.ModelTrained):
            return [c.ModelServed.following(message, model=message.variant, adapter=None)]
        return [c.VariantScored(run="r", variant=message.variant, recipe=TWO, datasets={}, scores=ARTIFACT)]

    def _join(self, end: c.VariantScored | c.VariantFailed) -> list[c.Message]:
        if isinstance(end, c.VariantFailed):
            self.failed[end.variant] = end.reason
        else:
            self.scored.add(end.variant)
            self.failed.pop(end.variant, None)
        if len(self.scored) + len(self.failed) < len(VARIANTS):
            return []
        if self.scored:
            return [c.ReportPublished(run="r", report=self.report(), failed=dict(self.failed))]
        return [c.RunFailed(run="r", station="evaluator", reason="none", failed=dict(self.failed))]

    def report(self) -> c.Artifact:
        return c.Artifact(uri="file:///r", sha256=f"{sorted(self.scored)} {sorted(self.failed.items())}")


STATION: dict[type[c.Message], c.Station] = {
    c.RunRequested: "datagen",
    c.TrainingRequested: "trainer",
    c.ModelTrained: "inference",
    c.ModelServed: "evaluator",
}


def fold(messages: list[c.Message]) -> RunState:
    book = Ledger(bus=None)  # type: ignore[arg-type]
    for message in messages:
        book._read(c.encode(message), 0)
    state = book.run("r")
    assert state
    return state


def shuffled(messages: list[c.Message], dice: Random) -> list[c.Message]:
    """As a replay may give them: in order within a topic, in any order between topics."""
    queues: dict[str, list[c.Message]] = defaultdict(list)
    for message in messages:
        queues[topic_of(message).name].append(message)
    order = [topic_of(message).name for message in messages]
    dice.shuffle(order)
    return [queues[topic].pop(0) for topic in order]


@pytest.mark.parametrize("seed", range(150))
def test_any_life_is_seen_as_it_was(seed: int) -> None:
    """While a second try is under way the run is not over; when nothing moves any more it is, with the newest report, and
    a service that reads the same log in another order sees the same."""
    dice = Random(seed)
    life, messages = Life(dice), []
    for message in life.messages():
        messages.append(message)
        state = fold(messages)
        if state.status in ("finished", "failed"):
            assert not life.retried()
        if state.status == "finished":
            assert state.report == life.report()
    assert state.status == ("finished" if life.scored else "failed")
    assert {n for n, v in state.variants.items() if v.stage == "scored"} == life.scored
    assert {n: v.reason for n, v in state.variants.items() if v.stage == "failed"} == life.failed
    for _ in range(5):
        assert fold(shuffled(messages, dice)) == state


def test_served_models_are_listed_once(tmp_path: Path) -> None:
    assert [m.model for m in ledger(tmp_path / "bus.sqlite", [*STORY, STORY[2]]).served()] == ["ft:v"]
