"""Several replicas of the real services share the work of two runs on a real broker; some are killed, one freezes, and what
comes out is what one undisturbed stack makes of the same recipe.

Three datagens, two trainers, two gateways in front of one engine, one evaluator: each a process, no supervisor.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import kafka_broker
import pytest
import yaml
from belt import ROOT, Belt

from understudy.belt.bus.kafka import KafkaBus
from understudy.belt.topics import TABLE
from understudy.service.child import Child
from understudy.service.ports import free_ports
from understudy_cli.client import Gateway
from understudy_cli.prepare import prepare, upload

SEALED = "checkpoints/*/complete.json"
pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]


class Replicas:
    """The processes, by name; all on one data folder and one Kafka prefix."""

    def __init__(self, servers: str, data: Path) -> None:
        self.prefix = f"test-{uuid.uuid4().hex[:8]}-"
        self.data = data
        self.bus = KafkaBus(servers, prefix=self.prefix)
        names = ["engine", "datagen-a", "datagen-b", "datagen-c", "trainer-a", "trainer-b"]
        names += ["inference-a", "inference-b", "evaluator-a"]
        self.url = {name: f"http://127.0.0.1:{port}" for name, port in zip(names, free_ports(len(names)), strict=True)}
        self._environment = {
            "UNDERSTUDY_BUS": servers,
            "UNDERSTUDY_BUS_PREFIX": self.prefix,
            "UNDERSTUDY_DATA": str(data),
            "UNDERSTUDY_BASE": "seedling",
            "UNDERSTUDY_GATEWAY": self.url["inference-a"],
            "UNDERSTUDY_ENGINE_URL": self.url["engine"],
            "UNDERSTUDY_DATAGEN_URL": self.url["datagen-a"],
            "UNDERSTUDY_TRAINER_URL": self.url["trainer-b"],
            "UNDERSTUDY_EVALUATOR_URL": self.url["evaluator-a"],
            "PYTHONPATH": str(ROOT),
        }
        self.processes = {name: self._start(name) for name in names}

    def _start(self, name: str) -> Child:
        service, _, member = name.partition("-")
        module = f"services.{service}" if member else "services.inference.launch"
        port = self.url[name].rsplit(":", 1)[1]
        env = self._environment | {"UNDERSTUDY_PORT": port, "UNDERSTUDY_MEMBER": member or "0"}
        return Child([sys.executable, "-m", module], log=self.data / "logs" / f"{name}.log", env=env, cwd=ROOT)

    def send(self, name: str, number: signal.Signals) -> None:
        os.killpg(self.processes[name].pid, number)

    def until(self, what: str, holds: Callable[[], bool], patience: float = 300) -> None:
        deadline = time.monotonic() + patience
        while not holds():
            assert time.monotonic() < deadline, f"Not within {patience:.0f} s: {what}"
            time.sleep(0.2)

    def ready(self, name: str) -> bool:
        try:
            return httpx.get(self.url[name] + ("/health" if name == "engine" else "/readyz")).status_code == 200
        except httpx.HTTPError:
            return False

    def left(self, member: str, what: str) -> bool:
        """Whether a trainer has left `what` in one of its jobs."""
        return any((self.data / "work" / "trainer" / member).glob(f"*/*/{what}"))

    def close(self) -> None:
        for name, process in self.processes.items():
            if process.poll() is None:
                self.send(name, signal.SIGCONT)
            process.stop()
        self.bus.close()


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[Replicas]:
    with kafka_broker.any_broker(tmp_path / "broker") as servers:
        group = Replicas(servers, tmp_path / "data")
        yield group
        group.close()


def test_replicas_share_hand_over_and_double_nothing(
    replicas: Replicas, tmp_path: Path, undisturbed: tuple[Belt, str]
) -> None:
    recipes = [undisturbed[0].recipe, tmp_path / "other.yaml"]
    other = yaml.safe_load(recipes[0].read_text()) | {"name": "other"}
    for dataset in other["datasets"].values():
        dataset["rows"] = {"train": 32, "validation": 0, "test": 8}
    recipes[1].write_text(yaml.safe_dump(other))
    for name in replicas.processes:
        replicas.until(f"{name} is ready", lambda name=name: replicas.ready(name))  # type: ignore[misc]
    gateways = [Gateway(replicas.url[f"inference-{member}"]) for member in "ab"]

    replicas.send("datagen-b", signal.SIGSTOP)  # slow beyond measure: nobody waits for it longer than its session
    runs = []
    for recipe, gateway in zip(recipes, gateways, strict=True):
        runs.append(gateway.start(upload(prepare(recipe), gateway.upload)).id)
    replicas.until("both trainers train", lambda: all(replicas.left(member, "train.log") for member in "ab"))
    replicas.until("one has a checkpoint", lambda: any(replicas.left(member, SEALED) for member in "ab"))
    replicas.send("trainer-a" if replicas.left("a", SEALED) else "trainer-b", signal.SIGKILL)
    replicas.send("datagen-c", signal.SIGKILL)

    def finished() -> bool:
        return all(gateways[1].run(run).status == "finished" for run in runs)

    replicas.until("both runs are finished", finished)
    replicas.send("datagen-b", signal.SIGCONT)
    time.sleep(3)  # what it held, it may try to finish now

    counts = Counter(record.topic for record in replicas.bus.replay([topic.name for topic in TABLE]) if record)
    del counts["progress"]
    assert counts == {
        "item-planned": 6,
        "run-requested": 2,
        "run-control": 8,
        "training-requested": 4,
        "serving-requested": 6,
        "scoring-requested": 6,
        "report-requested": 2,
        "model-served": 6,
        "run-closed": 2,
    }
    assert {topic: lag for name in ("datagen", "trainer") for topic, lag in replicas.bus.lag(name).items() if lag} == {}
    ours = Belt(recipes[0], replicas.data).artifacts()
    assert {key: digest for key, digest in ours.items() if key.startswith(runs[0])} == undisturbed[0].artifacts()

    answers = [
        [
            httpx.post(f"{gateway.url}/v1/chat/completions", json=question(model), timeout=60).json()["choices"]
            for model in gateway.models()
        ]
        for gateway in gateways
    ]
    assert gateways[0].models() == gateways[1].models()
    assert len(answers[0]) == 1 + 4
    assert json.dumps(answers[0]) == json.dumps(answers[1])


def question(model: str) -> dict[str, object]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": "Is this positive or negative? Broke after a week."}],
        "temperature": 0,
        "max_tokens": 8,
    }
