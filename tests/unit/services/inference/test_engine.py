"""One engine kept alive, against a stub that is a real process."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from services.inference.engine import Engine
from services.inference.fleet import Fleet
from services.inference.launch import become, command, environment, log_file, spawn
from services.inference.settings import InferenceSettings
from understudy.bases import PLAIN_TEMPLATE, Base, resolve
from understudy.belt.contracts import ModelServed
from understudy.embedded.ports import free_ports
from understudy.errors import Invalid
from understudy.service.child import Child
from understudy.store.artifacts import FsspecArtifactStore
from understudy.terms import Artifact

Eventually = Callable[[Callable[[], object]], None]
Served = Callable[..., ModelServed]
Put = Callable[..., Artifact]


def kill(process: Child) -> None:
    """Kill the command under the keeper, as the kernel would when memory runs out."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)


def nothing() -> dict[str, Artifact]:
    return {}


def never(_: str) -> bool:
    return False


def test_a_killed_engine_comes_back_with_its_adapters(
    fleet: Fleet, base: Base, served: Served, processes: list[Child], put: Put, eventually: Eventually
) -> None:
    engine = fleet.ensure(base, 8)
    served("ft:one", put("one"))
    fleet.admit("ft:one", engine)
    assert engine.wait_ready(10)
    engine.wake()
    eventually(lambda: "ft:one" in engine.adapters.serving)
    kill(processes[0])
    eventually(lambda: len(processes) == 2)
    assert engine.wait_ready(10)
    assert engine.adapters.serving == {"tiny", "ft:one"}
    assert engine.failure is None


def test_a_dead_engine_is_not_routed_to(
    fleet: Fleet, base: Base, processes: list[Child], eventually: Eventually
) -> None:
    engine = fleet.ensure(base, 8)
    assert engine.wait_ready(10)
    assert fleet.route("tiny") == engine.url
    kill(processes[0])
    eventually(lambda: fleet.route("tiny") is None)


