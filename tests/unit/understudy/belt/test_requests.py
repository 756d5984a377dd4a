"""How a run comes onto the belt, however often it is asked for: small messages, one plan, whatever the defaults are now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from understudy import recipe
from understudy.belt import requests
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import DatasetsMade, ItemPlanned, Message, RunDeleted, RunRequested, decode, encode
from understudy.belt.folds.control import Control
from understudy.belt.folds.reader import Reader
from understudy.belt.folds.runs import Runs
from understudy.plan import Plan, PlannedBase, make
from understudy.recipe import Recipe, Training
from understudy.store import keys
from understudy.store.artifacts import FsspecArtifactStore
from understudy.store.plans import Plans, put_datasets
from understudy.testing import local_store

MOST_BYTES = 4096
TOPICS = ("item-planned", "run-requested", "run-control")


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[EmbeddedBus]:
    bus = EmbeddedBus(tmp_path / "bus")
    yield bus
    bus.close()


@pytest.fixture
def store(tmp_path: Path) -> FsspecArtifactStore:
    return local_store(tmp_path)


def asked(variants: int = 2, panels: int = 1, **more: Any) -> Recipe:
    """Variants with names and mixes as long as they may be."""
    datasets = {f"dataset-{n}-{'d' * 50}": {"source": f"file-{n:024}"} for n in range(20)}
    mix = dict.fromkeys(datasets, 1.5)
    document = {
        "datasets": datasets,
        "variants": {f"{f'variant-{n}-':x<64}": {"train": [mix, mix, mix]} for n in range(variants)},
        "evaluation": {
            "panels": {f"panel-{n}": {"dataset": next(iter(datasets)), "metrics": ["f1"]} for n in range(panels)}
        },
    }
    return recipe.parse(document | more, "the test")


def plan(asked: Recipe) -> Plan:
    return make(asked, lambda base: PlannedBase(name=base, reference=base, fingerprint="f" * 64))


def published(bus: EmbeddedBus) -> list[Message]:
    return [decode(record.value) for record in bus.replay(TOPICS) if record]


def state(bus: EmbeddedBus) -> Runs:
    control = Control()
    runs = Runs(control)
    Reader(bus, (control, runs)).load()
    return runs


def test_every_message_is_small_and_their_bytes_grow_with_the_items_alone(
    bus: EmbeddedBus, store: FsspecArtifactStore
) -> None:
    """100 variants and 40 panels: the recipe is 200 KB of plan, and none of it rides."""
    sizes = {}
    for variants in (25, 50, 100):
        run = f"run-{variants}"
        before = sum(1 for _ in published(bus))
        planned = plan(asked(variants, panels=40, base=["b" * 90 + "1", "b" * 90 + "2"]))
        request = requests.begin(bus, store, run, planned)
        made = {f"dataset-{n}-{'d' * 50}": request.plan for n in range(20)} | {
            f"panel:panel-{n}": request.plan for n in range(40)
        }
        bus.publish(DatasetsMade(run=run, plan=request.plan, datasets=put_datasets(store, run, made)))
        messages = published(bus)[before:]
        assert len(messages) == 2 * (variants + 1) + 2
        assert max(len(encode(message)) for message in messages) < MOST_BYTES
        sizes[variants] = sum(len(encode(message)) for message in messages)
    assert len(planned.model_dump_json()) > 200_000
    assert sizes[100] - sizes[50] == pytest.approx(2 * (sizes[50] - sizes[25]), rel=0.01)


def test_the_longest_names_there_can_be_still_make_small_messages(bus: EmbeddedBus, store: FsspecArtifactStore) -> None:
    bases = [f"{'ü' * 125}{n}" for n in range(8)]  # the longest that a folder can have
    long = plan(asked(1, name="n" * 64)).model_copy(
        update={"bases": tuple(PlannedBase(name=base, reference=base) for base in bases)}
    )
    requests.begin(bus, store, "r" * 75, long, generation=10**6, owner="o" * 200)
    assert max(len(encode(message)) for message in published(bus)) < MOST_BYTES


def test_the_request_comes_after_all_its_items_and_names_them_in_the_order_of_the_plan(
    bus: EmbeddedBus, store: FsspecArtifactStore
) -> None:
    planned = plan(asked(3))
    requests.begin(bus, store, "r", planned, owner="me")
    *items, request = published(bus)
    assert isinstance(request, RunRequested)
    assert (request.name, request.bases, request.items, request.owner) == ("run", ("seedling",), 4, "me")
    assert [(item.item, item.index) for item in items if isinstance(item, ItemPlanned)] == [
        (item.name, index) for index, item in enumerate(planned.items)
    ]


def test_asked_for_twice_it_is_the_same_request(bus: EmbeddedBus, store: FsspecArtifactStore) -> None:
    planned = plan(asked())
    first, second = (requests.begin(bus, store, "r", planned) for _ in range(2))
    assert first == second
    runs = state(bus)
    shown, more = runs.page(None, 10) or ([], True)
    assert ([run.id for run in shown], more) == (["r"], False)
    assert len(runs.get("r").items) == 3  # type: ignore[union-attr]


def test_taken_up_again_it_keeps_the_plan_it_began_with_although_defaults_have_changed(
    bus: EmbeddedBus, store: FsspecArtifactStore
) -> None:
    class LaterTraining(Training):
        learning_rate: float = 0.01

    class LaterRecipe(Recipe):
        training: LaterTraining = LaterTraining()
        seeds: int = 3

    now = asked()
    later = LaterRecipe.model_validate(now.written())
    run = now.run_id()
    assert later.run_id() == run
    first = requests.begin(bus, store, run, plan(now))
    again = requests.begin(bus, store, run, plan(later), generation=2)
    assert plan(later) != plan(now)
    assert (again.plan, again.items, again.generation) == (first.plan, first.items, 2)
    assert Plans(store).get(again.plan) == plan(now)
    planned = {message.item for message in published(bus) if isinstance(message, ItemPlanned)}
    assert planned == {item.name for item in plan(now).items}
    assert state(bus).get(run).generation == 2  # type: ignore[union-attr]


def test_a_wish_covers_the_generation_it_names_and_no_later_one(bus: EmbeddedBus, store: FsspecArtifactStore) -> None:
    planned = plan(asked())
    requests.begin(bus, store, "r", planned)
    requests.cancel(bus, "r", 1, item="base")
    requests.cancel(bus, "r", 1)
    assert {item.stage for item in state(bus).get("r").items.values()} == {"cancelled"}  # type: ignore[union-attr]
    requests.begin(bus, store, "r", planned, generation=2)
    assert {item.stage for item in state(bus).get("r").items.values()} == {"waiting"}  # type: ignore[union-attr]


def test_a_deleted_run_leaves_nothing_but_the_word_that_it_is(
    bus: EmbeddedBus, store: FsspecArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "train.jsonl").write_bytes(b"x" * 1000)
    for run in ("r", "other"):
        requests.begin(bus, store, run, plan(asked(name=run)))
        store.put(keys.dataset(run, "d"), tmp_path / "made")
    freed = requests.delete(bus, store, "r", 1, owner="me")
    assert freed > 0
    assert isinstance(published(bus)[-1], RunDeleted)
    assert [store.find(key("r")) for key in (keys.plan, lambda run: keys.dataset(run, "d"))] == [None, None]
    assert store.find(keys.dataset("other", "d"))
    assert state(bus).get("r") is None
    assert requests.delete(bus, store, "other", 1) >= freed + 1000, "what both had goes with the last"
