"""What users see is a fold over the log: the same after a restart, whatever the order between topics and however often
something was published, and however often items were cancelled, taken up again and tried again."""

from __future__ import annotations

from random import Random

import life
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.belt import contracts as c
from understudy.belt import turns
from understudy.belt.folds.control import Control
from understudy.belt.folds.runs import Runs
from understudy.belt.folds.served import Models
from understudy.belt.folds.views import OVER

A = life.A
ABOUT = {"run": "r"}
REQUEST = c.RunRequested(run="r", plan=A, name="r", bases=("seedling",), items=2)
PLANNED = [c.ItemPlanned(run="r", item=name, index=index, base="seedling") for index, name in enumerate(("base", "v"))]
BELT = {"run": "r", "item": "v", "index": 1, "plan": A, "datasets": A}
MADE = c.DatasetsMade(run="r", plan=A, datasets=A)
TRAIN = c.TrainingRequested(**BELT)
SERVE = c.ServingRequested(**BELT, adapter=A)
SCORE = c.ScoringRequested(**BELT, model="ft:v", adapter=A)
BASE_SCORED = c.ItemScored(run="r", item="base", answers=A, measures=A)


def folded(messages: list[c.Message]) -> tuple[Runs, Control]:
    control = Control()
    runs = Runs(control)
    life.feed(life.records(messages), control, runs)
    return runs, control


def state(messages: list[c.Message], run: str = "r"):
    found = folded(messages)[0].get(run)
    assert found
    return found


def closing(messages: list[c.Message], status: str = "finished", report: c.Artifact | None = A) -> c.RunClosed:
    """What the reporter says once these have been read."""
    book = folded(messages)[1].book("r")
    return c.RunClosed(run="r", generation=book.reached, status=status, outcome=turns.outcome(book), report=report)


def test_the_stages_of_an_item() -> None:
    story = [
        *PLANNED,
        REQUEST,
        MADE,
        TRAIN,
        SERVE,
        SCORE,
        BASE_SCORED,
        c.ItemScored(run="r", item="v", answers=A, measures=A),
    ]
    story.append(closing(story))
    stages = [(s.status, s.items["v"].stage) for n in range(3, len(story) + 1) if (s := state(story[:n]))]
    assert stages == [
        ("queued", "waiting"),
        ("running", "waiting"),
        ("running", "training"),
        ("running", "serving"),
        ("running", "evaluating"),
        ("running", "evaluating"),
        ("running", "scored"),
        ("finished", "scored"),
    ]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_any_order_between_topics_and_doubles_give_the_same(seed: int, order: int) -> None:
    lie = life.records(life.Life(Random(seed)).messages)
    seen = []
    for reading in (lie, life.shuffled(lie, Random(order))):
        control = Control()
        runs, models = Runs(control), Models()
        life.feed(reading, control, runs, models)
        served = {s.message.model: (s.message.generation, s.created) for s in models.all()}
        page = runs.page(None, 10)
        assert page
        seen.append((control.book("r"), runs.get("r"), served, page, [run.id for run in runs.open()]))
    assert seen[0] == seen[1]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_a_run_is_over_exactly_when_nothing_of_it_can_move(seed: int) -> None:
    """At every moment of its life; and then every item has come to something."""
    told = life.Life(Random(seed))
    control = Control()
    runs = Runs(control)
    for message, record in life.records(told.messages):
        life.feed([(message, record)], control, runs)
        seen = runs.get("r")
        if seen and seen.status in OVER and seen.reason != "no table":
            assert all(item.stage in ("scored", "served", "failed", "cancelled") for item in seen.items.values()), seen
        if seen:
            assert ("r" in {run.id for run in runs.open()}) == (seen.status not in OVER)


def test_failures_keep_their_reasons() -> None:
    failed = c.ItemFailed(run="r", item="v", station="trainer", reason="too long")
    story = [*PLANNED, REQUEST, MADE, TRAIN, failed]
    seen = state([*story, BASE_SCORED, closing([*story, BASE_SCORED])])
    assert (seen.items["v"].stage, seen.items["v"].reason) == ("failed", "too long")
    assert (seen.status, seen.report) == ("finished", A)


def test_a_second_try_is_under_way_until_a_report_knows_of_it() -> None:
    """Failed, replayed, trained, served, scored, reported: `understudy watch` follows each step, and ends with the new report."""
    second = c.Artifact(sha256="1" * 64)
    story = [*PLANNED, REQUEST, MADE, BASE_SCORED, TRAIN]
    story += [c.ItemFailed(run="r", item="v", station="trainer", reason="no base")]
    begin = len(story)
    story += [closing(story)]
    story += [TRAIN.again(), c.ServingRequested.following(TRAIN.again(), adapter=A)]
    story += [c.ScoringRequested.following(TRAIN.again(), model="ft:v")]
    story += [c.ItemScored(run="r", attempt=2, item="v", answers=A, measures=A)]
    story += [closing(story, report=second)]
    seen = []
    for count in range(begin, len(story) + 1):
        now = state(story[:count])
        v = now.items["v"]
        seen.append((now.status, v.stage, v.reason and v.reason[:7], now.report and now.report.sha256[0]))
    assert seen == [
        ("running", "failed", "no base", None),
        ("finished", "failed", "no base", "0"),
        ("running", "training", "waits f", "0"),
        ("running", "serving", "waits f", "0"),
        ("running", "evaluating", "waits f", "0"),
        ("running", "scored", None, "0"),
        ("finished", "scored", None, "1"),
    ]


