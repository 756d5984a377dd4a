"""Which model is on which engine, what a restart on an empty disk remembers, and that look-ups stay look-ups."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from services.inference import fleet as module
from services.inference.fleet import Fleet
from services.inference.folder import GRACE
from services.inference.keeper import Keeper
from services.inference.settings import InferenceSettings
from understudy.bases import Base
from understudy.belt.contracts import ModelServed, RunDeleted
from understudy.errors import Invalid, NotFound
from understudy.plan import Plan
from understudy.service.child import Child
from understudy.store.artifacts import FsspecArtifactStore
from understudy.terms import Artifact

MakeBase = Callable[..., Base]
Served = Callable[..., ModelServed]
Put = Callable[..., Artifact]
Eventually = Callable[..., None]


@pytest.mark.usefixtures("keeper")
def test_a_served_model_is_brought_up_when_it_is_wanted(
    fleet: Fleet, base: Base, served: Served, put: Put, eventually: Eventually
) -> None:
    """Also after a restart, and one that another replica served: the log is all that it takes."""
    served("ft:one", put("one"))
    served("ft:two", put("two"))
    assert fleet.route("ft:one") is None
    assert fleet.want("ft:one") is None
    eventually(lambda: fleet.route("ft:one"))
    assert fleet.route("tiny") == fleet.route("ft:one")
    assert not fleet.folder.path("ft:two").exists(), "one that nobody asks for costs nothing"
    assert fleet.want("ft:two") is None
    eventually(lambda: fleet.route("ft:two"))


@pytest.mark.usefixtures("keeper")
def test_a_bundled_base_answers_without_any_run(fleet: Fleet, make_base: MakeBase, eventually: Eventually) -> None:
    assert fleet.want("tiny") is None
    eventually(lambda: fleet.route("tiny"))
    with pytest.raises(NotFound):
        fleet.want("later")
    make_base("later")
    eventually(lambda: fleet.model("later"))
    fleet.want("later")
    eventually(lambda: fleet.route("later"))


def test_an_unknown_model_is_not_found_once_the_log_was_read(fleet: Fleet, log: Any) -> None:
    log.caught_up = False
    assert fleet.want("nobody") is None
    log.caught_up = True
    with pytest.raises(NotFound, match="GET /v1/models lists"):
        fleet.want("nobody")


def test_an_unknown_model_is_refused_by_looking_up_however_many_there_are(
    fleet: Fleet, log: Any, served: Served, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    served("ft:one", put("one"))

    def listed(*_: object) -> None:
        raise AssertionError("on the event loop nothing is listed")

    monkeypatch.setattr(log.models, "all", listed)
    monkeypatch.setattr(fleet, "models", listed)
    monkeypatch.setattr(Path, "glob", listed)
    monkeypatch.setattr(os, "scandir", listed)
    monkeypatch.setattr(Path, "stat", listed)
    assert fleet.route("nobody") is None
    with pytest.raises(NotFound):
        fleet.want("nobody")
    assert fleet.want("ft:one") is None


@pytest.mark.usefixtures("keeper")
def test_a_served_adapter_whose_folder_was_removed_is_put_there_again(
    fleet: Fleet, base: Base, served: Served, put: Put, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN", 0.1)
    name = "ft:tiny:films:v:1"
    served(name, put("one"))
    fleet.want(name)
    eventually(lambda: fleet.route(name))
    shutil.rmtree(fleet.folder.path(name))
    eventually(lambda: fleet.folder.has(name) and fleet.route(name))
    with fleet.ensure(base, 8).client() as client:
        assert client.prompt_logprobs(name, [[1, 2]]) == [[-2.0]]


def test_an_engine_that_hangs_holds_up_no_other_bases_models(
    fleet: Fleet,
    base: Base,
    served: Served,
    put: Put,
    make_base: MakeBase,
    processes: list[Child],
    idle_keeper: Keeper,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While it shall forget adapters of deleted runs. The other base's are brought up, and its old ones go."""
    monkeypatch.setattr("services.inference.client.SECONDS_UNLOAD", 0.5)
    monkeypatch.setattr("services.inference.folder.GRACE", -1.0)
    monkeypatch.setattr(module, "TIDY", 0.0)
    assert fleet.ensure(base, 8).wait_ready(10)
    other = fleet.ensure(make_base("other"), 8)
    assert other.wait_ready(10)
    old = [f"ft:tiny:films:v{number}:1" for number in range(9)]
    for name in (*old, "ft:other:films:v:1"):
        fleet.folder.put(name, put(name))
    os.killpg(processes[0].pid, signal.SIGSTOP)
    try:
        idle_keeper.start()
        served("ft:other:films:w:1", put("one"), parent="other", base="other")
        eventually(lambda: not fleet.folder.has("ft:other:films:v:1"), 8)
        fleet.want("ft:other:films:w:1")
        eventually(lambda: fleet.route("ft:other:films:w:1"), 1)
        assert all(map(fleet.folder.has, old))
    finally:
        os.killpg(processes[0].pid, signal.SIGCONT)
    eventually(lambda: not any(map(fleet.folder.has, old)))
    idle_keeper.close()