def test_an_engine_that_keeps_dying_says_why_after_its_second_start(
    settings: InferenceSettings,
    make_base: Callable[..., Base],
    launch: Callable[..., Child],
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    base = make_base("broken")
    started: list[int] = []
    failures: list[str | None] = []

    def launched(base: Base, settings: InferenceSettings, port: int, rank: int) -> Child:
        started.append(port)
        failures.append(engine.failure)
        return launch(base, settings, port, rank)

    engine = Engine(base, settings, nothing, never, lambda artifact: tmp_path, launch=launched, pause=0.01)
    engine.start()
    try:
        eventually(lambda: engine.failure)
        assert failures[:2] == [None, None], "the first may have been bad luck"
        assert engine.failure
        assert "SafetensorError: incomplete metadata" in engine.failure
        assert str(log_file(settings, base)) in engine.failure
        eventually(lambda: len(started) > 2)
    finally:
        engine.close()


def test_an_engine_that_is_waited_for_ends_at_once(
    settings: InferenceSettings, make_base: Callable[..., Base], launch: Callable[..., Child], tmp_path: Path
) -> None:
    engine = Engine(make_base("slow"), settings, nothing, never, lambda artifact: tmp_path, launch=launch)
    engine.start()
    assert not engine.wait_ready(0.5)
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < 2


def test_a_larger_rank_restarts_the_engine_once(
    fleet: Fleet, base: Base, processes: list[Child], eventually: Eventually
) -> None:
    engine = fleet.ensure(base, 16)
    assert engine.wait_ready(10)
    engine.require(8)
    engine.require(16)
    assert len(processes) == 1
    engine.require(20)
    assert engine.rank == 32
    eventually(lambda: len(processes) == 2)
    assert engine.wait_ready(10)
    assert engine.failure is None


def test_an_engine_elsewhere_is_watched_and_given_its_adapters_again(
    base: Base,
    settings: InferenceSettings,
    put: Put,
    store: FsspecArtifactStore,
    eventually: Eventually,
    launch: Callable[..., Child],
) -> None:
    (port,) = free_ports(1)
    elsewhere = settings.model_copy(update={"engine_url": f"http://127.0.0.1:{port}"})
    adapter = put("one")
    first = launch(base, settings, port, 16)
    engine = Engine(base, elsewhere, lambda: {"ft:one": adapter}, never, store.fetch, pause=0.01)
    engine.start()
    try:
        assert engine.wait_ready(10)
        assert "ft:one" in engine.adapters.serving
        first.stop()
        eventually(lambda: engine.url is None)
        launch(base, settings, port, 16)
        assert engine.wait_ready(10)
        assert "ft:one" in engine.adapters.serving
    finally:
        engine.close()


def test_an_engine_elsewhere_with_another_model_is_refused(
    base: Base, settings: InferenceSettings, eventually: Eventually, tmp_path: Path, launch: Callable[..., Child]
) -> None:
    (port,) = free_ports(1)
    elsewhere = settings.model_copy(update={"engine_url": f"http://127.0.0.1:{port}"})
    launch(replace(base, name="other"), settings, port, 16)
    engine = Engine(base, elsewhere, nothing, never, lambda artifact: tmp_path, pause=0.01)
    engine.start()
    try:
        eventually(lambda: engine.failure)
        assert "serves other, not `tiny`" in str(engine.failure)
    finally:
        engine.close()


def test_the_command_line_follows_base_and_settings(settings: InferenceSettings) -> None:
    base = resolve("tiny", settings.models)
    line = command(base, settings, 1234, 32)
    option = dict(itertools.pairwise(line))
    assert option["--max-model-len"] == "512", "bounded by what the base can"
    assert option["--max-lora-rank"] == "32"
    assert "--chat-template" not in line, "the base has one of its own"
    assert "lm_head" not in line
    hub = Base(name="owner/name", path="owner/name", revision="abc", template=PLAIN_TEMPLATE)
    option = dict(itertools.pairwise(command(hub, settings, 1234, 16)))
    assert (option["--revision"], option["--tokenizer-revision"]) == ("abc", "abc")
    assert option["--chat-template"] == str(PLAIN_TEMPLATE)
    assert option["--max-model-len"] == "1024"


def test_on_a_gpu_the_engine_is_ready_for_adapters_and_nothing_holds_it_back(settings: InferenceSettings) -> None:
    base = resolve("tiny", settings.models)
    gpu = settings.model_copy(update={"engine_device": "cuda", "engine_dtype": "auto"})
    on_cpu, on_gpu = (command(base, each, 1234, 16) for each in (settings, gpu))

    def lora(line: list[str]) -> list[str]:
        return line[line.index("--enable-lora") : line.index("--lora-target-modules") + 20]

    assert lora(on_cpu) == lora(on_gpu)
    assert "--enforce-eager" in on_cpu
    assert "--enforce-eager" not in on_gpu
    assert dict(itertools.pairwise(on_gpu))["--gpu-memory-utilization"] == "0.45"
    assert environment(base, settings)["TORCH_COMPILE_DISABLE"] == "1"
    assert "TORCH_COMPILE_DISABLE" not in environment(base, gpu)


def test_an_engine_of_its_own_has_the_options_of_ours_and_answers_other_machines(
    settings: InferenceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda *call: became.append(call))
    become(settings.model_copy(update={"base": "tiny", "host": "0.0.0.0", "port": 8000, "max_lora_rank": 20}))
    [(program, line, env)] = became
    assert program == line[0] == sys.executable
    assert line == command(resolve("tiny", settings.models), settings, 8000, 32, host="0.0.0.0")
    assert env.items() >= environment(resolve("tiny", settings.models), settings).items()
    with pytest.raises(Invalid, match="UNDERSTUDY_BASE is not set"):
        become(settings)


def test_a_hub_name_makes_one_log_file(settings: InferenceSettings) -> None:
    hub = Base(name="owner/name", path="owner/name", revision="abc", template=None)
    assert log_file(settings, hub).name == "engine-owner--name.log"


def test_nothing_is_started_for_an_engine_elsewhere(settings: InferenceSettings) -> None:
    elsewhere = settings.model_copy(update={"engine_url": "http://127.0.0.1:1"})
    process = spawn(resolve("tiny", settings.models), elsewhere, 1, 16)
    assert not isinstance(process, Child)
    assert process.poll() is None


@pytest.mark.parametrize("url", ["https://host", "http://host/v1", "host:80"])
def test_an_engine_url_that_would_not_work_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ValueError, match="engine_url"):
        InferenceSettings(engine_url=url)
