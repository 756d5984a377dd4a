"""Runs under the hands of people, on a real stack: cancelled, taken up again, asked for less than a whole ride, deleted."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from belt import ROOT, UNDERSTUDY, Belt, small_recipe

from understudy.belt import requests
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.folds.views import OVER, RunState
from understudy.embedded.stack import Stack
from understudy.plan import Item, Plan, PlannedBase
from understudy.recipe import Dataset, Panel, Rows, load
from understudy.settings import Settings
from understudy.store.artifacts import FsspecArtifactStore
from understudy_cli.client import Gateway

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def belt(tmp_path_factory: pytest.TempPathFactory) -> Belt:
    folder = tmp_path_factory.mktemp("control")
    return Belt(small_recipe(folder), folder / "data")


@pytest.fixture(scope="module")
def gateway(belt: Belt) -> Iterator[Gateway]:
    """A stack that is up."""
    with Stack(belt.data) as stack:
        stack.wait_ready()
        with Gateway(stack.url) as gateway:
            yield gateway


def understudy(belt: Belt, *arguments: str, code: int = 0) -> str:
    """One command, on the stack that is up."""
    command = [str(UNDERSTUDY), *arguments, "--data", str(belt.data)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode == code, done.stdout
    return done.stdout


def until(holds: Callable[[], object], seconds: float = 180) -> float:
    """Seconds until it held."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds
        time.sleep(0.05)
    return time.monotonic() - began


def children(belt: Belt) -> list[str]:
    return [command for command in belt.processes().values() if re.search(r"services\.trainer\.train ", command)]


def finished(gateway: Gateway, run: str) -> RunState:
    until(lambda: run in {each.id for each in gateway.runs()})
    until(lambda: gateway.run(run).status in OVER)
    return gateway.run(run)


@pytest.mark.long
def test_a_run_that_is_cancelled_in_training_ends_at_once_and_is_taken_up_again_to_the_same_bytes(
    belt: Belt, gateway: Gateway, undisturbed: tuple[Belt, str]
) -> None:
    process = belt.start()

    def training() -> bool:
        runs = gateway.runs()
        items = gateway.run(runs[0].id).items.values() if runs else ()
        return any(i.stage == "training" and i.progress and i.progress.done >= 4 for i in items)

    until(training)
    run = gateway.runs()[0].id
    assert children(belt)
    said = understudy(belt, "cancel", run)
    assert "cancel" in said.lower()
    assert until(lambda: not children(belt), 10) < 2
    state = finished(gateway, run)
    assert state.status == "cancelled"
    assert "cancelled" in {item.stage for item in state.items.values()}
    text, _ = process.communicate(timeout=60)
    assert process.returncode in (1, 3), text
    assert "cancelled" in text
    understudy(belt, "cancel", run)  # once more changes nothing
    assert gateway.run(run).generation == 1

    again = understudy(belt, "run", str(belt.recipe))
    assert "in-domain" in again
    assert gateway.run(run).generation == 2
    theirs = undisturbed[0].artifacts()
    ours = belt.artifacts()
    for kind in ("datasets", "adapters", "answers", "measures"):
        named = {key: digest for key, digest in theirs.items() if f"/{kind}/" in key}
        assert named
        assert {key: ours.get(key) for key in named} == named
    [report] = [digest for key, digest in theirs.items() if "/reports/" in key]
    assert report in {digest for key, digest in ours.items() if "/reports/" in key}, "the report is another one"


def test_one_item_that_ends_at_served_and_a_served_model_that_is_only_scored(belt: Belt, gateway: Gateway) -> None:
    """No recipe asks for these; later doors will."""
    bus, settings = EmbeddedBus(belt.data / "bus.sqlite"), Settings(data=belt.data)
    store = FsspecArtifactStore(settings.artifact_url(), settings.cache())
    training = load(belt.recipe).training
    base = PlannedBase(name="seedling", reference="seedling")
    remarks = Dataset(source=gateway.upload(ROOT / "examples/remarks.csv"), rows=Rows(train=48, validation=0, test=12))
    one = Plan(
        name="one",
        bases=(base,),
        datasets={"remarks": remarks},
        items=(
            Item(
                name="mood",
                stages=({"remarks": 1.0},),
                budget_stages=({"remarks": 1.0},),
                training=training,
                ends_at="served",
            ),
        ),
    )
    requests.begin(bus, store, "one-0000000000", one)
    served = finished(gateway, "one-0000000000")
    assert (served.status, served.items["mood"].stage, served.report) == ("finished", "served", None)
    model = served.items["mood"].model
    assert model in gateway.models()

    scoring = Plan(
        name="scoring",
        bases=(base,),
        datasets={"remarks": remarks},
        panels={"fresh": Panel(dataset="remarks", metrics=("accuracy",), max_tokens=8)},
        items=(Item(name="untouched"), Item(name="tuned", model=model, compared_with="untouched")),
    )
    requests.begin(bus, store, "scoring-0000000000", scoring)
    scored = finished(gateway, "scoring-0000000000")
    assert {item.stage for item in scored.items.values()} == {"scored"}
    assert scored.report
    report, page = gateway.report(scored)
    [panel] = report.panels
    assert panel.n == 12
    assert panel.metrics[0].cells["tuned"].delta is not None
    assert "tuned" in page
    bus.close()


def test_a_deleted_run_is_gone_with_its_models_and_bytes(belt: Belt, gateway: Gateway) -> None:
    run = next(run.id for run in gateway.runs() if run.name == "one")
    models = [item.model for item in gateway.run(run).items.values() if item.model and item.model != "seedling"]
    before = sum(path.stat().st_size for path in (belt.data / "artifacts/blobs").iterdir())
    said = understudy(belt, "delete", run, "--yes")
    assert "freed" in said
    assert run not in {each.id for each in gateway.runs()}
    assert not any(key.startswith(run) for key in belt.artifacts())
    assert sum(path.stat().st_size for path in (belt.data / "artifacts/blobs").iterdir()) < before
    until(lambda: not set(models) & set(gateway.models()), 10)
    understudy(belt, "logs", run, code=1)
