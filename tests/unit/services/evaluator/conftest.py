"""A small run to evaluate: real artifacts in a real store, a real HTTP endpoint that answers like an engine would, and the
evaluator's lanes as its service runs them."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from services.evaluator.bootstrap import build
from services.evaluator.panels import Questionnaire, questionnaire
from services.evaluator.settings import EvaluatorSettings
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import DatasetsMade, ScoringRequested, decode
from understudy.belt.loop import Loop
from understudy.belt.topics import Group
from understudy.plan import Plan, PlannedBase, make, prompts_dataset
from understudy.recipe import parse
from understudy.records import DatasetCard, Example, Provenance, Turn, write_json, write_jsonl
from understudy.service.host import kernel
from understudy.service.ports import free_ports
from understudy.store import keys
from understudy.store.plans import Plans, put_datasets, put_plan
from understudy.terms import Artifact
from understudy.testing import local_store

LABELS = ("negative", "positive")
GOOD, BAD = ("lovely", "bright", "warm"), ("dull", "weak", "cold")
SKILL = {"base": 0.55, "tuned": 0.85, "broad": 0.75}
"""How often each model names the right class; what follows an `@` does not matter."""


@dataclass
class Endpoint:
    """An OpenAI-compatible server in a thread; what it answers depends only on model and prompt."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    hold_after: int | None = None
    """Answer so many questions, then no more until it is None again; what is asked about an answer is answered."""
    missing: set[str] = field(default_factory=set)
    """Models it does not know."""

    @property
    def asked(self) -> list[dict[str, Any]]:
        """Requests for an answer, not for how likely one is."""
        return [body for body in self.requests if "prompt_logprobs" not in body]

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/chat/completions")
        async def complete(request: Request) -> JSONResponse:
            import asyncio

            body = await request.json()
            self.requests.append(body)
            number = len(self.asked)
            while self.hold_after is not None and number > self.hold_after and "prompt_logprobs" not in body:
                await asyncio.sleep(0.01)
            if body["model"] in self.missing:
                return JSONResponse({"error": {"message": f"no model {body['model']}"}}, status_code=404)
            if "OVERLONG" in body["messages"][0]["content"]:
                return JSONResponse({"error": {"message": "maximum context length is 512"}}, status_code=400)
            await asyncio.sleep(0.002 * (number % 3))  # so that answers come out of order
            return JSONResponse(answer(body))

        return app


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """One completion: tokens are words, and a rendering is `role: words ...` per turn plus `assistant:`."""
    prompt = [turn for turn in body["messages"] if turn["role"] != "assistant"]
    ids = _tokens(" ".join(f"{turn['role']}: {turn['content']}" for turn in prompt) + " assistant:")
    reply: dict[str, Any] = {"object": "chat.completion", "model": body["model"]}
    text = _say(body["model"], prompt[-1]["content"])
    if "prompt_logprobs" in body:
        assert body["add_generation_prompt"] is False
        assert body["max_tokens"] == 1
        ids += _tokens(body["messages"][-1]["content"])
        if not body.get("continue_final_message"):
            ids += _tokens("<end> newline")
        worth = -2.0 * (1.2 - SKILL.get(body["model"].partition("@")[0], 0.5))
        reply["prompt_logprobs"] = [None, *({str(i): {"logprob": worth - i % 7 / 10}} for i in ids[1:])]
    else:
        assert body["temperature"] == 0
        assert "seed" in body
    if body.get("return_token_ids"):
        reply["prompt_token_ids"] = ids
    reply["choices"] = [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
    reply["usage"] = {"prompt_tokens": len(ids), "completion_tokens": len(text.split())}
    return reply


def _tokens(text: str) -> list[int]:
    return [int(hashlib.md5(word.encode()).hexdigest()[:4], 16) for word in text.split()]


def _say(model: str, question: str) -> str:
    dice = random.Random(f"{model}/{question}")
    model = model.partition("@")[0]
    if question.startswith("Is this remark"):
        right = "positive" if any(word in question for word in GOOD) else "negative"
        wrong = "negative" if right == "positive" else "positive"
        if model == "base" and dice.random() < 0.1:
            return "I cannot say <script>alert('x')</script>"
        return (right if dice.random() < SKILL.get(model, 0.5) else wrong).capitalize() + "."
    words = question.split()
    kept = [word for word in words if dice.random() < (0.9 if model == "base" else 0.6)]
    return " ".join([*kept, "indeed"])


@pytest.fixture(scope="module")
def endpoint_for_module() -> Iterator[Endpoint]:
    yield from serve()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    yield from serve()


def serve() -> Iterator[Endpoint]:
    state = Endpoint()
    server, thread = start(state)
    yield state
    state.hold_after = None
    server.should_exit = True
    thread.join(timeout=5)


def start(state: Endpoint) -> tuple[uvicorn.Server, threading.Thread]:
    port = free_ports(1)[0]
    state.url = f"http://127.0.0.1:{port}/v1"
    config = uvicorn.Config(state.app(), port=port, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    return server, thread


@dataclass
class World:
    """A store with the plan and the datasets of the run `r1`, ready to be evaluated."""

    folder: Path
    rows: int = 40
    bootstrap: int = 200
    base: str | tuple[str, ...] = "seedling"
    panels: bool = True

    def __post_init__(self) -> None:
        self.store = local_store(self.folder)
        self.plans = Plans(self.store)
        panels = {
            "in-domain": {
                "dataset": "remarks",
                "metrics": ["accuracy", "precision", "recall", "f1"],
                "max_tokens": 8,
            },
            "general": {"dataset": "general", "metrics": ["perplexity", "bleu", "rougeL"]},
            "out-of-sample": {"prompts": "prompts.jsonl", "metrics": ["rougeL"]},
        }
        document = {
            "name": "remarks",
            "base": list(self.base) if isinstance(self.base, tuple) else self.base,
            "datasets": {
                "remarks": {"source": "remarks.csv"},
                "general": {"source": "general.jsonl", "task": "passthrough"},
            },
            "variants": {"tuned": {"train": "remarks"}, "broad": {"train": {"remarks": 1, "general": 1}}},
            "evaluation": {"bootstrap": self.bootstrap, "panels": panels if self.panels else {}},
        }
        self.plan: Plan = make(parse(document, "test"), lambda base: PlannedBase(name=base, reference=base))
        self.datasets = {
            "remarks": self.dataset("remarks", [remark(i) for i in range(self.rows)], LABELS),
            "general": self.dataset("general", [general(i) for i in range(self.rows)]),
            prompts_dataset("out-of-sample"): self.dataset("out-of-sample", [general(i, "") for i in range(12)]),
        }
        self.made = self.begun("r1")

    def begun(self, run: str) -> DatasetsMade:
        """Another run of the same plan, with its datasets."""
        return DatasetsMade(
            run=run,
            plan=put_plan(self.store, run, self.plan),
            datasets=put_datasets(self.store, run, self.datasets),
        )

    def dataset(self, name: str, examples: list[Example], labels: tuple[str, ...] = ()) -> Artifact:
        folder = self.folder / "datasets" / name
        folder.mkdir(parents=True)
        write_jsonl(folder / "test.jsonl", examples)
        card = DatasetCard(
            name=name,
            source=f"{name}.csv",
            task="classify" if labels else "passthrough",
            labels=labels,
            rows={"train": 1200, "validation": 50, "test": len(examples)},
            rejected=7,
            seed=17,
        )
        write_json(folder / "card.json", card)
        return self.store.put(keys.dataset("r1", name), folder)

    def asking(self, item: str, made: DatasetsMade | None = None, **more: Any) -> ScoringRequested:
        """What the evaluator is asked about an item that is served under its own name."""
        made = made or self.made
        place = next(place for place, each in enumerate(self.plan.items) if each.name == item)
        return ScoringRequested(
            run=made.run,
            item=item,
            index=place,
            plan=made.plan,
            datasets=made.datasets,
            model=item,
            adapter=self.adapter(item) if self.plan.items[place].stages else None,
            **more,
        )

    def adapter(self, item: str) -> Artifact:
        folder = self.folder / "adapters" / item
        folder.mkdir(parents=True, exist_ok=True)
        dice = random.Random(item)
        loss = [(step, round(2.5 * 0.985**step + 0.9 + dice.gauss(0, 0.12), 6)) for step in range(1, 301)]
        facts = {
            "steps": 300,
            "tokens": 481_203,
            "loss": loss,
            "device": "cpu",
            "datasets": {"remarks": {"examples_seen": 4800, "tokens_seen": 481_203, "sha256": "0"}},
            "versions": {"torch": "2.13.0"},
        }
        (folder / "training.json").write_text(json.dumps(facts))
        return self.store.put(keys.adapter("r1", item), folder)


class Lanes:
    """The evaluator's lanes on a bus, with their reader, as `host.serve` runs them; `with Lanes(...) as lanes: ...`."""

    def __init__(
        self,
        bus: EmbeddedBus,
        data: Path,
        gateway: str = "http://127.0.0.1:9",
        groups: Sequence[Group] = ("evaluator", "closer", "reporter"),
        member: str = "0",
        attempts: int = 2,
        **settings: Any,
    ) -> None:
        own = EvaluatorSettings(data=data, gateway=gateway.removesuffix("/v1"), member=member, **settings)
        self.kernel = kernel(own, bus)
        self.service = build(own, self.kernel)
        self.stop = threading.Event()
        self.loops = [
            Loop(
                bus,
                lane,
                self.kernel.control,
                ready=lambda: self.kernel.reader.caught_up.wait(10),
                member=member,
                stop=self.stop,
                attempts=attempts,
                backoff=0.01,
            )
            for lane in self.service.lanes
            if lane.group in groups
        ]

    def __enter__(self) -> Lanes:
        reader = threading.Thread(target=self.kernel.reader.follow, args=(self.stop,))
        self.threads = [reader, *(threading.Thread(target=loop.run) for loop in self.loops)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()


def remark(number: int) -> Example:
    good = number % 2 == 1
    word = (GOOD if good else BAD)[number % 3]
    label = LABELS[good]
    prompt = (
        Turn(role="user", content=f"Is this remark positive or negative?\n\nThe film was {word}, say {number} people."),
    )
    return Example(
        id=f"remarks-{number}",
        prompt=prompt,
        completion=label,
        label=label,
        provenance=Provenance(source="remarks.csv", row=number, generator="template:0"),
    )


def general(number: int, tail: str = " and so on") -> Example:
    text = f"Tell me in a few words what the number {number} is good for in daily life"
    return Example(
        id=f"general-{number}",
        prompt=(Turn(role="user", content=text),),
        completion=f"{text[:40]}{tail} indeed" if tail else "",
        provenance=Provenance(source="general.jsonl", row=number, generator="passthrough"),
    )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="session")
def world_of() -> type[World]:
    """Makes worlds of any size."""
    return World


@pytest.fixture(scope="session")
def lanes() -> type[Lanes]:
    """Runs the lanes of the service."""
    return Lanes


@pytest.fixture(scope="session")
def said() -> Callable[..., list[Any]]:
    """`said(bus, "run-closed")`: what lies on these topics."""
    return lambda bus, *topics: [decode(record.value) for record in bus.replay(topics) if record]


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    """`until(lambda: ..., seconds=30)`: wait until it holds."""

    def wait(holds: Callable[[], object], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    return wait


@pytest.fixture
def bus(tmp_path: Path) -> EmbeddedBus:
    return EmbeddedBus(tmp_path / "bus.sqlite")


@pytest.fixture
def remarks(world: World) -> Questionnaire:
    """The in-domain panel's questions."""
    return questionnaire(world.store, world.plan, "in-domain", world.datasets)
