"""Inference with the real engine: warm, serve, gate, delete, survive kill -9, leave nothing behind.

One service for all, in order.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from services.inference import folder as folder_module
from services.inference.client import EngineClient
from services.inference.folder import Folder
from services.inference.local import CORE_GONE, CORE_SAID
from understudy.bases import planned
from understudy.belt import requests
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import ItemFailed, ItemServed, ModelServed, ServingRequested, decode
from understudy.errors import Invalid
from understudy.plan import Item, Plan
from understudy.recipe import Training
from understudy.service.ports import free_ports
from understudy.settings import PROJECT
from understudy.store import keys
from understudy.store.artifacts import FsspecArtifactStore
from understudy.store.plans import put_plan
from understudy.terms import Artifact

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

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def token(self) -> str:
        return (self.folder / "data" / "internal-token").read_text().strip()

    def engine(self, base: str = "tiny") -> str:
        """URL of the engine itself."""
        line, *_ = self.processes(
            "api_server.entry", f"engine-{base}"
        ).values()  # of the server, or of who looks after it
        return f"http://127.0.0.1:{line.split('--port ')[1].split()[0]}"

    def bus(self) -> EmbeddedBus:
        return EmbeddedBus(self.folder / "data" / "bus.sqlite")

    def store(self) -> FsspecArtifactStore:
        return FsspecArtifactStore((self.folder / "data" / "artifacts").resolve().as_uri(), self.folder / "cache")

    def plan(self, *bases: str) -> Plan:
        """On these bases, each with itself and twenty adapters, whose ride ends when they answer."""
        items = []
        for number, base in enumerate(bases):
            items.append(Item(name=f"base@{base}", base=number, ends_at="served"))
            for name in ("one", "two", "wrong", "w0", *(f"v{count}" for count in range(18))):
                items.append(Item(name=f"{name}@{base}", base=number, training=Training(), ends_at="served"))
        return Plan(name="films", bases=tuple(planned(base, self.models) for base in bases), items=tuple(items))

    def ask(self, plan: Plan, item: str, adapter: str | None = None, run: str = "r") -> None:
        """Publish what the trainer or the closer would, with one of the made adapters."""
        made: Artifact | None = None
        if adapter:
            made = self.store().put(keys.adapter(run, item), self.models / "adapters" / adapter)
        index = [each.name for each in plan.items].index(item)
        about = {"run": run, "item": item, "index": index, "base": plan.items[index].base, "adapter": made}
        self.bus().publish(ServingRequested.model_validate(about | {"plan": put_plan(self.store(), run, plan)}))

    def answers(self, *items: str, run: str = "r") -> dict[str, ModelServed | ItemFailed]:
        """What inference says about these items, in the order in which it does."""
        facts: dict[str, ModelServed | ItemFailed] = {}
        for record in self.bus().replay(["model-served", "run-control"], follow=True):
            fact = decode(record.value) if record else None
            if isinstance(fact, ModelServed | ItemFailed) and fact.run == run and fact.item in items:
                facts.setdefault(fact.item, fact)
            if len(facts) == len(items):
                return facts
        raise AssertionError

    def served(self, plan: Plan, *items: tuple[str, str | None], run: str = "r") -> list[str]:
        """Have these items served; the names of their models."""
        for item, adapter in items:
            self.ask(plan, item, adapter, run)
        models = []
        facts = self.answers(*(item for item, _ in items), run=run)
        for item, _ in items:
            fact = facts[item]
            assert isinstance(fact, ModelServed), fact
            models.append(fact.model)
        return models

    def processes(self, name: str = "", log: str = "") -> dict[int, str]:
        """Pid -> command of what is alive of this service, has `name` in its command and writes to a log called so."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                # The engine core overwrites its environment with its title, but all write to a log of this folder.
                output = os.readlink(entry / "fd/2")  # noqa: PTH115
                mine = str(self.folder) in output and log in output
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            if mine and command and name in command:
                found[int(entry.name)] = command
        return found


