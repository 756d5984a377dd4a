"""What happened to a run is told in the order of time, a line for each event, and nothing of another run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from understudy.belt import contracts as c
from understudy.belt.bus import Record
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.history import LOG_LINES, MOST_LOGS, lines, told
from understudy.belt.topics import topic_of
from understudy.store import keys
from understudy.testing import local_store

A = c.Artifact(sha256="0" * 64)
RIDE = {"run": "r-1", "item": "v", "index": 1, "plan": A}
DEAD = c.TrainingRequested(**RIDE)  # type: ignore[arg-type]
STORY: tuple[tuple[c.Message, str], ...] = (
    (
        c.RunRequested(run="r-1", plan=A, name="r", bases=("tiny", "small"), items=1200, owner="anna"),
        "the run: asked for by anna: 1,200 items on tiny, small",
    ),
    (c.DatasetsMade(run="r-1", plan=A, datasets=A), "the run: the datasets are made"),
    (DEAD, "v: handed to trainer"),
    (
        c.DeadLetter(
            run="r-1",
            topic="training-requested",
            station="trainer",
            reason="x",
            attempts=5,
            value=c.encode(DEAD).decode(),
        ),
        "v: dead letter 0-3: trainer gave up on a message of training-requested after 5 tries",
    ),
    (
        c.ItemFailed(run="r-1", item="v", station="trainer", reason="no\nroom  on the card"),
        "v: failed at trainer: no room on the card",
    ),
    (c.TrainingRequested(**RIDE, attempt=2), "v: handed to trainer (attempt 2)"),  # type: ignore[arg-type]
    (c.ServingRequested(**RIDE, adapter=A), "v: handed to inference"),  # type: ignore[arg-type]
    (c.ModelServed(run="r-1", item="v", model="r-1.v", base="tiny"), "v: answers on the endpoint as r-1.v"),
    (c.ScoringRequested(**RIDE, model="r-1.v"), "v: handed to evaluator"),  # type: ignore[arg-type]
    (c.CancelRequested(run="r-1", item="w", owner="me"), "w: cancel was asked for by me"),
    (c.CancelRequested(run="r-1"), "the run: cancel was asked for"),
    (c.ItemScored(run="r-1", item="v", answers=A, measures=A), "v: through: it is scored"),
    (c.ItemServed(run="r-1", item="u", model="m"), "u: through: it is served"),
    (
        c.ReportRequested(run="r-1", outcome="o", status="cancelled"),
        "the run: nothing of it is on the belt any more; the report is asked for",
    ),
    (c.RunClosed(run="r-1", status="cancelled", report=A), "the run: cancelled: there is a report"),
    (
        c.RunRequested(run="r-1", generation=2, plan=A, name="r", items=2),
        "the run: taken up again (generation 2): 2 items on no base",
    ),
    (
        c.RunClosed(run="r-1", generation=2, status="failed", station="datagen", reason="no file"),
        "the run: failed: at datagen: no file",
    ),
    (c.RunDeleted(run="r-1", generation=2, owner="me"), "the run: deleted by me"),
)
PLANNED = c.ItemPlanned(run="r-1", item="v", index=1, base="tiny", what="a + b")


def records(*messages: c.Message) -> list[Record]:
    """A second apart."""
    return [
        Record(topic_of(message).name, 0, number, 1_000_000_000.5 + number, c.encode(message))
        for number, message in enumerate(messages)
    ]


def test_every_kind_of_message_has_its_line_in_the_order_of_time() -> None:
    shuffled = records(*(message for message, _ in STORY))
    random.Random(1).shuffle(shuffled)
    found = lines(shuffled, "r-1")
    assert found[0].startswith("2001-09-09 01:46:40  the run: ")
    assert [line[21:] for line in found] == [said for _, said in STORY]
    kinds = {type(message) for message, _ in STORY} | {c.ItemPlanned, c.Progress}
    about_runs = {kind for kind in c.kinds() if not issubclass(kind, c.OfKey)}
    assert kinds == about_runs, "no kind is left out"


def test_one_item_is_told_with_what_was_of_the_whole_run() -> None:
    found = [line[21:] for line in lines(records(*(message for message, _ in STORY), PLANNED), "r-1", "v")]
    assert found[-1] == "v: planned: a + b, on tiny"
    assert found[:-1] == [said for _, said in STORY if not said.startswith(("u:", "w:"))]


def test_other_runs_and_what_nobody_can_read_are_passed_over() -> None:
    others = records(
        c.RunRequested(run="r-12", plan=A, name="r", items=1),
        c.ItemFailed(run="other", item="v", station="trainer", reason="as in r-1"),
    )
    strange = [
        Record("run-control", 0, 9, 9.0, b'{"type": "item.scored.v99", "run": "r-1"}'),
        Record("run-control", 0, 10, 9.0, b"r-1 \xff"),
    ]
    assert lines(others + strange, "r-1") == []
    dead = c.DeadLetter(
        run="r-1", topic="run-requested", station="datagen", reason="x", attempts=1, value="r-1 no message"
    )
    (line,) = lines(records(dead), "r-1", "v")
    assert line.endswith("the run: dead letter 0-0: datagen gave up on a message of run-requested after 1 try")


@pytest.mark.parametrize("item", [None, "v"])
def test_what_trainings_said_comes_last(tmp_path: Path, item: str | None) -> None:
    bus, store = EmbeddedBus(tmp_path / "bus"), local_store(tmp_path)
    bus.publish(
        c.RunRequested(run="r-1", plan=A, name="r", items=1), c.Progress(run="r-1", station="trainer", step="x")
    )
    for name in ("v", "w"):
        with store.draft() as folder:
            (folder / "train.log").write_bytes(b"".join(b"%s %d \xff\n" % (name.encode(), n) for n in range(250)))
            store.put(keys.training_log("r-1", name), folder)
    found = told(bus, store, "r-1", item)
    assert len(found) == 1 + (1 if item else 2) * (2 + LOG_LINES)
    assert found[1:4] == ["", "--- the end of what the training of v said", "v 50 \ufffd"]
    assert found[-1] == f"{item or 'w'} 249 \ufffd"
    bus.close()


def test_of_several_tries_of_a_training_the_latest_is_shown(tmp_path: Path) -> None:
    """Beside an item whose name begins the same, and of more than nine."""
    bus, store = EmbeddedBus(tmp_path / "bus"), local_store(tmp_path)
    for name, tries in (("v", 11), ("v.seed17", 1), ("v.2", 2)):
        for number in range(1, tries + 1):
            with store.draft() as folder:
                (folder / "train.log").write_text(f"try {number} of {name}\n")
                store.put(keys.training_log("r-1", name, number), folder)
    found = told(bus, store, "r-1")
    assert [line for line in found if line.startswith("try")] == ["try 11 of v", "try 2 of v.2", "try 1 of v.seed17"]
    assert told(bus, store, "r-1", "v")[1:] == ["--- the end of what the training of v said", "try 11 of v"]
    bus.close()


def test_of_very_many_trainings_some_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    bus, store = EmbeddedBus(tmp_path / "bus"), local_store(tmp_path)
    for number in range(MOST_LOGS + 3):
        with store.draft() as folder:
            (folder / "train.log").write_text("hello\n")
            store.put(keys.training_log("r-1", f"v{number:02}"), folder)
    found = told(bus, store, "r-1")
    assert found.count("hello") == MOST_LOGS
    assert found[-1] == "--- 3 more trainings have a log: ask for one item"
    bus.close()
