"""A variant dies at a station, the cause is repaired, its dead letter is replayed: the run ends as if nothing had happened.

The bus, the consumer loop, the evaluator, the ledger and the commands are real; the model's answers are not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from services.evaluator.handlers import Evaluator
from services.evaluator.join import newest_report
from services.evaluator.predict import Asker
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import ModelTrained, RunRequested, TrainingRequested
from understudy.belt.folds.runs import Ledger, RunState
from understudy.belt.loop import Loop
from understudy_cli import main

Cli = Callable[..., tuple[int, str, str]]
VARIANTS = ("base", "tuned", "broad")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`cli("topics")` -> (exit code, stdout, stderr), on the data folder of this test."""
    monkeypatch.setenv("UNDERSTUDY_DATA", str(tmp_path))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return run


def state(bus: EmbeddedBus) -> RunState:
    found = Ledger(bus).load().run("r1")
    assert found
    return found


@contextmanager
def station(bus: EmbeddedBus, world: Any, url: str) -> Iterator[None]:
    """The evaluator at work."""
    work = world.folder / "work"
    work.mkdir(exist_ok=True)
    handlers = Evaluator(world.store, Asker(url, 8), work).handlers()
    loop = Loop(bus, "evaluator", handlers, backoff=0.01, attempts=2)
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield
    finally:
        loop.stop.set()
        thread.join(20)


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def bring(bus: EmbeddedBus, world: Any) -> None:
    """What the stations before the evaluator say of a run."""
    bus.publish(RunRequested(run="r1", recipe=world.recipe))
    for variant in VARIANTS:
        served = world.served(variant)
        asked = TrainingRequested(run="r1", variant=variant, recipe=world.recipe, datasets=world.datasets)
        for message in (asked, ModelTrained.following(asked, adapter=served.adapter), served):
            bus.publish(message)


def test_repaired_and_replayed_the_run_ends_with_all_variants(
    tmp_path: Path, world_of: Any, endpoint: Any, cli: Cli
) -> None:
    undisturbed = world_of(tmp_path / "undisturbed", rows=12)
    bus = EmbeddedBus(tmp_path / "undisturbed.sqlite")
    bring(bus, undisturbed)
    with station(bus, undisturbed, endpoint.url):
        until(lambda: state(bus).status == "finished")
    expected = state(bus)

    world = world_of(tmp_path / "world", rows=12)
    bus = EmbeddedBus(tmp_path / "bus.sqlite")
    endpoint.missing = {"tuned"}
    bring(bus, world)
    with station(bus, world, endpoint.url):
        until(lambda: state(bus).status == "finished")
        first = state(bus)
        assert first.variants["tuned"].stage == "failed"
        assert "no model tuned" in (first.variants["tuned"].reason or "")

        code, out, _ = cli("deadletters", "list")
        [row] = out.splitlines()[1:]
        name = row.split()[0]
        assert code == 0
        assert all(word in row for word in ("open", "r1", "tuned", "evaluator", "model-served", "no model tuned"))
        assert '"variant": "tuned"' in cli("deadletters", "show", name)[1]
        rows = {row["topic"]: row for row in json.loads(cli("topics", "--json")[1])}
        assert (rows["model-served"]["messages"], rows["model-served"]["lag"]) == (3, {"evaluator": 0})
        assert (rows["model-served"]["dead_letters"], rows["model-served"]["open"]) == (1, 1)

        endpoint.missing = set()
        code, out, _ = cli("deadletters", "replay", "--all")
        assert code == 0
        assert f"{name} is on model-served again: r1 tuned" in out
        seen = []
        while not seen or seen[-1] != "finished":
            seen.append(state(bus).status)
            assert len(seen) < 2000
        assert set(seen) == {"running", "finished"}
    last = state(bus)
    assert {name: v.stage for name, v in last.variants.items()} == dict.fromkeys(VARIANTS, "scored")
    assert expected.report
    assert last.report
    assert last.report.sha256 == expected.report.sha256 != (first.report and first.report.sha256)
    assert newest_report(world.store, "r1") == last.report
    assert last.model_dump(exclude={"created_at", "report"}) == expected.model_dump(exclude={"created_at", "report"})

    code, out, err = cli("deadletters", "replay", "--all")
    assert (code, out) == (0, "")
    assert "1 replayed before" in err
    code, _, err = cli("deadletters", "replay", name)
    assert code == 1
    assert "was replayed before" in err
    rows = {row["topic"]: row for row in json.loads(cli("topics", "--json")[1])}
    assert (rows["model-served"]["messages"], rows["model-served"]["open"]) == (4, 0), "published again, and only once"


def test_what_dies_again_is_a_new_dead_letter(tmp_path: Path, world_of: Any, endpoint: Any, cli: Cli) -> None:
    world = world_of(tmp_path / "world", rows=12)
    bus = EmbeddedBus(tmp_path / "bus.sqlite")
    endpoint.missing = set(VARIANTS)
    bring(bus, world)
    with station(bus, world, endpoint.url):
        until(lambda: state(bus).status == "failed")
        assert cli("deadletters", "replay", "--all")[0] == 0
        until(lambda: len(json.loads(cli("deadletters", "list", "--json")[1])) == 6 and state(bus).status == "failed")
        letters = json.loads(cli("deadletters", "list", "--json")[1])
        assert [letter["status"] for letter in letters] == ["replayed"] * 3 + ["open"] * 3
        endpoint.missing = {"base", "broad"}
        [tuned] = [each["id"] for each in letters if (each["variant"], each["status"]) == ("tuned", "open")]
        assert cli("deadletters", "replay", tuned)[0] == 0
        until(lambda: state(bus).status == "finished")
    last = state(bus)
    assert {name: v.stage for name, v in last.variants.items()} == {
        "base": "failed",
        "tuned": "scored",
        "broad": "failed",
    }
    assert last.report == newest_report(world.store, "r1")
