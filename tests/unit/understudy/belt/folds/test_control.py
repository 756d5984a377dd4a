"""What is decided about runs, and the reader that brings it: verdicts, ordered histories, a bus that goes away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import life
import pytest

from understudy.belt import contracts as c
from understudy.belt import turns
from understudy.belt.bus import Record
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.folds.control import Control
from understudy.belt.folds.histories import Histories
from understudy.belt.folds.reader import Reader
from understudy.errors import Transient

A = life.A


def train(run: str = "r", item: str = "v", generation: int = 1) -> c.TrainingRequested:
    return c.TrainingRequested(run=run, item=item, index=0, plan=A, generation=generation)


def control(*messages: c.Message) -> Control:
    fold = Control()
    life.feed(life.records(messages), fold)
    return fold


def test_a_wish_covers_its_generation_and_those_before_and_nothing_else() -> None:
    fold = control(c.CancelRequested(run="r", generation=2))
    assert [fold.verdict(train(generation=g)) for g in (1, 2, 3)] == ["cancelled", "cancelled", None]
    assert fold.verdict(train(run="s")) is None
    assert fold.verdict(c.RunRequested(run="r", generation=2, plan=A, name="r", items=1)) == "cancelled"


def test_a_wish_about_one_item_leaves_the_others_alone() -> None:
    fold = control(c.CancelRequested(run="r", item="v"))
    assert fold.verdict(train()) == "cancelled"
    assert fold.verdict(train(item="w")) is None
    assert fold.verdict(c.RunRequested(run="r", plan=A, name="r", items=1)) is None


def test_a_deleted_generation_is_not_wanted_and_the_next_one_is() -> None:
    fold = control(c.CancelRequested(run="r", generation=3), c.RunDeleted(run="r", generation=3))
    assert [fold.verdict(train(generation=g)) for g in (3, 4)] == ["deleted", None]


def test_a_history_gives_the_book_as_it_was_at_any_record() -> None:
    told = [
        m for m in life.Life(life.Random(5)).messages if isinstance(m, c.Ended | c.DatasetsMade | c.CancelRequested)
    ]
    other = c.ItemScored(run="other", item="x", answers=A, measures=A)
    lie = life.records([m for each in told for m in (each, other)])
    fold = Histories()
    life.feed(lie, fold)
    for number in range(len(told)):
        until = lie[2 * number][1].offset
        book = reduce(turns.apply, fold.between("r", -1, until), turns.Book())
        assert book == reduce(turns.apply, told[: number + 1], turns.Book())
    assert fold.between("r", lie[-2][1].offset, 10**9) == []


def test_reading_again_from_the_start_doubles_no_history() -> None:
    lie = life.records([c.ItemScored(run="r", item="x", answers=A, measures=A), c.CancelRequested(run="r")])
    fold = Histories()
    life.feed([*lie, *lie], fold)
    assert len(fold.between("r", -1, 10**9)) == 2


def test_the_reader_goes_on_when_a_bus_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.belt.folds.reader.PAUSE", 0.05)

    class Flaky(EmbeddedBus):
        falls = 2

        def replay(self, topics: list[str], follow: bool = False) -> Iterator[Record | None]:  # type: ignore[override]
            for record in super().replay(topics, follow):
                yield record
                if self.falls and record:
                    self.falls -= 1
                    raise Transient("gone")

    bus, fold, stop = Flaky(tmp_path / "bus.sqlite"), Control(), threading.Event()
    reader = Reader(bus, [fold])
    bus.publish(c.CancelRequested(run="r"), c.CancelRequested(run="s"))
    thread = threading.Thread(target=reader.follow, args=(stop,))
    thread.start()
    assert reader.caught_up.wait(5)
    assert fold.verdict(train(run="s")) == "cancelled"
    bus.publish(c.CancelRequested(run="t"))
    deadline = time.monotonic() + 5
    while fold.verdict(train(run="t")) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stop.set()
    thread.join(5)


def test_waiting_for_a_record_ends_once_it_was_read_or_in_good_time(tmp_path: Path) -> None:
    bus = EmbeddedBus(tmp_path / "bus.sqlite")
    bus.publish(c.CancelRequested(run="r"))
    [record] = [r for r in bus.replay(["run-control"]) if r]
    reader = Reader(bus, [Control()])
    with pytest.raises(Transient, match="was not read"):
        reader.wait_for(record.topic, record.partition, record.offset, timeout=0.05)
    reader.load()
    reader.wait_for(record.topic, record.partition, record.offset, timeout=0)
