"""Trainings are fine-tuning jobs to the unmodified `openai` SDK: those of a page are read, and a plan only once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from services.trainer import bootstrap, tunings
from services.trainer.settings import TrainerSettings
from understudy.belt import contracts as c
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.requests import begin, cancel, delete
from understudy.errors import Transient
from understudy.plan import Plan, PlannedBase, make
from understudy.recipe import parse
from understudy.service.host import kernel
from understudy.service.web import add_errors
from understudy.store.plans import Plans

NONE = c.Artifact(sha256="0" * 64)


class World:
    """A bus and a store with runs, and the trainer's API as the service has it."""

    def __init__(self, folder: Path) -> None:
        self.settings = TrainerSettings(data=folder)
        self.bus = EmbeddedBus(folder / "bus.sqlite")
        self.kernel = kernel(self.settings, self.bus)
        self.service = bootstrap.build(self.settings, self.kernel)
        self.read: Counter[str] = Counter()
        """Plan -> how many times it was asked for."""

    def run(self, run: str, *variants: str, generation: int = 1, **recipe: Any) -> Plan:
        document = {
            "name": run,
            "datasets": {"d": {"source": "file-1"}},
            "variants": {name: {"train": "d"} for name in variants},
        }
        plan = make(parse(document | recipe, "r"), lambda base: PlannedBase(name="tiny", reference=base))
        begin(self.bus, self.kernel.store, run, plan, generation=generation)
        return plan

    def say(self, kind: Callable[..., c.Message], item: str, run: str = "r", **more: Any) -> None:
        on_belt = (
            {"index": 1, "plan": NONE} if kind in (c.TrainingRequested, c.ServingRequested, c.ScoringRequested) else {}
        )
        self.bus.publish(kind(run=run, item=item, **on_belt, **more))

    def client(self) -> openai.OpenAI:
        self.kernel.reader.load()
        app = FastAPI()
        add_errors(app)
        app.include_router(self.service.router)
        http: httpx.Client = TestClient(app)
        return openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)

    def names(self, client: openai.OpenAI, **options: Any) -> list[str]:
        """`run/item` of every job, page by page."""
        found = [job.metadata for job in client.fine_tuning.jobs.list(**options)]
        return [f"{names['run']}/{names['item']}" for names in found if names]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    get = Plans.get

    def counted(self: Plans, artifact: c.Artifact) -> Plan:
        world.read[artifact.sha256] += 1
        return get(self, artifact)

    monkeypatch.setattr(Plans, "get", counted)
    return world


def test_one_job_per_trained_item_with_its_outcome(world: World) -> None:
    world.run("r", *"qtsepvwx", training={"epochs": 1.5, "batch_size": 4}, seed=5)
    for item in "tsepv":
        world.say(c.TrainingRequested, item)
    for item in "sepv":
        world.say(c.ServingRequested, item)
    for item in "ep":
        world.say(c.ScoringRequested, item, model=f"ft:{item}")
        world.say(c.ModelServed, item, model=f"ft:{item}", base="tiny")
    world.bus.publish(c.DatasetsMade(run="r", plan=NONE, datasets=NONE))
    world.say(c.ItemScored, "p", answers=NONE, measures=NONE)
    world.say(c.ItemServed, "v", model="ft:v")
    world.say(c.ItemFailed, "w", station="trainer", reason="too long")
    cancel(world.bus, "r", 1, "x")
    client = world.client()
    jobs = {job.metadata["item"]: job for job in client.fine_tuning.jobs.list() if job.metadata}
    assert {name: job.status for name, job in jobs.items()} == {
        "q": "queued",
        "t": "running",
        "s": "running",
        "e": "succeeded",
        "p": "succeeded",
        "v": "succeeded",
        "w": "failed",
        "x": "cancelled",
    }
    assert "base" not in jobs
    assert jobs["p"].fine_tuned_model == "ft:p"
    assert jobs["w"].error
    assert jobs["w"].error.message == "too long"
    assert jobs["x"].error is None
    job = jobs["e"]
    assert (job.model, job.seed, job.training_file) == ("tiny", 5, "file-1")
    assert (job.hyperparameters.batch_size, job.hyperparameters.n_epochs) == (4, 2)
    assert job.model_dump() == client.fine_tuning.jobs.retrieve(job.id).model_dump()


def test_ids_stay_what_they_were(world: World) -> None:
    world.run("r", "v")
    (job,) = world.client().fine_tuning.jobs.list()
    assert job.id == "ftjob-348aaf4ea41ed29eb3613e08"