@pytest.mark.parametrize("replayed_first", [True, False])
def test_a_second_try_that_is_cancelled_leaves_the_run_cancelled(replayed_first: bool) -> None:
    """Its message is committed without a word, so nothing else will come."""
    story = [*PLANNED, REQUEST, MADE, BASE_SCORED, TRAIN]
    story += [c.ItemFailed(run="r", item="v", station="trainer", reason="no base")]
    both: list[c.Message] = [TRAIN.again(), c.CancelRequested(run="r")]
    story += both if replayed_first else both[::-1]
    story.append(closing(story, "cancelled"))
    assert state(story).status == "cancelled"


def test_a_run_whose_request_died_is_failed_and_runs_again_when_it_is_replayed() -> None:
    """datagen could not make the data."""
    died = c.RunClosed(run="r", status="failed", station="datagen", reason="no table")
    story = [*PLANNED, REQUEST, died, REQUEST.again()]
    states = [state(story[:n]) for n in (4, 5)]
    assert [(s.status, s.reason) for s in states] == [("failed", "no table"), ("queued", None)]


def test_a_run_taken_up_again_is_not_over_by_the_end_it_had_before() -> None:
    story = [*PLANNED, REQUEST, MADE, BASE_SCORED, TRAIN, c.CancelRequested(run="r")]
    story.append(closing(story, "cancelled"))
    before = state(story)
    assert (before.status, before.items["v"].stage, before.items["base"].stage) == ("cancelled", "cancelled", "scored")
    again = state([*story, REQUEST.model_copy(update={"generation": 2})])
    assert (again.status, again.items["v"].stage, again.generation) == ("queued", "waiting", 2)
    assert again.items["v"].reason == "waits for the datasets of the run"
    late = state([*story, REQUEST.model_copy(update={"generation": 2}), c.CancelRequested(run="r", generation=1)])
    assert late.status == "queued", "a wish about the generation before ended this one"


def test_what_waits_shows_its_place_and_the_reason() -> None:
    many = [c.ItemPlanned(run="r", item=f"i{n}", index=n, base="seedling") for n in range(4)]
    at = {name: {"run": "r", "item": name, "index": int(name[1]), "plan": A} for name in ("i0", "i1")}
    other = c.TrainingRequested(run="s", item="x", index=0, plan=A)
    story = [
        *many,
        REQUEST,
        MADE,
        c.TrainingRequested(**at["i0"]),
        c.ItemPlanned(run="s", item="x", index=0, base="seedling"),
        c.RunRequested(run="s", plan=A, name="s", items=1),
        other,
        c.TrainingRequested(**at["i1"]),
        c.Progress(run="r", item="i0", station="trainer", step="training", at=1),
    ]
    items = state(story).items
    assert items["i0"].progress
    assert (items["i1"].place, items["i1"].reason) == (1, "waits for the trainer: 1 before it")
    assert (items["i2"].place, items["i2"].reason) == (0, "waits for its turn: it is next")
    assert (items["i3"].place, items["i3"].reason) == (1, "waits for its turn: 1 of this run before it")
    assert state(story, "s").items["x"].reason == "waits for the trainer: it is next"


def test_progress_of_another_station_or_try_is_not_shown() -> None:
    story = [*PLANNED, REQUEST, MADE, TRAIN, c.Progress(run="r", item="v", station="trainer", step="training", at=1)]
    assert state(story).items["v"].progress
    assert state([*story, SERVE]).items["v"].progress is None
    late = c.Progress(run="r", item="v", station="trainer", step="training", at=0.5)
    assert state([*story, late]).items["v"].progress.at == 1


@pytest.mark.parametrize("newest_first", [True, False])
def test_pages_go_through_all_runs_once(newest_first: bool) -> None:
    runs, _ = folded([c.RunRequested(run=f"r{n}", plan=A, name="r", items=0) for n in range(25)])
    seen: list[str] = []
    after, more = None, True
    while more:
        page = runs.page(after, 7, newest_first)
        assert page
        found, more = page
        seen += [run.id for run in found]
        after = found[-1].id
    order = [f"r{n}" for n in range(25)]
    assert seen == (order[::-1] if newest_first else order)
    assert runs.page("nobody", 7) is None


def test_a_deleted_run_is_gone_and_asked_again_it_is_new() -> None:
    told = [*PLANNED, REQUEST, MADE, BASE_SCORED, c.RunDeleted(run="r")]
    runs, control = folded(told)
    assert runs.get("r") is None
    assert runs.page(None, 10) == ([], False)
    assert (runs.deleted("r"), control.verdict(TRAIN)) == (1, "deleted")
    again = [m.model_copy(update={"generation": 2}) for m in (*PLANNED, REQUEST)]
    new = state([*told, *again])
    assert (new.status, new.items["base"].stage) == ("queued", "waiting")
