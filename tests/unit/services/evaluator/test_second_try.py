"""An item dies at a station, the cause is repaired, its dead letter is replayed: the run ends as if nothing had happened.

The bus, the loops, the evaluator, the folds and the commands are real; the model's answers are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.folds.control import Control
from understudy.belt.folds.reader import Reader
from understudy.belt.folds.runs import Runs
from understudy.belt.folds.views import RunState
from understudy.belt.requests import begin
from understudy_cli import main

Cli = Callable[..., tuple[int, str, str]]
ITEMS = ("base", "tuned", "broad")


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
    control = Control()
    runs = Runs(control)
    Reader(bus, (control, runs)).load()
    found = runs.get("r1")
    assert found
    return found


def bring(bus: EmbeddedBus, world: Any) -> None:
    """What the door and the stations before the evaluator say of a run."""
    begin(bus, world.store, "r1", world.plan)
    bus.publish(world.made, *(world.asking(item) for item in ITEMS))


def stages(run: RunState) -> dict[str, str]:
    return {name: item.stage for name, item in run.items.items()}


def test_repaired_and_replayed_the_run_ends_with_all_items(
    tmp_path: Path, world_of: Any, endpoint: Any, cli: Cli, lanes: Any, until: Any
) -> None:
    undisturbed = world_of(tmp_path / "undisturbed", rows=12)
    bus = EmbeddedBus(tmp_path / "undisturbed.sqlite")
    bring(bus, undisturbed)
    with lanes(bus, undisturbed.folder, endpoint.url):
        until(lambda: state(bus).status == "finished")
    expected = state(bus)

    world = world_of(tmp_path / "world", rows=12)
    bus = EmbeddedBus(tmp_path / "bus.sqlite")
    endpoint.missing = {"tuned"}
    bring(bus, world)
    with lanes(bus, world.folder, endpoint.url):
        until(lambda: state(bus).status == "finished")
        first = state(bus)
        assert stages(first) == {"base": "scored", "tuned": "failed", "broad": "scored"}
        assert "no model tuned" in (first.items["tuned"].reason or "")

        code, out, _ = cli("deadletters", "list")
        [row] = out.splitlines()[1:]
        name = row.split()[0]
        assert code == 0
        assert all(word in row for word in ("open", "r1", "tuned", "evaluator", "scoring-requested", "no model tuned"))
        assert '"item": "tuned"' in cli("deadletters", "show", name)[1]
        rows = {row["topic"]: row for row in json.loads(cli("topics", "--json")[1])}
        asked = rows["scoring-requested"]
        assert (asked["messages"], asked["lag"], asked["dead_letters"], asked["open"]) == (3, 0, 1, 1)

        endpoint.missing = set()
        code, out, _ = cli("deadletters", "replay", "--all")
        assert code == 0
        assert f"{name} is on scoring-requested again: r1 tuned" in out
        seen = []
        while not seen or seen[-1] != "finished":
            seen.append(state(bus).status)
            assert len(seen) < 2000
        assert set(seen) == {"running", "finished"}
    last = state(bus)
    assert stages(last) == dict.fromkeys(ITEMS, "scored")
    assert expected.report
    assert last.report
    assert last.report.sha256 == expected.report.sha256 != (first.report and first.report.sha256)
    assert last.model_dump(exclude={"created_at", "report"}) == expected.model_dump(exclude={"created_at", "report"})

    code, out, err = cli("deadletters", "replay", "--all")
    assert (code, out) == (0, "")
    assert "1 replayed before" in err
    code, _, err = cli("deadletters", "replay", name)
    assert code == 1
    assert "was replayed before" in err
    rows = {row["topic"]: row for row in json.loads(cli("topics", "--json")[1])}
    asked = rows["scoring-requested"]
    assert (asked["messages"], asked["open"]) == (4, 0), "published again, and only once"


def test_what_dies_again_is_a_new_dead_letter(
    tmp_path: Path, world_of: Any, endpoint: Any, cli: Cli, lanes: Any, until: Any
) -> None:
    world = world_of(tmp_path / "world", rows=12)
    bus = EmbeddedBus(tmp_path / "bus.sqlite")
    endpoint.missing = set(ITEMS)
    bring(bus, world)
    with lanes(bus, world.folder, endpoint.url):
        until(lambda: state(bus).status == "failed")
        assert "No item came through. base: " in (state(bus).reason or "")
        assert cli("deadletters", "replay", "--all")[0] == 0
        until(lambda: len(json.loads(cli("deadletters", "list", "--json")[1])) == 6 and state(bus).status == "failed")
        letters = json.loads(cli("deadletters", "list", "--json")[1])
        assert [letter["status"] for letter in letters] == ["replayed"] * 3 + ["open"] * 3
        endpoint.missing = {"base", "broad"}
        [tuned] = [each["id"] for each in letters if (each["item"], each["status"]) == ("tuned", "open")]
        assert cli("deadletters", "replay", tuned)[0] == 0
        until(lambda: state(bus).status == "finished")
    last = state(bus)
    assert stages(last) == {"base": "failed", "tuned": "scored", "broad": "failed"}
    assert last.report
    report = json.loads((world.store.fetch(last.report) / "report.json").read_bytes())
    assert (report["items"], report["inputs"]["failed"]) == (["tuned"], ["base", "broad"])