@pytest.mark.usefixtures("keeper")
def test_a_model_whose_base_is_gone_says_so_and_is_listed_all_the_same(
    fleet: Fleet, served: Served, settings: InferenceSettings, make_base: MakeBase, put: Put, eventually: Eventually
) -> None:
    served("ft:one", put("one"))
    shutil.rmtree(settings.models / "tiny")
    assert "ft:one" in [model.name for model in fleet.models()]

    def refused() -> bool:
        try:
            fleet.want("ft:one")
        except Invalid as error:
            return "no base model `tiny`" in str(error)
        return False

    eventually(refused)
    make_base("tiny")
    eventually(lambda: not refused())
    eventually(lambda: fleet.route("ft:one"))


@pytest.mark.usefixtures("keeper")
def test_an_adapter_whose_bytes_are_gone_says_so(
    fleet: Fleet, served: Served, put: Put, store: FsspecArtifactStore, eventually: Eventually
) -> None:
    served("ft:one", put("one"))
    store.delete("adapters/one")

    def why() -> str | None:
        try:
            return fleet.want("ft:one")
        except Invalid as error:
            return str(error)

    eventually(lambda: why() and "is not in the store" in str(why()))


@pytest.mark.usefixtures("keeper")
@pytest.mark.parametrize("name", ["../outside", "ft:../../outside", "..", ""])
def test_no_name_makes_an_engine_read_outside_its_folder(
    fleet: Fleet, served: Served, put: Put, tmp_path: Path, eventually: Eventually, name: str
) -> None:
    """vLLM joins whatever it is asked for to the folder. So only what is known gets there, and of that only what is a name."""
    (tmp_path / "outside").mkdir()
    with pytest.raises(NotFound):
        fleet.want(name)
    served(name, put("one"))  # as a log that somebody else wrote might say

    def refused() -> bool:
        try:
            fleet.want(name)
        except Invalid as error:
            return "cannot be the name of a model" in str(error)
        return False

    eventually(refused)
    assert fleet.route(name) is None


@pytest.mark.usefixtures("keeper")
def test_models_of_deleted_runs_disappear_and_the_engine_outlives_them(
    fleet: Fleet,
    base: Base,
    log: Any,
    served: Served,
    put: Put,
    store: FsspecArtifactStore,
    processes: list[Child],
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM ends with all its models when it has to read an adapter again whose folder is gone."""
    served("ft:tiny:one", put("one"))
    served("ft:tiny:two", put("two"), run="other")
    for name in ("ft:tiny:one", "ft:tiny:two"):
        fleet.want(name)
        eventually(lambda name=name: fleet.route(name))
    engine = fleet.ensure(base, 8)
    log.say(RunDeleted(run="r"))
    store.delete("adapters/one")  # as who deletes a run does at once
    with engine.client() as client:
        for name in ("ft:tiny:one", "ft:tiny:two"):
            client.prompt_logprobs(name, [[1, 2]])  # a request that was on its way
    eventually(lambda: fleet.route("ft:tiny:one") is None)
    with pytest.raises(NotFound):
        fleet.want("ft:tiny:one")
    assert [model.name for model in fleet.models()] == ["tiny", "ft:tiny:two"]
    assert fleet.route("ft:tiny:two")
    for path in ("ft:tiny:one", "ft:tiny:two"):
        os.utime(fleet.folder.path(path), (0, 0))
    monkeypatch.setattr(module, "TIDY", 0.0)
    eventually(lambda: engine.client().models() == {"tiny", "ft:tiny:two"})
    assert fleet.folder.path("ft:tiny:one").exists(), "unloaded first"
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + GRACE)
    eventually(lambda: not fleet.folder.path("ft:tiny:one").exists())
    with engine.client() as client:
        assert client.prompt_logprobs("ft:tiny:two", [[1, 2]]) == [[-2.0]]
        with pytest.raises(Invalid):
            client.prompt_logprobs("ft:tiny:one", [[1, 2]])
    assert processes[0].poll() is None
    assert len(processes) == 1


def test_two_bases_of_one_name_are_not_mixed_up(fleet: Fleet, base: Base, make_base: MakeBase, tmp_path: Path) -> None:
    fleet.ensure(base, 8)
    with pytest.raises(Invalid, match="same name"):
        fleet.ensure(make_base("tiny", tmp_path / "elsewhere"), 8)


def test_a_base_that_is_not_the_one_of_the_plan_is_refused(
    fleet: Fleet, plan: Callable[..., Plan], settings: InferenceSettings
) -> None:
    made = plan("tiny")
    (settings.models / "tiny" / "config.json").write_text('{"max_position_embeddings": 256}')
    with pytest.raises(Invalid, match="was changed since the run was planned"):
        fleet.of_plan(made, 0)
    assert not fleet.bases()


def test_an_engine_is_made_for_the_largest_adapter_it_has_served_or_will_get(
    fleet: Fleet, base: Base, served: Served, put: Put, plan: Callable[..., Plan]
) -> None:
    served("ft:one", put("one"), rank=64)
    assert fleet.ensure(base, 8).rank == 64
    assert fleet.ensure(*fleet.of_plan(plan("tiny", rank=128), 0)).rank == 128, (
        "before its base is served, or it would restart then"
    )


def test_many_at_once_start_one_engine(
    fleet: Fleet, base: Base, processes: list[Child], eventually: Eventually
) -> None:
    with ThreadPoolExecutor(24) as pool:
        engines = set(pool.map(lambda _: fleet.ensure(base, 8), range(48)))
    assert len(engines) == 1
    assert engines.pop().wait_ready(10)
    assert len(processes) == 1


def test_a_keeper_that_was_told_to_end_does(fleet: Fleet, keeper: Keeper) -> None:
    started = time.monotonic()
    keeper.close()
    assert time.monotonic() - started < 1