def test_a_job_of_a_run_that_failed_before_it_began_has_failed(world: World) -> None:
    world.run("r", "v")
    world.bus.publish(c.RunClosed(run="r", status="failed", station="datagen", reason="the table is empty"))
    (job,) = world.client().fine_tuning.jobs.list()
    assert job.status == "failed"
    assert job.error
    assert job.error.message == "the table is empty"


def test_pages_go_from_the_newest_run_to_the_oldest_and_each_in_the_order_of_its_plan(world: World) -> None:
    expected = []
    for number in range(tunings.RUNS_AT_ONCE + 3):
        variants = [f"v{n}" for n in range(number % 4)]
        world.run(
            f"r{number}", *variants, **({} if variants else {"datasets": {"d": {"source": "x", "rows": {"train": 0}}}})
        )
        expected[:0] = [f"r{number}/{variant}" for variant in variants]
    client = world.client()
    for limit in (1, 2, 3, 100):
        assert world.names(client, limit=limit) == expected
    first = client.fine_tuning.jobs.list(limit=2)
    assert first.has_more
    assert not client.fine_tuning.jobs.list(limit=100).has_more


def test_unknown_jobs(world: World) -> None:
    world.run("r", "v")
    client = world.client()
    with pytest.raises(openai.NotFoundError, match="no fine-tuning job"):
        client.fine_tuning.jobs.retrieve("ftjob-0")
    with pytest.raises(openai.NotFoundError, match="after"):
        list(client.fine_tuning.jobs.list(after="ftjob-0"))


def test_the_jobs_of_a_deleted_run_are_gone_and_those_of_its_next_generation_there(world: World) -> None:
    world.run("r", "v")
    world.run("other", "v")
    client = world.client()
    (job, _) = client.fine_tuning.jobs.list()
    assert world.names(client) == ["other/v", "r/v"]
    job = next(job for job in client.fine_tuning.jobs.list() if job.metadata and job.metadata["run"] == "r")
    delete(world.bus, world.kernel.store, "r", 1)
    client = world.client()
    assert world.names(client) == ["other/v"]
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve(job.id)
    world.run("r", "v", generation=2)
    client = world.client()
    assert world.names(client) == ["r/v", "other/v"]
    assert client.fine_tuning.jobs.retrieve(job.id).status == "queued"


def test_only_the_plans_of_a_page_are_read_and_each_once(world: World) -> None:
    for number in range(30):
        world.run(f"r{number}", "v", "w")
    world.read.clear()
    client = world.client()
    for _ in range(3):
        client.fine_tuning.jobs.list(limit=4)
    assert sorted(world.read.values()) == [1, 1]
    client.fine_tuning.jobs.list(limit=20)
    assert sorted(world.read.values()) == [1] * 10


def test_a_plan_that_cannot_be_read_costs_its_own_jobs_their_details_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run("whole", "v")
    world.run("broken", "v")
    world.bus.publish(c.RunRequested(run="broken", plan=NONE, name="broken", items=2, generation=2))
    monkeypatch.setattr("understudy.store.artifacts.SECOND_LOOK", 0)
    client = world.client()
    for _ in range(2):
        broken, whole = client.fine_tuning.jobs.list()
        assert (broken.hyperparameters.batch_size, broken.training_file, broken.status) == (None, None, "queued")
        assert whole.hyperparameters.batch_size == 16
    assert world.read[NONE.sha256] == 1, "nobody waits for it at each request"


def test_a_store_that_does_not_answer_is_asked_once_and_again_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        world.run(f"r{number}", "v")
    client = world.client()
    asked = []

    def silent(*_: Any) -> Plan:
        asked.append(1)
        raise Transient("no answer")

    with monkeypatch.context() as away:
        away.setattr(Plans, "get", silent)
        assert [job.seed for job in client.fine_tuning.jobs.list()] == [None] * 5
    assert len(asked) == 1
    monkeypatch.setattr(tunings.time, "monotonic", lambda now=tunings.time.monotonic: now() + 60)
    assert [job.seed for job in client.fine_tuning.jobs.list()] == [17] * 5


def test_the_service_takes_trainings_one_at_a_time_and_says_what_it_has(world: World) -> None:
    (lane,) = world.service.lanes
    assert (lane.group, lane.width) == ("trainer", 1)
    assert lane.handlers.keys() == {c.TrainingRequested}
    assert lane.has == {"keep-best", "nf4"}, "the extra `trainer` brings bitsandbytes"


def test_without_bitsandbytes_a_trainer_has_no_four_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    assert bootstrap.features() == {"keep-best"}


def test_threads_are_at_most_two_and_no_more_than_the_container_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, threads in ((1, 1), (2, 2), (64, 2)):
        monkeypatch.setattr("understudy.service.machine.cores", lambda cores=cores: cores)
        assert TrainerSettings().threads == threads