def start(folder: Path, port: int, **settings: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "UNDERSTUDY_DATA": str(folder / "data"), "UNDERSTUDY_MODELS": str(folder / "models")}
    env |= {"UNDERSTUDY_PORT": str(port), "UNDERSTUDY_HOLD_SECONDS": "240", "PYTHONPATH": str(PROJECT)} | settings
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


def engines(service: Running) -> dict[str, str]:
    listed = httpx.get(f"{service.url}/v1/engines", trust_env=False).json()["data"]
    return {engine["base"]: engine["state"] for engine in listed}


def test_the_engine_of_an_open_run_is_warm_before_its_first_item_comes(service: Running) -> None:
    requests.begin(service.bus(), service.store(), "warm", service.plan("tiny"))
    until(lambda: engines(service) == {"tiny": "ready"}, 120)


def test_an_engine_answers_nobody_but_us_and_says_what_it_has_in_hand(service: Running) -> None:
    """All that it offers, its own doors for SageMaker among them: vLLM's key alone leaves most of these open."""
    url, mine = service.engine(), {"authorization": f"Bearer {service.token}"}
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as web:
        for path in (
            "/invocations",
            "/tokenize",
            "/v1/completions",
            "/v1/load_lora_adapter",
            "/v1/responses",
            "/nowhere",
        ):
            assert web.post(path, json={"model": "tiny", "prompt": "x"}).status_code == 401, path
        for path in ("/v1/models", "/version", "/ping", "/load", "/docs", "/openapi.json"):
            assert web.get(path).status_code == 401, path
        assert web.get("/openapi.json", headers=mine).status_code == 404
        assert web.get("/metrics").status_code == 200
        assert web.get("/health", headers={"host": "rebound.example"}).status_code == 403
        assert web.get("/health").headers["x-understudy-under-way"] == "0"
        long = {"model": "tiny", "prompt": [[5]] * 64, "max_tokens": 400, "ignore_eos": True}
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(
                lambda: httpx.post(f"{url}/v1/completions", json=long, headers=mine, timeout=300, trust_env=False)
            )
            until(lambda: web.get("/health").headers["x-understudy-under-way"] == "1", 10)
            assert asked.result().status_code == 200
        assert web.get("/health").headers["x-understudy-under-way"] == "0"
        many = web.post("/v1/completions", json={"model": "tiny", "prompt": "x", "n": 129}, headers=mine)
        assert many.status_code == 400
        beams = {"model": "tiny", "prompt": "x", "n": 129, "use_beam_search": True, "temperature": 0}
        assert web.post("/v1/completions", json=beams, headers=mine).status_code == 400
        prompts = {"model": "tiny", "prompt": ["x"] * 257, "max_tokens": 1}
        assert web.post("/v1/completions", json=prompts, headers=mine).status_code == 400


def test_base_and_adapters_answer_the_unmodified_sdk(service: Running, client: openai.OpenAI) -> None:
    plan = service.plan("tiny")
    models = service.served(plan, ("base@tiny", None), ("one@tiny", "one"), ("two@tiny", "two"))
    for model in models:
        streamed = client.chat.completions.create(
            model=model, messages=TURNS, max_tokens=12, temperature=0, seed=1, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices)
        assert text == say(client, model)
    listed = {model.id: model.model_extra or {} for model in client.models.list()}
    assert [listed[model]["parent"] for model in models] == [None, "tiny", "tiny"]
    assert len({say(client, model) for model in listed}) == 3, "base and both adapters answer differently"
    ends = [decode(record.value) for record in service.bus().replay(["run-control"]) if record]
    assert {end.item for end in ends if isinstance(end, ItemServed)} == {"base@tiny", "one@tiny", "two@tiny"}


def test_an_adapter_with_another_ones_probes_fails_the_gate(service: Running, client: openai.OpenAI) -> None:
    service.ask(service.plan("tiny"), "wrong@tiny", "wrong", run="wrong")
    (fact,) = service.answers("wrong@tiny", run="wrong").values()
    assert isinstance(fact, ItemFailed)
    assert "otherwise than training did" in fact.reason
    assert not [model.id for model in client.models.list() if ":wrong@" in model.id]


