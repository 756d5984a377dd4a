"""Turns as properties: whatever is said about a run, in whatever order and however often, the window holds, every item is let
go once in a generation, and the run is over exactly when all of it is."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.belt import turns
from understudy.belt.contracts import (
    CancelRequested,
    DatasetsMade,
    Ended,
    ItemFailed,
    ItemScored,
    ItemServed,
    Message,
    RunDeleted,
)
from understudy.belt.turns import Book
from understudy.plan import Item, Plan, PlannedBase
from understudy.terms import Artifact

A = Artifact(sha256="0" * 64)
NAMES = [f"item{number}" for number in range(8)]
PLAN = Plan(
    name="p",
    bases=(PlannedBase(name="b", reference="b"),),
    items=tuple(Item(name=name, ends_at="served" if name == "item7" else "scored") for name in NAMES),
)


def made(generation: int = 1, attempt: int = 1) -> DatasetsMade:
    return DatasetsMade(run="r", generation=generation, attempt=attempt, plan=A, datasets=A)


def came_through(item: str, generation: int = 1, attempt: int = 1) -> Ended:
    about = {"run": "r", "item": item, "generation": generation, "attempt": attempt}
    return ItemServed(**about, model=item) if item == "item7" else ItemScored(**about, answers=A, measures=A)


def failed(item: str, generation: int = 1, attempt: int = 1) -> ItemFailed:
    reason = f"{item} {generation} {attempt}"
    return ItemFailed(run="r", item=item, generation=generation, attempt=attempt, station="trainer", reason=reason)


def cancel(generation: int = 1, item: str | None = None) -> CancelRequested:
    return CancelRequested(run="r", generation=generation, item=item)


def deleted(generation: int = 1) -> RunDeleted:
    return RunDeleted(run="r", generation=generation)


def book_of(said: Iterable[Message], book: Book | None = None) -> Book:
    return reduce(turns.apply, said, book or Book())


names, generations, attempts = st.sampled_from(NAMES), st.integers(1, 3), st.integers(1, 2)
words = st.one_of(
    st.builds(made, generations, attempts),
    st.builds(came_through, names, generations, attempts),
    st.builds(failed, names, generations, attempts),
    st.builds(cancel, generations, st.none() | names),
    st.builds(deleted, generations),
)
whatever = st.lists(words, max_size=40)
luck = st.randoms(use_true_random=False)


@given(whatever, luck)
def test_any_order_and_any_doubles_give_the_same_book_and_the_same_outcome(
    said: list[Message], dice: random.Random
) -> None:
    other = said + dice.choices(said, k=len(said)) if said else []
    dice.shuffle(other)
    assert book_of(other) == book_of(said)
    assert turns.outcome(book_of(other)) == turns.outcome(book_of(said))


@given(whatever, words)
def test_the_outcome_changes_with_the_ends_and_with_nothing_else(said: list[Message], word: Message) -> None:
    before, after = book_of(said), book_of([*said, word])
    if before == after:
        assert turns.outcome(before) == turns.outcome(after)
    if turns.closed(before, PLAN) and turns.closed(after, PLAN) and turns.ends(before, PLAN) != turns.ends(after, PLAN):
        assert turns.outcome(before) != turns.outcome(after)


@given(whatever, st.integers(1, 10))
def test_a_run_is_closed_exactly_when_all_of_it_is_over_and_then_nothing_may_ride(
    said: list[Message], window: int
) -> None:
    book = book_of(said)
    riding = turns.let_go(book, windowed(window))
    assert len(riding) <= window
    assert not any(book.is_over(item) for item in riding)
    if book.made:
        assert turns.closed(book, PLAN) == all(book.is_over(item) for item in NAMES) == (not riding)
        ends = turns.ends(book, PLAN)
        assert len(ends.successes) + len(ends.failures) + len(ends.cancelled) == len(NAMES) or riding
    else:
        assert not riding
        assert turns.closed(book, None) == (book.cancelled > 0)


def windowed(window: int) -> Plan:
    """The plan with another window."""
    return PLAN.model_copy(update={"window": window})


class Belt:
    """The stations, reduced to what turns see: an item that was let go ends at some time, unless nobody wants it any more."""

    def __init__(self, window: int, dice: random.Random) -> None:
        self.plan, self.dice = windowed(window), dice
        self.book = Book()
        self.riding: list[tuple[str, int]] = []
        self.let_go: Counter[tuple[str, int]] = Counter()

    def say(self, message: Message) -> None:
        before, self.book = self.book, turns.apply(self.book, message)
        if isinstance(message, Ended):
            self.riding.remove((message.item, message.generation))
        for item in turns.released(before, self.book, self.plan):
            self.riding.append((item, self.book.generation))
            self.let_go[item, self.book.generation] += 1
        open_items = [one for one in self.riding if not self.book.is_over(one[0]) and one[1] == self.book.generation]
        assert len(open_items) <= self.plan.window

    def ride(self, failing: float, until: int = 0) -> None:
        """Let items end, in any order, until only so many ride; what was cancelled may end late, or never."""
        while len(self.riding) > until:
            item, generation = self.dice.choice(self.riding)
            if self.book.cancels(item, generation) and self.dice.random() < 0.7:
                self.riding.remove((item, generation))
            else:
                end = failed if self.dice.random() < failing else came_through
                self.say(end(item, generation))


@given(st.integers(1, 10), luck, st.sampled_from([0.0, 0.5, 1.0]))
def test_every_item_is_let_go_once_in_a_generation_whatever_the_order_of_ends(
    window: int, dice: random.Random, failing: float
) -> None:
    belt = Belt(window, dice)
    belt.say(made())
    assert [item for item, _ in belt.riding] == NAMES[:window], "in the order of the plan"
    while belt.riding:
        assert not turns.closed(belt.book, PLAN)
        belt.ride(failing, until=len(belt.riding) - 1)
    assert belt.let_go == Counter((name, 1) for name in NAMES)
    assert turns.closed(belt.book, PLAN)


@given(st.integers(1, 4), luck, st.integers(0, 4), st.booleans())
def test_the_next_generation_lets_go_exactly_what_has_not_come_through(
    window: int, dice: random.Random, left: int, cancelled: bool
) -> None:
    """After a cancel, at any moment, or after failures."""
    belt = Belt(window, dice)
    belt.say(made())
    if cancelled:
        belt.ride(0.3, until=left)
        belt.say(cancel())
        assert turns.closed(belt.book, PLAN)
        asked_for = sum(belt.let_go.values())
    belt.ride(0.5)
    if cancelled:
        assert sum(belt.let_go.values()) == asked_for, "nothing was let go after the wish"
    again = [name for name in NAMES if name not in belt.book.successes]
    belt.say(made(2))
    assert turns.closed(belt.book, PLAN) == (not again)
    belt.ride(0.0)
    assert belt.let_go.keys() - {(name, 1) for name in NAMES} == {(name, 2) for name in again}
    assert set(belt.let_go.values()) == {1}
    assert turns.ends(belt.book, PLAN).successes.keys() == set(NAMES)


def test_a_generation_that_begins_while_another_still_rides_lets_go_anew() -> None:
    riding = book_of([made(), came_through("item0")])
    assert turns.released(riding, turns.apply(riding, made(2)), windowed(3)) == tuple(NAMES[1:4])
    assert turns.released(riding, turns.apply(riding, made(1, attempt=2)), windowed(3)) == ()


@pytest.mark.parametrize("generation", [1, 2])
def test_a_wish_before_the_datasets_are_made_lets_nothing_go_when_they_are(generation: int) -> None:
    earlier = [made(), failed("item0"), *(came_through(name) for name in NAMES[1:])] if generation == 2 else []
    wished = book_of([*earlier, cancel(generation)])
    assert turns.closed(wished, PLAN if earlier else None)
    late = turns.apply(wished, made(generation))
    assert turns.released(wished, late, PLAN) == ()
    assert turns.closed(late, PLAN)
    assert turns.outcome(late) == turns.outcome(wished), "nothing new to report"
    assert turns.released(late, turns.apply(late, made(generation + 1)), windowed(1)) == ("item0",)


def test_a_wish_for_one_item_makes_room_for_the_next_and_leaves_the_others() -> None:
    riding = book_of([made()])
    wished = turns.apply(riding, cancel(item="item1"))
    assert turns.released(riding, wished, windowed(3)) == ("item3",)
    assert turns.let_go(wished, windowed(3)) == ("item0", "item2", "item3")
    assert turns.released(wished, turns.apply(wished, cancel(item="item7")), windowed(3)) == (), "its turn had not come"
    ended = book_of([came_through(name) for name in NAMES if name not in ("item1", "item7")], wished)
    assert not turns.closed(ended, PLAN)
    ended = turns.apply(ended, cancel(item="item7"))
    assert turns.closed(ended, PLAN)
    assert turns.ends(ended, PLAN).cancelled == ("item1", "item7")


def test_an_end_that_comes_after_the_wish_counts_and_changes_the_outcome() -> None:
    wished = book_of([made(), came_through("item0"), cancel()])
    assert turns.ends(wished, PLAN).cancelled == tuple(NAMES[1:])
    late = turns.apply(wished, came_through("item1"))
    assert turns.closed(late, PLAN)
    assert turns.ends(late, PLAN).cancelled == tuple(NAMES[2:])
    assert turns.outcome(late) != turns.outcome(wished)
    assert turns.released(wished, late, PLAN) == ()


def test_a_success_counts_for_ever_and_a_failure_in_its_generation() -> None:
    book = book_of([made(), came_through("item0"), failed("item1"), made(2)])
    assert turns.let_go(book, windowed(2)) == ("item1", "item2")
    assert turns.apply(book, failed("item0", 2)).end_of("item0") == came_through("item0")
    tried = book_of([failed("item1", 2), came_through("item1", 1, attempt=2)], book)
    assert tried.end_of("item1") == came_through("item1", 1, attempt=2), "an operator's second try came through"


def test_a_deleted_run_that_is_asked_for_again_begins_anew() -> None:
    gone = book_of([made(), *(came_through(name) for name in NAMES[:4]), cancel(item="item5"), deleted()])
    assert gone == Book(deleted=1)
    assert not turns.closed(gone, None)
    assert book_of([made(), came_through("item6"), failed("item7"), cancel()], gone) == gone, "what was still under way"
    again = turns.apply(gone, made(2))
    assert turns.released(gone, again, PLAN) == tuple(NAMES[: PLAN.window])
