"""Which models answer, from two topics alone: the same in any order of reading, gone with the last run that served them."""

from __future__ import annotations

import itertools
import time

from life import feed, records

from understudy.belt.contracts import Message, ModelServed, RunDeleted
from understudy.belt.folds.served import Models
from understudy.terms import Artifact

A = Artifact(sha256="0" * 64)


def served(model: str, run: str = "r", generation: int = 1) -> ModelServed:
    return ModelServed(run=run, generation=generation, item="v", model=model, base="tiny", parent="tiny", adapter=A)


def deleted(run: str = "r", generation: int = 1) -> RunDeleted:
    return RunDeleted(run=run, generation=generation)


def state(models: Models, *names: str) -> dict[str, object]:
    found = {name: (models.get(name), models.gone(name)) for name in names}
    return {"all": sorted((each.message.model, each.message.run, each.created) for each in models.all()), **found}


def read(*messages: Message) -> Models:
    models = Models()
    feed(records(messages), models)
    return models


def test_the_first_announcement_counts_and_doubles_change_nothing() -> None:
    models = read(served("m"), served("m"), served("m", run="again"))
    found = models.get("m")
    assert found
    assert (found.message.run, found.created, len(models.all())) == ("r", 1000, 1)
    assert not models.gone("m")
    assert models.get("n") is None
    assert not models.gone("n"), "never heard of"


def test_a_model_is_gone_when_its_run_is_deleted_and_back_when_it_is_served_anew() -> None:
    models = read(served("m"), deleted())
    assert (models.get("m"), models.all(), models.gone("m")) == (None, [], True)
    models = read(served("m"), deleted(), served("m", generation=2))
    assert models.get("m")
    assert not models.gone("m")


def test_a_model_stays_while_one_run_that_served_it_is_left() -> None:
    models = read(served("tiny", run="a"), served("tiny", run="b"), deleted("a"))
    found = models.get("tiny")
    assert found
    assert (found.message.run, models.gone("tiny")) == ("b", False)


def test_a_model_of_a_run_that_was_deleted_before_it_came_was_never_there_but_is_gone() -> None:
    """So that an engine that was given it forgets it."""
    models = read(deleted(), served("m"))
    assert (models.get("m"), models.gone("m")) == (None, True)


def test_any_order_of_reading_gives_the_same() -> None:
    """Also when a later generation served the same model before the deletion of an earlier one was read."""
    lie = records(
        [
            served("m"),
            served("m", generation=2),
            deleted(),
            served("m", run="b"),
            served("n"),
            deleted("b"),
            served("o"),
        ]
    )
    states = []
    for order in itertools.permutations(lie):
        models = Models()
        feed(order, models)
        states.append(state(models, "m", "n", "o"))
    assert all(each == states[0] for each in states)
    assert [name for name, _, _ in states[0]["all"]] == ["m"]  # type: ignore[attr-defined]


def test_a_deletion_costs_what_its_run_served_and_not_what_all_did() -> None:
    """Seconds for thousands of runs on one base would be seconds of every start."""
    runs = 3000
    messages: list[Message] = [served("tiny", run=f"r{n}") for n in range(runs)]
    messages += [served(f"ft:{n}", run=f"r{n}") for n in range(runs)]
    lie = records(messages)
    gone = records([deleted(f"r{n}") for n in range(100)])
    models = Models()
    started = time.perf_counter()
    feed(lie, models)
    feed(gone, models)
    assert time.perf_counter() - started < 3
    assert len(models.all()) == runs - 100 + 1
