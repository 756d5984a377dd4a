"""Inference with the real engine: serve, hot-load, gate, survive kill -9, leave nothing behind. One engine for all, in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import Message as Fact
from understudy.belt.contracts import ModelServed, ModelTrained, VariantFailed, decode
from understudy.embedded.ports import free_ports
from understudy.recipe import parse
from understudy.settings import PROJECT
from understudy.store.artifacts import FsspecArtifactStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TURNS: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "the acting was good"}]


@dataclass
class Running:
    """The inference service on a data folder with a tiny base and adapters for it."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bus(self) -> EmbeddedBus:
        return EmbeddedBus(self.folder / "data" / "bus.sqlite")

    def deliver(self, variant: str, adapter: str | None) -> Fact:
        """Publish ModelTrained for one of the made adapters; what inference says to it."""
        recipe = parse({"name": "films", "base": "tiny", "datasets": {"d": {"source": "d.csv"}}}, "test")
        store = FsspecArtifactStore((self.folder / "data" / "artifacts").resolve().as_uri(), self.folder / "cache")
        artifact = store.put(f"adapters/{adapter}", self.folder / "models" / "adapters" / adapter) if adapter else None
        bus = self.bus()
        bus.publish(ModelTrained(run="r", variant=variant, recipe=recipe, datasets={}, adapter=artifact))
        for record in bus.replay(["model-served", "variant-finished"], follow=True):
            fact = decode(record.value) if record else None
            if isinstance(fact, ModelServed | VariantFailed) and fact.variant == variant:
                return fact
        raise AssertionError

    def processes(self, name: str = "") -> dict[int, str]:
        """Pid -> command of everything alive that belongs to this service and has `name` in its command."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                # The engine core overwrites its environment with its title, but all write to a log of this folder.
                mine = str(self.folder) in os.readlink(entry / "fd/2")  # noqa: PTH115
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            if mine and command and name in command:
                found[int(entry.name)] = command
        return found


def start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    env = {**os.environ, "UNDERSTUDY_DATA": str(folder / "data"), "UNDERSTUDY_MODELS": str(folder / "models")}
    env |= {"UNDERSTUDY_PORT": str(port), "UNDERSTUDY_HOLD_SECONDS": "240", "PYTHONPATH": str(PROJECT)}
    with (folder / "service.log").open("ab") as log:
        command = [sys.executable, "-m", "services.inference"]
        return subprocess.Popen(command, env=env, cwd=PROJECT, stdout=log, stderr=log)


def until(holds: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    pytest.importorskip("vllm")
    folder = tmp_path_factory.mktemp("engine").resolve()
    subprocess.run([sys.executable, str(Path(__file__).with_name("tiny.py")), str(folder / "models")], check=True)
    (port,) = free_ports(1)
    running = Running(folder, port, start(folder, port))
    try:
        until(lambda: answers(running.url), 60)
        yield running
    finally:
        running.process.terminate()
        running.process.wait(20)


@pytest.fixture
def client(service: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=300)


def say(client: openai.OpenAI, model: str) -> str:
    answer = client.chat.completions.create(model=model, messages=TURNS, max_tokens=12, temperature=0, seed=1)
    assert answer.usage
    assert answer.usage.completion_tokens > 0
    return answer.choices[0].message.content or ""


def test_base_and_adapters_answer_the_unmodified_sdk(service: Running, client: openai.OpenAI) -> None:
    base = service.deliver("base", None)
    one, two = service.deliver("one", "one"), service.deliver("two", "two")
    for fact in (base, one, two):
        assert isinstance(fact, ModelServed), fact
        streamed = client.chat.completions.create(
            model=fact.model, messages=TURNS, max_tokens=12, temperature=0, seed=1, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices)
        assert text == say(client, fact.model)
    listed = {model.id: model.model_extra or {} for model in client.models.list()}
    assert [listed[f.model]["parent"] for f in (base, one, two) if isinstance(f, ModelServed)] == [None, "tiny", "tiny"]
    assert len({say(client, model) for model in listed}) == 3, "base and both adapters answer differently"


def test_an_adapter_with_another_ones_probes_fails_the_gate(service: Running, client: openai.OpenAI) -> None:
    fact = service.deliver("wrong", "wrong")
    assert isinstance(fact, VariantFailed)
    assert "otherwise than training did" in fact.reason
    assert not [model.id for model in client.models.list() if ":wrong:" in model.id]


def test_log_probabilities_of_many_requests_at_once_do_not_end_the_engine(service: Running) -> None:
    """vLLM's CPU code for adapters on lm_head does not survive this; see TARGETS in launch.py."""
    models = [card["id"] for card in httpx.get(f"{service.url}/v1/models", trust_env=False).json()["data"]]
    with httpx.Client(base_url=service.url, timeout=120, trust_env=False) as http:
        for model in models:
            prompts = [[*range(5, 10 + n)] for n in range(12)]
            request = {"model": model, "prompt": prompts, "max_tokens": 1, "prompt_logprobs": 0}
            answer = http.post("/v1/completions", json=request)
            assert answer.status_code == 200, answer.text
            choices = answer.json()["choices"]
            assert [len(choice["prompt_logprobs"]) for choice in choices] == [len(prompt) for prompt in prompts]


def test_a_killed_engine_comes_back_with_its_adapters(service: Running, client: openai.OpenAI) -> None:
    (adapter,) = [model.id for model in client.models.list() if ":one:" in model.id]
    before = say(client, adapter)
    (core,) = service.processes("EngineCore")
    os.kill(core, signal.SIGKILL)
    until(lambda: core not in service.processes("EngineCore"), 10)
    until(lambda: httpx.get(f"{service.url}/v1/engines").json()["data"][0]["state"] != "ready", 30)
    assert say(client, adapter) == before, "the request waited for the engine and the adapter"


def test_a_killed_service_leaves_nothing_behind_and_remembers_its_models(
    service: Running, client: openai.OpenAI
) -> None:
    models = {model.id for model in client.models.list()}
    service.process.kill()
    service.process.wait(5)
    until(lambda: not service.processes(), 10)
    service.process = start(service.folder, service.port)
    until(lambda: answers(service.url), 60)
    assert {model.id for model in client.models.list()} == models