@pytest.mark.parametrize("share", [0.02, 0.5, 2, -1])
def test_an_engine_that_applies_another_share_of_an_adapter_fails_the_gate(service: Running, share: float) -> None:
    """What it computes with an adapter whose scaling was changed after its probes were measured."""
    altered(service, "one", "share", lora_alpha=32 * share)
    run = f"share-{share}"
    service.ask(service.plan("tiny"), "v0@tiny", "share", run=run)
    (fact,) = service.answers("v0@tiny", run=run).values()
    assert isinstance(fact, ItemFailed)
    assert "otherwise than training did" in fact.reason


def test_what_the_gate_measured_is_said(service: Running) -> None:
    (fact,) = service.answers("one@tiny").values()
    assert isinstance(fact, ModelServed)
    assert fact.gate
    assert fact.gate.slope == 1
    assert fact.gate.effect_nats == fact.gate.trained_effect_nats
    assert fact.gate.noise_nats < 1e-4 < fact.gate.effect_nats


def test_an_adapter_that_the_engine_cannot_load_fails_with_the_engines_reason(service: Running) -> None:
    altered(service, "one", "large", r=32)
    service.ask(service.plan("tiny"), "v0@tiny", "large", run="large")
    (fact,) = service.answers("v0@tiny", run="large").values()
    assert isinstance(fact, ItemFailed)
    assert "rank 32 is greater than max_lora_rank 16" in fact.reason


def test_no_name_leads_the_engine_out_of_its_folder(service: Running, client: openai.OpenAI) -> None:
    """It would load what it is asked for: the made adapter, from where it lies."""
    inside = service.folder / "data" / "served" / "x"
    name = os.path.relpath(service.models / "adapters" / "one", inside.parent)
    with pytest.raises(openai.NotFoundError):
        say(client, name)


def altered(service: Running, adapter: str, name: str, **config: float) -> None:
    """One of the made adapters with another configuration, called `name`."""
    folder = service.models / "adapters" / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(service.models / "adapters" / adapter, folder)
    written = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(written | config))


def logprobs(service: Running, model: str, count: int = 12) -> list[list[float]]:
    request = {
        "model": model,
        "prompt": [[*range(5, 12 + n)] for n in range(count)],
        "max_tokens": 1,
        "prompt_logprobs": 0,
    }
    answer = httpx.post(f"{service.url}/v1/completions", json=request, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    choices = sorted(answer.json()["choices"], key=lambda choice: choice["index"])
    return [[next(iter(t.values()))["logprob"] for t in choice["prompt_logprobs"] if t] for choice in choices]


def test_each_model_computes_the_same_alone_and_beside_all_others(service: Running) -> None:
    """vLLM's CPU code took a place in an array for "no adapter", see LAUNCH in launch.py: the base was off by 0.7 nats per
    token, but only with as many adapters as there are places. And log-probabilities of many requests at once ended it,
    see TARGETS there."""
    others = service.served(service.plan("tiny"), ("v0@tiny", "one"), ("v1@tiny", "two"))
    models = ["tiny", *others, *(m["id"] for m in httpx.get(f"{service.url}/v1/models").json()["data"])]
    models = sorted(set(models))
    assert len(models) == 5
    alone = {model: logprobs(service, model) for model in models}
    with ThreadPoolExecutor(10) as pool:
        beside = list(pool.map(lambda model: (model, logprobs(service, model)), models * 8))
    for model, measured in beside:
        off = max(abs(a - b) for x, y in zip(measured, alone[model], strict=True) for a, b in zip(x, y, strict=True))
        assert off < 1e-4, f"{model} differs by {off}"


def test_an_adapter_is_read_again_although_the_stores_copy_is_gone(service: Running, client: openai.OpenAI) -> None:
    """The engine keeps sixteen; for one more it forgets one, whose folder the store may have removed meanwhile."""
    first, *_ = service.served(service.plan("tiny"), *((f"v{count}@tiny", "one") for count in range(18)), run="many")
    (core,) = service.processes("EngineCore", "engine-tiny")
    for copy in (service.folder / "data" / "cache").iterdir():
        shutil.rmtree(copy)
    assert say(client, first)
    assert [*service.processes("EngineCore", "engine-tiny")] == [core]


def test_models_of_a_deleted_run_are_gone_and_the_engine_is_not(service: Running, client: openai.OpenAI) -> None:
    (core,) = service.processes("EngineCore", "engine-tiny")
    mine = [model.id for model in client.models.list() if ":v5@" in model.id]
    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(lambda: say(client, mine[0])) for _ in range(12)]
        requests.delete(service.bus(), service.store(), "many", 1)
        for each in asking:
            if error := each.exception():  # asked too late
                assert isinstance(error, openai.NotFoundError)
    until(lambda: not [model.id for model in client.models.list() if ":v5@" in model.id], 5)
    with pytest.raises(openai.NotFoundError):
        say(client, mine[0])
    assert say(client, "tiny")
    assert [*service.processes("EngineCore", "engine-tiny")] == [core]


