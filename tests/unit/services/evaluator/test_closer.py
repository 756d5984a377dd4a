"""Proves the closer on a real bus, with a real loop and reader: six items of a run ride at once, the next with each end, and a
run is closed when nothing of it is left, whoever was killed or cancelled meanwhile."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.evaluator.closer import Closer
from understudy.belt.bus import Record
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import (
    CancelRequested,
    DatasetsMade,
    DeadLetter,
    ItemFailed,
    ItemScored,
    Message,
    ReportRequested,
    RunDeleted,
    ScoringRequested,
    ServingRequested,
    TrainingRequested,
    decode,
    encode,
)
from understudy.belt.folds.histories import Histories
from understudy.belt.folds.reader import Reader
from understudy.plan import Item, Plan, PlannedBase
from understudy.recipe import Training
from understudy.store.artifacts import FsspecArtifactStore
from understudy.store.plans import Plans, put_datasets, put_plan
from understudy.terms import Artifact
from understudy.testing import local_store

A = Artifact(sha256="0" * 64)
NAMES = ("base", *(f"v{number:02}" for number in range(1, 18)), "other", "served")
TRAINED = Item(name="v", stages=({"d": 1.0},), training=Training(), needs={"trainer": ("nf4",)})
PLAN = Plan(
    name="twenty",
    bases=(PlannedBase(name="one", reference="one"), PlannedBase(name="two", reference="two")),
    items=(
        Item(name="base"),
        *(TRAINED.model_copy(update={"name": name, "base": number % 2}) for number, name in enumerate(NAMES[1:18])),
        Item(name="other", base=1),
        Item(name="served", model="ft:of-yesterday"),
    ),
)


@pytest.fixture
def store(tmp_path: Path) -> FsspecArtifactStore:
    return local_store(tmp_path)


class Run:
    """What is said about a run, and what came of it."""

    def __init__(self, bus: EmbeddedBus, store: FsspecArtifactStore, name: str, until: Any, said: Any) -> None:
        self.bus, self.name, self.until, self.said = bus, name, until, said
        self.plan, self.datasets = put_plan(store, name, PLAN), put_datasets(store, name, {})
        self.gone: set[str] = set()

    def made(self, generation: int = 1, attempt: int = 1) -> None:
        self.bus.publish(
            DatasetsMade(run=self.name, generation=generation, attempt=attempt, plan=self.plan, datasets=self.datasets)
        )

    def scored(self, *items: str, generation: int = 1, attempt: int = 1) -> None:
        about = {"run": self.name, "generation": generation, "attempt": attempt}
        self.bus.publish(*(ItemScored(**about, item=item, answers=A, measures=A) for item in items))

    def failed(self, *items: str, generation: int = 1) -> None:
        for item in items:
            reason = f"{item} ran out of memory"
            self.bus.publish(
                ItemFailed(run=self.name, generation=generation, item=item, station="trainer", reason=reason)
            )

    def cancel(self, item: str | None = None, generation: int = 1) -> None:
        self.bus.publish(CancelRequested(run=self.name, item=item, generation=generation))

    def requests(self) -> list[Any]:
        topics = ("training-requested", "serving-requested", "scoring-requested")
        return [message for message in self.said(self.bus, *topics) if message.run == self.name]

    def riding(self, generation: int = 1) -> list[str]:
        """Items that were let go, in the order of their turns."""
        return [message.item for message in self.requests() if message.generation == generation]

    def reports(self) -> list[ReportRequested]:
        return [message for message in self.said(self.bus, "report-requested") if message.run == self.name]

    def settle(self) -> None:
        """Wait until the closer has done all it was told."""
        self.until(lambda: self.bus.lag("closer") == {"run-control": 0})


@pytest.fixture
def run(bus: EmbeddedBus, store: FsspecArtifactStore, until: Any, said: Any) -> Callable[[str], Run]:
    return lambda name: Run(bus, store, name, until, said)


@pytest.fixture
def closer(bus: EmbeddedBus, tmp_path: Path, lanes: Any) -> Iterator[Any]:
    with lanes(bus, tmp_path, groups=["closer"]) as running:
        yield running


@pytest.mark.usefixtures("closer")
def test_six_ride_at_once_and_the_next_with_each_end(run: Callable[[str], Run]) -> None:
    r = run("r")
    r.made()
    r.settle()
    assert r.riding() == list(NAMES[:6])
    ended: list[str] = []
    dice = random.Random(5)
    while len(ended) < 20:
        item = dice.choice([name for name in r.riding() if name not in ended])
        assert not r.reports()
        (r.failed if dice.random() < 0.3 else r.scored)(item)
        ended.append(item)
        r.settle()
        assert r.riding() == list(NAMES[: min(20, 6 + len(ended))])
    [report] = r.reports()
    assert (report.status, report.generation, report.plan, report.datasets) == ("finished", 1, r.plan, r.datasets)


@pytest.mark.usefixtures("closer")
def test_each_item_goes_to_its_first_station_with_all_that_it_needs_there(run: Callable[[str], Run]) -> None:
    r = run("r")
    r.made(generation=3)
    r.settle()
    r.scored(*NAMES[:18], generation=3)
    r.settle()
    requests = {message.item: message for message in r.requests()}
    about = {"run": "r", "generation": 3, "plan": r.plan, "datasets": r.datasets}
    assert requests["base"] == ServingRequested(**about, item="base", index=0)
    assert requests["v02"] == TrainingRequested(**about, item="v02", index=2, base=1, needs=("nf4",))
    assert requests["other"] == ServingRequested(**about, item="other", index=18, base=1)
    assert requests["served"] == ScoringRequested(**about, item="served", index=19, model="ft:of-yesterday")


@pytest.mark.usefixtures("closer")
def test_runs_take_turns_of_their_own(run: Callable[[str], Run]) -> None:
    a, b = run("a"), run("b")
    a.made()
    b.made()
    a.scored("base")
    b.failed("v01", "v02")
    b.settle()
    assert (a.riding(), b.riding()) == (list(NAMES[:7]), list(NAMES[:8]))


@pytest.mark.usefixtures("closer")
def test_a_cancelled_run_lets_nothing_more_go_and_a_late_end_is_reported_anew(run: Callable[[str], Run]) -> None:
    r = run("r")
    r.made()
    r.scored("base")
    r.cancel()
    r.settle()
    [first] = r.reports()
    assert (first.status, first.reason, first.generation) == ("cancelled", None, 1)
    r.scored("v01")
    r.failed("v02")
    r.settle()
    assert r.riding() == list(NAMES[:7])
    assert [report.status for report in r.reports()] == ["cancelled"] * 3
    assert len({report.outcome for report in r.reports()}) == 3
    r.made(generation=2)
    r.settle()
    assert r.riding(generation=2) == ["v02", *NAMES[3:8]], "what had not come through"
    r.scored(*NAMES[2:], generation=2)
    r.settle()
    assert r.riding(generation=2) == list(NAMES[2:])
    assert (r.reports()[-1].status, r.reports()[-1].generation) == ("finished", 2)
    assert len(r.reports()) == 4


@pytest.mark.usefixtures("closer")
def test_a_run_cancelled_before_its_datasets_are_made_is_closed_without_a_plan(run: Callable[[str], Run]) -> None:
    r = run("r")
    r.cancel()
    r.settle()
    [report] = r.reports()
    assert (report.status, report.plan, report.datasets, report.generation) == ("cancelled", None, None, 1)
    r.made()  # was under way
    r.settle()
    assert (r.riding(), len(r.reports())) == ([], 1)


@pytest.mark.usefixtures("closer")
def test_one_item_is_cancelled_while_it_rides_and_one_while_it_waits(run: Callable[[str], Run]) -> None:
    r = run("r")
    r.made()
    r.cancel("v01")
    r.cancel("v10")
    r.settle()
    assert r.riding() == list(NAMES[:7])
    r.scored(*(name for name in NAMES if name not in ("v01", "v10")))
    r.settle()
    assert r.riding() == [name for name in NAMES if name != "v10"]
    [report] = r.reports()
    assert report.status == "finished"


@pytest.mark.usefixtures("closer")
def test_what_a_run_came_to(run: Callable[[str], Run]) -> None:
    lost, undone, whole = run("lost"), run("undone"), run("whole")
    for each in (lost, undone, whole):
        each.made()
    lost.failed(*NAMES)
    for name in NAMES:
        undone.cancel(name)
    whole.scored(*NAMES)
    whole.cancel()  # too late
    whole.settle()
    [report] = lost.reports()
    assert report.status == "failed"
    assert report.reason
    assert report.reason.startswith("No item came through. base: base ran out of memory; v01: v01 ran out of memory; ")
    assert [report.status for report in undone.reports()] == ["cancelled"]
    assert {report.status for report in whole.reports()} == {"finished"}


@pytest.mark.usefixtures("closer")
def test_a_second_try_that_comes_through_gives_another_report(run: Callable[[str], Run]) -> None:
    r = run("r")
    r.made()
    r.failed("v01")
    r.scored(*(name for name in NAMES if name != "v01"))
    r.settle()
    [first] = r.reports()
    r.scored("v01", attempt=2)
    r.settle()
    second = r.reports()[-1]
    assert second.outcome != first.outcome
    assert Counter(r.riding()) == Counter(NAMES)
    r.scored("v01")  # a double of what was not heard before
    r.scored("v01", attempt=2)
    r.settle()
    assert {report.outcome for report in r.reports()} == {first.outcome, second.outcome}


@pytest.mark.usefixtures("closer")
def test_a_message_that_an_operator_has_tried_again_says_all_there_is_to_say(
    run: Callable[[str], Run], bus: EmbeddedBus
) -> None:
    """Its first handling died, so nobody knows what was lost."""
    r = run("r")

    def given_up(*messages: Message) -> None:
        for message in messages:
            dead = DeadLetter(run="r", topic="run-control", station="evaluator", reason="a bug", attempts=5, value="")
            bus.publish(dead.model_copy(update={"value": encode(message).decode()}))

    made = DatasetsMade(run="r", plan=r.plan, datasets=r.datasets)
    lost = ItemFailed(run="r", item="v01", station="trainer", reason="no memory")
    bus.publish(made)
    r.scored("base")
    given_up(made)
    bus.publish(made.again())
    r.settle()
    assert r.riding() == [*NAMES[:7], *NAMES[1:7]]
    bus.publish(lost, lost.again())
    r.settle()
    assert r.riding() == [*NAMES[:7], *NAMES[1:7], NAMES[7]], "an item that fails twice for one reason doubles nothing"
    given_up(lost.again())
    bus.publish(lost.again().again())
    r.settle()
    assert r.riding()[-6:] == [*NAMES[2:8]]
    r.cancel()
    given_up(CancelRequested(run="r"))
    bus.publish(CancelRequested(run="r", attempt=2))
    r.settle()
    [first, again] = r.reports()
    assert again == first.model_copy(update={"until": again.until})


@pytest.mark.usefixtures("closer")
def test_a_deleted_run_is_not_heard_of_until_it_is_asked_for_again(run: Callable[[str], Run], bus: EmbeddedBus) -> None:
    r = run("r")
    r.made()
    r.settle()
    bus.publish(RunDeleted(run="r"))
    r.scored("base")
    r.cancel()
    r.settle()
    assert (r.riding(), r.reports()) == (list(NAMES[:6]), [])
    r.made(generation=2)
    r.settle()
    assert r.riding(generation=2) == list(NAMES[:6])


def take(bus: EmbeddedBus, closer: Closer) -> tuple[Any, Record, list[Message]] | None:
    """One message taken and handled, as by a process that has not committed yet."""
    subscription = bus.subscribe("closer", ["run-control"], "closer-0")
    record = subscription.poll(0)
    if record is None:
        return None
    message = decode(record.value)
    return subscription, record, list(closer.lane().handlers[type(message)](message, record))


@pytest.mark.parametrize("seed", range(3))
def test_killed_between_taking_and_committing_the_next_process_says_the_same(
    bus: EmbeddedBus, store: FsspecArtifactStore, run: Callable[[str], Run], tmp_path: Path, lanes: Any, seed: int
) -> None:
    """One that has just started, one that has seen all of the run, and one that is handed the same message twice."""
    r = run("r")
    dice = random.Random(seed)
    r.made()
    ended = dice.sample(NAMES, 12)
    for name in ended:
        (r.failed if name < "v05" else r.scored)(name)
    r.cancel("v17")
    r.cancel()
    r.made(generation=2)
    for name in dice.sample(NAMES, 20):
        if name not in ended or name < "v05":
            r.scored(name, generation=2)
    with lanes(bus, tmp_path, groups=[]) as living:
        living.kernel.reader.caught_up.wait()
        history: list[tuple[Record, list[Message]]] = []
        old_histories = Histories()
        old = Closer(Plans(store), old_histories, Reader(bus, (old_histories,)).load())
        while True:
            histories = Histories()
            new = Closer(Plans(store), histories, Reader(bus, (histories,)).load())
            killed = take(bus, new)
            if killed is None:
                break
            survivor, twice = take(bus, old), take(bus, new)
            assert survivor
            assert twice
            subscription, record, outputs = twice
            assert outputs == survivor[2] == killed[2]
            subscription.commit(record, outputs)
            history.append((record, outputs))
        for record, outputs in dice.sample(history, 5):  # a position of the group that was set back
            message = decode(record.value)
            assert list(old.turn(message, record)) == outputs
    for generation in (1, 2):
        assert set(Counter(r.riding(generation)).values()) == {1}
    [cancelled, finished] = r.reports()
    assert (cancelled.status, finished.status) == ("cancelled", "finished")


def test_two_replicas_give_each_turn_once(
    bus: EmbeddedBus, run: Callable[[str], Run], tmp_path: Path, lanes: Any
) -> None:
    runs = [run(f"r{number}") for number in range(4)]
    with (
        lanes(bus, tmp_path / "a", groups=["closer"], member="a", artifacts=(tmp_path / "artifacts").as_uri()),
        lanes(bus, tmp_path / "b", groups=["closer"], member="b", artifacts=(tmp_path / "artifacts").as_uri()),
    ):
        for r in runs:
            r.made()
        for name in NAMES:
            for r in runs:
                r.scored(name)
        runs[0].settle()
    for r in runs:
        assert Counter(r.riding()) == Counter(NAMES)
        assert [report.status for report in r.reports()] == ["finished"]


@pytest.mark.usefixtures("closer")
def test_a_deletion_that_is_heard_after_the_next_generation_began_opens_what_it_forgot(
    run: Callable[[str], Run], bus: EmbeddedBus
) -> None:
    """Two doors, one of them late: what came through before is forgotten, and has its turn again."""
    r = run("r")
    r.made()
    r.scored("base")
    r.cancel()
    r.made(generation=2)
    r.settle()
    before = r.riding(generation=2)
    assert "base" not in before
    bus.publish(RunDeleted(run="r"))
    r.settle()
    assert "base" in r.riding(generation=2)