def test_retiring_an_adapter_that_was_used_does_not_end_the_engine(
    service: Running, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the service does it, without the ten minutes. Removed before it is unloaded, it would end all models at the next request."""
    name = service.served(service.plan("tiny"), ("w0@tiny", "one"), run="retired")[0]
    assert say(client, name)
    (core,) = service.processes("EngineCore", "engine-tiny")
    monkeypatch.setattr(folder_module, "GRACE", -1.0)
    served = Folder(service.folder / "data" / "served", service.store())
    others = {path.name for path in (service.folder / "data" / "served").glob("ft:*")} - {name}
    with EngineClient(service.engine(), service.token) as direct:
        served.retire({*others, *served_attempts(service)}, direct.unload)
        assert not served.path(name).exists()
        with pytest.raises(Invalid, match="does not exist"):
            direct.prompt_logprobs(name, [[5, 6, 7]])
    assert say(client, "tiny")
    assert [*service.processes("EngineCore", "engine-tiny")] == [core]


def served_attempts(service: Running) -> set[str]:
    return {f".gate/{path.name}" for path in (service.folder / "data" / "served" / ".gate").iterdir()}


def test_a_base_with_damaged_weights_holds_up_nobody_else(service: Running, client: openai.OpenAI) -> None:
    shutil.copytree(service.models / "tiny", service.models / "damaged")
    weights = service.models / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    plan = service.plan("damaged", "tiny")
    service.ask(plan, "base@damaged", run="half")
    until(lambda: "damaged" in engines(service), 10)
    service.ask(plan, "one@tiny", "one", run="half")
    (fact,) = service.answers("one@tiny", run="half").values()
    assert isinstance(fact, ModelServed)
    assert say(client, fact.model)
    assert engines(service)["damaged"] == "starting"


@pytest.mark.long
def test_an_engine_that_is_killed_also_while_it_starts_comes_back_and_has_every_adapter(
    service: Running, client: openai.OpenAI
) -> None:
    (adapter,) = [model.id for model in client.models.list() if ":one@" in model.id]
    before = say(client, adapter)
    (core,) = service.processes("EngineCore", "engine-tiny")
    os.kill(core, signal.SIGKILL)
    until(lambda: engines(service)["tiny"] != "ready", 60)
    until(lambda: service.processes("EngineCore", "engine-tiny").keys() - {core}, 120)
    (second,) = service.processes("EngineCore", "engine-tiny").keys() - {core}
    os.kill(second, signal.SIGKILL)
    assert engines(service)["tiny"] == "starting"
    assert say(client, adapter) == before, "the request waited for the engine"
    log = (service.folder / "data" / "logs" / "engine-tiny.log").read_text().rpartition("Failed core proc(s)")[0]
    life = log[log.rindex(" version 0.") :]
    assert CORE_GONE.search(life), "the server says that its core has ended"
    assert not CORE_SAID.search(life), "which did not say why: so it counts as chance"


@pytest.mark.long
def test_a_base_with_damaged_weights_fails_its_items_alone(service: Running) -> None:
    (fact,) = service.answers("base@damaged", run="half").values()
    assert isinstance(fact, ItemFailed)
    assert "SafetensorError" in fact.reason
    assert engines(service) == {"tiny": "ready", "damaged": "failing"}


def test_a_killed_service_leaves_nothing_behind_and_remembers_its_models(
    service: Running, client: openai.OpenAI
) -> None:
    models = {model.id for model in client.models.list()}
    service.process.kill()
    service.process.wait(5)
    until(lambda: not service.processes(), 10)
    service.process = start(service.folder, service.port)
    until(lambda: answers(service.url), 60)
    assert models <= {model.id for model in client.models.list()}, (
        "a base that came into the folder since may be there too"
    )


@pytest.mark.long
def test_of_five_hundred_adapters_each_answers_its_first_request_after_the_engine_has_restarted(
    service: Running, client: openai.OpenAI
) -> None:
    """An engine has room for sixteen at a time. They were served long ago; nothing but log and store knows of them."""
    source = service.models / "adapters" / "one"
    weights = (source / "adapter_model.safetensors").read_bytes()
    header = 8 + int.from_bytes(weights[:8], "little")
    messages = []
    for number in range(500):
        folder = service.models / "adapters" / "each"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        changed = np.frombuffer(weights[header:], dtype="<f4") * np.float32(1 + number / 500)
        (folder / "adapter_model.safetensors").write_bytes(weights[:header] + changed.tobytes())
        adapter = service.store().put(keys.adapter("hundreds", f"i{number}"), folder)
        about = {"run": "hundreds", "item": f"i{number}", "model": f"ft:tiny:films:i{number}:{adapter.sha256[:8]}"}
        messages.append(ModelServed(**about, base="tiny", parent="tiny", rank=8, adapter=adapter))
    service.bus().publish(*messages)
    assert say(client, "tiny")
    (core,) = service.processes("EngineCore", "engine-tiny")
    os.kill(core, signal.SIGKILL)
    until(lambda: engines(service)["tiny"] != "ready", 30)
    with ThreadPoolExecutor(4) as pool:
        answered = list(pool.map(lambda message: logprobs(service, message.model, 1)[0][0], messages))
    assert len({round(value, 4) for value in answered}) > 450, "each with its own weights"
    assert logprobs(service, messages[0].model, 1)[0][0] == pytest.approx(answered[0], abs=1e-4)


def test_two_bases_share_the_one_place_for_an_engine(tmp_path: Path) -> None:
    """Their items and their requests: never two at once, and all come through."""
    pytest.importorskip("vllm")
    subprocess.run([sys.executable, str(Path(__file__).with_name("tiny.py")), str(tmp_path / "models")], check=True)
    shutil.copytree(tmp_path / "models" / "tiny", tmp_path / "models" / "other")
    (port,) = free_ports(1)
    running = Running(tmp_path, port, start(tmp_path, port, UNDERSTUDY_MAX_ENGINES="1"))
    most: list[int] = []
    try:
        until(lambda: answers(running.url), 60)
        with ThreadPoolExecutor(1) as pool:
            serving = pool.submit(
                lambda: [
                    running.served(running.plan(base), (f"base@{base}", None), run=base) for base in ("other", "tiny")
                ]
            )
            while not serving.done():
                most.append(len(running.processes("EngineCore")))
                time.sleep(0.2)
            assert serving.result() == [["other"], ["tiny"]]
        for base in ("other", "tiny"):
            asked = {"model": base, "prompt": "the acting", "max_tokens": 4}
            answer = httpx.post(f"{running.url}/v1/completions", json=asked, timeout=300, trust_env=False)
            assert answer.status_code == 200, answer.text
            most.append(len(running.processes("EngineCore")))
        assert max(most) == 1
    finally:
        running.process.terminate()
        running.process.wait(20)
