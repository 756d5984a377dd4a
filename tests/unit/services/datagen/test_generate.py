"""The llm generator against a real HTTP endpoint that fails in every way it may: nothing lost, nothing paid twice, never over budget."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import REGISTRY

from services.datagen.build import Builder
from services.datagen.filters import Candidate
from services.datagen.generate import Row, Writer, Written
from services.datagen.handlers import Datagen
from services.datagen.pools import Pools
from services.datagen.sources import Bounds, Sources
from services.datagen.tasks.task import Models
from understudy.belt import requests
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import DatasetsMade, Progress, RunRequested, decode
from understudy.belt.folds.control import Control
from understudy.belt.folds.reader import Reader
from understudy.belt.loop import Loop
from understudy.errors import Invalid, Transient, Unsupported
from understudy.llm.providers import Endpoint as Named
from understudy.llm.providers import Provider, Providers
from understudy.plan import Plan, PlannedBase, make
from understudy.recipe import Generator, parse
from understudy.records import SPLITS, Example, Rejected, read_jsonl
from understudy.store.artifacts import ArtifactStore
from understudy.store.plans import Plans, put_plan
from understudy.testing import drain, local_store, uploaded

LABELS = ("negative", "positive")
GOOD = {"instruction": "Please say if this is negative or positive.", "answer": "positive"}
PROMPT_TOKENS, COMPLETION_TOKENS = 100, 20
USD = (PROMPT_TOKENS * 0.15 + COMPLETION_TOKENS * 0.60) / 1e6

HELLO = ((2 + 16) * 0.15 + 1 * 0.60) / 1e6
"""What it may cost at most to see whether the endpoint lives."""


@dataclass
class Endpoint:
    """A small OpenAI-compatible server with the faults of the day: text of the row -> answers to give before the good one."""

    url: str = ""
    faults: dict[str, list[Any]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    delay: float = 0.0
    always: Any = None
    answers: float = float("inf")
    """So many requests are answered; the others wait until who asked hangs up."""
    waiting: int = 0
    hellos: int = 0
    hello: Response = field(default_factory=lambda: JSONResponse({"choices": [{"message": {"content": "Hello"}}]}))

    async def answer(self, request: Request) -> Response:
        import asyncio

        body = await request.json()
        if len(body["messages"]) == 1:  # somebody asks whether it lives
            self.hellos += 1
            return self.hello
        shown = json.loads(body["messages"][1]["content"])
        text, good = shown["text"], GOOD | {"answer": shown["right label"]}
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization"))
        self.asked[text] += 1
        await asyncio.sleep(self.delay)
        if self.answers <= 0:
            self.waiting += 1
            while not await request.is_disconnected():
                await asyncio.sleep(0.02)
            self.waiting -= 1
            return Response()
        self.answers -= 1
        fault = self.always if self.always is not None else self.faults[text].pop(0) if self.faults.get(text) else good
        if isinstance(fault, bytes):
            return Response(fault)
        if isinstance(fault, int):
            return JSONResponse({"error": {"message": f"status {fault}"}}, fault, {"retry-after-ms": "1"})
        self.answered[text] += 1
        content = fault if isinstance(fault, str) else json.dumps(fault)
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS, "total_tokens": 0}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        return JSONResponse(
            {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
        )

    def worst(self, text: str, turn: int = 0) -> float:
        """What one request about this text may have cost at most: no tokenizer makes more tokens than bytes."""
        asked = [body for body in self.bodies if json.dumps(text) in body["messages"][1]["content"]]
        body = next(body for body in asked if len(body["messages"]) == 2 * turn + 2)
        sizes = [len(message["content"].encode()) + 16 for message in body["messages"]]
        prompt = sum(sizes) + len(str({"response_format": body["response_format"]}))
        return (prompt * 0.15 + int(body["max_tokens"]) * 0.60) / 1e6


def under_way(line: bytes) -> bool:
    """Whether it says what a row may cost, not what became of it."""
    return str(json.loads(line)["id"]).endswith(" under way")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    state, app = Endpoint(), FastAPI()
    app.add_api_route("/v1/chat/completions", state.answer, methods=["POST"])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    state.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    yield state
    server.should_exit = True
    thread.join()


def rows(count: int) -> list[Row]:
    return [Row(f"id{n}", Candidate(n, f"key{n}", f"text {n}", "positive", "positive")) for n in range(count)]


def writer(endpoint: Endpoint, work: Path, **more: Any) -> Writer:
    generator = Generator(kind="llm", model="m", **more)
    return Writer(generator, Provider(endpoint.url, None), LABELS, 17, work / "written.jsonl")


def report(done: int, total: int, figures: dict[str, float]) -> Progress:
    return Progress(run="r", station="datagen", step="s", done=done, total=total, figures=figures)


def run(job: Writer, asked: list[Row]) -> tuple[list[Written], list[Progress]]:
    said: list[Progress] = []
    steps = job.write(asked, report)
    while True:
        try:
            said.append(next(steps))
        except StopIteration as end:
            return end.value, said


def test_every_row_gets_its_instruction_whatever_the_order_of_answers(endpoint: Endpoint, tmp_path: Path) -> None:
    """429, 500 and connection trouble are retried below; malformed and wrong answers are sent back with the reason."""
    endpoint.faults = {
        "text 0": [429, 500],
        "text 1": ["not json", GOOD | {"answer": "negative"}],
        "text 2": [503],
        "text 3": [GOOD | {"instruction": "This is clearly positive"}],
    }
    written, said = run(writer(endpoint, tmp_path, concurrency=4), rows(10))
    assert [line.id for line in written] == [f"id{n}" for n in range(10)]
    assert {line.instruction for line in written} == {GOOD["instruction"]}
    assert written[1].usd == pytest.approx(3 * USD), "every answer is paid for, usable or not"
    assert endpoint.asked["text 0"] == 3
    assert said[-1].done == said[-1].total == 10
    assert said[-1].figures["cost_usd"] == pytest.approx(13 * USD + endpoint.worst("text 0")), "who worked on a 500?"
    told = [body["messages"][-1]["content"] for body in endpoint.bodies if len(body["messages"]) > 2]
    assert any("the answer is `negative` where the right label is `positive`" in text for text in told)
    assert endpoint.bodies[0]["response_format"]["type"] == "json_schema"


def test_a_row_that_never_gets_a_usable_answer_is_rejected_with_the_reason(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.faults = {"text 1": ["no"] * 9, "text 2": [400]}
    written, _ = run(writer(endpoint, tmp_path), rows(4))
    assert [line.instruction is None for line in written] == [False, True, True, False]
    assert (
        written[1].reason
        == 'no usable instruction after 3 tries: it is not JSON of the form {"instruction": "...", "answer": "..."}'
    )
    assert endpoint.asked["text 1"] == 3
    assert "status 400" in str(written[2].reason)


def test_one_bad_answer_costs_one_row_and_what_earlier_turns_cost_is_kept(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.faults = {"text 1": [b"<html>"] * 3, "text 2": ["no", 400], "text 3": ["no", b'{"choices": []}', GOOD]}
    written, said = run(writer(endpoint, tmp_path), rows(6))
    assert [line.instruction is None for line in written] == [False, True, True, False, False, False]
    assert "<html>" in str(written[1].reason)
    assert "status 400" in str(written[2].reason)
    assert [line.usd for line in written] == pytest.approx(
        [USD, 3 * endpoint.worst("text 1"), USD, 2 * USD + endpoint.worst("text 3", turn=1), USD, USD]
    )
    assert said[-1].figures["cost_usd"] == pytest.approx(sum(line.usd for line in written))


def test_a_row_that_was_not_answered_goes_on_where_it_was(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    endpoint.faults = {"text 0": ["no", 503]}
    written, _ = run(writer(endpoint, tmp_path, concurrency=1), rows(3))
    assert written[0].usd == pytest.approx(2 * USD + HELLO)
    assert endpoint.answered["text 0"] == 2, "its first turn is not paid twice"
    assert [len(body["messages"]) for body in endpoint.bodies if "text 0" in str(body["messages"])] == [2, 4, 4]


def test_what_was_paid_for_rows_that_are_cut_short_counts_against_the_budget(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    endpoint.faults, endpoint.answers = {"text 0": ["no"]}, 1
    steps = writer(endpoint, tmp_path, budget_usd=1).write(rows(1), report)
    while not endpoint.waiting:
        next(steps)
    steps.close()
    endpoint.answers = float("inf")
    _, said = run(writer(endpoint, tmp_path, budget_usd=1), rows(1))
    assert said[-1].figures["cost_usd"] == pytest.approx(2 * USD + endpoint.worst("text 0", turn=1))


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request is tried once."""
    from understudy.llm import chat

    usual = chat.ChatClient.__init__
    monkeypatch.setattr(chat.ChatClient, "__init__", lambda self, *given, **more: usual(self, *given, **more, tries=1))


def test_an_endpoint_that_refuses_everything_ends_the_job(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.always = 401
    with pytest.raises(Invalid, match="status 401"):
        run(writer(endpoint, tmp_path, concurrency=2), rows(100))
    assert sum(endpoint.asked.values()) < 10


def test_an_endpoint_that_is_gone_is_transient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    with pytest.raises(Transient, match="did not answer"):
        run(writer(Endpoint("http://127.0.0.1:9/v1"), tmp_path, concurrency=2), rows(5))


def test_the_budget_is_never_passed_and_the_first_rows_get_it(endpoint: Endpoint, tmp_path: Path) -> None:
    job = writer(endpoint, tmp_path, concurrency=4, budget_usd=0.002)
    spent = REGISTRY.get_sample_value("understudy_datagen_spend_usd_total") or 0.0
    written, said = run(job, rows(200))
    answered = sum(endpoint.answered.values())
    shown = (REGISTRY.get_sample_value("understudy_datagen_spend_usd_total") or 0.0) - spent
    assert shown == pytest.approx(answered * USD)
    made = [line for line in written if line.instruction]
    assert answered * USD <= 0.002
    assert 0 < len(made) < 200
    assert all(line.instruction for line in written[: len(made) - 4]), "asked in the order given"
    assert written[-1].reason == "the budget of $0.002 is spent"
    assert said[-1].figures["cost_usd"] == pytest.approx(answered * USD)
    again, _ = run(writer(endpoint, tmp_path, concurrency=4, budget_usd=0.002), rows(200))
    assert [(line.id, line.instruction) for line in again] == [(line.id, line.instruction) for line in written]
    assert sum(endpoint.answered.values()) == answered, "a job that ended stays ended"


@pytest.mark.parametrize("fault", [500, b"{}"], ids=["500", "no answer"])
def test_a_try_that_may_have_been_billed_is_paid_for_and_the_budget_is_kept(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    monkeypatch.setattr("understudy.llm.chat.FIRST_BACKOFF", 0.001)
    endpoint.always = fault
    _, said = run(writer(endpoint, tmp_path, concurrency=1, budget_usd=0.002), rows(100))
    tries = sum(endpoint.asked.values())
    assert tries > 2
    assert tries * endpoint.worst("text 0") <= said[-1].figures["cost_usd"] <= 0.002


def test_one_row_that_is_never_answered_costs_one_row(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    endpoint.faults = {"text 9": [500] * 99}
    written, _ = run(writer(endpoint, tmp_path, concurrency=1), rows(10))
    assert [line.instruction is None for line in written] == [False] * 9 + [True]
    assert str(written[9].reason).startswith("not answered after 3 tries, while others were: ")
    assert "status 500" in str(written[9].reason)
    assert endpoint.asked["text 9"] == 3
    assert written[9].usd == pytest.approx(3 * (endpoint.worst("text 9") + HELLO))


def test_kill_9_in_the_middle_of_a_talk_loses_none_of_its_cost(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.faults, endpoint.answers = {"text 0": ["no"]}, 1
    script = KILLED.format(here=str(Path(__file__).parent), url=endpoint.url, work=str(tmp_path), rows=1)
    child = subprocess.Popen([sys.executable, "-c", script])
    until(lambda: endpoint.waiting, 20)
    child.send_signal(signal.SIGKILL)
    child.wait()
    endpoint.answers = float("inf")
    written, said = run(writer(endpoint, tmp_path, concurrency=4), rows(1))
    assert written[0].usd == pytest.approx(2 * USD + endpoint.worst("text 0", turn=1))
    assert said[-1].figures["cost_usd"] == pytest.approx(written[0].usd)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_rows_that_are_disliked_do_not_end_a_dataset(endpoint: Endpoint, tmp_path: Path, share: float) -> None:
    dice = random.Random(3)
    endpoint.faults = {f"text {n}": [400] for n in range(1, 400) if dice.random() < share}
    written, _ = run(writer(endpoint, tmp_path), rows(400))
    assert sum(line.instruction is None for line in written) == len(endpoint.faults)


def test_a_model_that_is_withdrawn_ends_it_before_all_rows_are_lost(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.faults = {f"text {n}": [404] for n in range(20, 400)}
    with pytest.raises(Invalid, match="status 404"):
        run(writer(endpoint, tmp_path), rows(400))
    assert len(endpoint.asked) < 20 + 80 + 16 + 1


def test_finished_rows_are_not_asked_again_and_a_torn_line_is(endpoint: Endpoint, tmp_path: Path) -> None:
    first, _ = run(writer(endpoint, tmp_path), rows(6))
    log = tmp_path / "written.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    fifth = [number for number, line in enumerate(lines) if not under_way(line)][4]
    log.write_bytes(b"".join(lines[:fifth]) + lines[fifth][:20])  # the power went while it was written
    kept = {json.loads(line)["id"] for line in lines[:fifth] if not under_way(line)}
    second, _ = run(writer(endpoint, tmp_path), rows(6))
    assert [line.instruction for line in second] == [line.instruction for line in first]
    unknown = [line for line in second if line.id not in kept]
    worst = [endpoint.worst(f"text {line.id.removeprefix('id')}") for line in unknown]
    assert [line.usd for line in unknown] == pytest.approx([USD + most for most in worst]), "it may have been billed"
    assert {text for text, count in endpoint.asked.items() if count == 2} == {
        f"text {n}" for n in range(6) if f"id{n}" not in kept
    }
    assert len([line for line in log.read_bytes().splitlines() if not under_way(line)]) == 6


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_generate import Endpoint, rows, run, writer
run(writer(Endpoint({url!r}), Path({work!r}), concurrency=4), rows({rows}))
"""


def test_kill_9_pays_again_only_for_rows_under_way(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.delay = 0.05
    script = KILLED.format(here=str(Path(__file__).parent), url=endpoint.url, work=str(tmp_path), rows=40)
    child = subprocess.Popen([sys.executable, "-c", script])
    while sum(endpoint.answered.values()) < 10 and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert 10 <= len(endpoint.asked) < 40
    written, _ = run(writer(endpoint, tmp_path, concurrency=4), rows(40))
    assert all(line.instruction for line in written)
    repeated = sum(count - 1 for count in endpoint.asked.values())
    assert repeated <= 4, "at most the rows under way at the kill"
    lines = (tmp_path / "written.jsonl").read_bytes().splitlines()
    assert Counter(not under_way(line) for line in lines)[True] == 40


def until(met: Callable[[], object], seconds: float = 10) -> float:
    """How long it took."""
    began = time.monotonic()
    while not met() and time.monotonic() < began + seconds:
        time.sleep(0.01)
    assert met()
    return time.monotonic() - began


def test_who_stops_waiting_hangs_up_at_once_and_answered_rows_are_kept(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.answers = 12
    steps = writer(endpoint, tmp_path, concurrency=8).write(rows(40), report)
    while endpoint.waiting < 8:
        next(steps)
    began = time.monotonic()
    steps.close()
    assert time.monotonic() - began < 1
    assert until(lambda: endpoint.waiting == 0) < 1, "all eight connections are closed"
    kept = dict(endpoint.answered)
    assert len(kept) == 12
    endpoint.answers = float("inf")
    written, said = run(writer(endpoint, tmp_path, concurrency=8), rows(40))
    assert all(line.instruction for line in written)
    assert [endpoint.asked[text] for text in kept] == [1] * 12, "what was paid for is not asked again"
    assert said[0].done >= 12


def test_a_name_that_is_being_looked_up_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, over = threading.Event(), threading.Event()

    def lookup(*_: object, **__: object) -> list[Any]:
        asked.set()
        over.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    steps = writer(Endpoint("http://model.example/v1"), tmp_path).write(rows(2), report)
    while not asked.is_set():
        next(steps)
    began = time.monotonic()
    steps.close()
    over.set()
    assert time.monotonic() - began < 2


def test_cancelled_on_the_belt_all_requests_end_within_two_seconds_and_the_next_generation_goes_on(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    """Four runs side by side on a real bus: one that waits for a model is cancelled, the others go on."""
    endpoint.answers = 10
    bus, store, stop = EmbeddedBus(tmp_path / "bus"), local_store(tmp_path), threading.Event()
    control = Control()
    reader = Reader(bus, [control])
    loop = Loop(bus, datagen(endpoint, tmp_path, store).lane(), control, ready=reader.caught_up.wait, stop=stop)
    threads = [threading.Thread(target=loop.run), threading.Thread(target=reader.follow, args=(stop,))]

    def made() -> set[tuple[str, int]]:
        messages = [decode(record.value) for record in bus.replay(["run-control"]) if record]
        return {(each.run, each.generation) for each in messages if isinstance(each, DatasetsMade)}

    for thread in threads:
        thread.start()
    try:
        asking = plan(store)
        requests.begin(bus, store, "asking", asking)
        until(lambda: endpoint.waiting == 16)
        others = {f"other-{n}" for n in range(3)}
        for name in others:
            requests.begin(bus, store, name, plan(store, kind="template"))
        until(lambda: made() == {(name, 1) for name in others})
        assert endpoint.waiting == 16, "what is slow holds up nobody"

        requests.cancel(bus, "asking", generation=1)
        assert until(lambda: endpoint.waiting == 0 and bus.lag("datagen")["run-requested"] == 0) < 2
        assert ("asking", 1) not in made()
        kept = dict(endpoint.answered)
        endpoint.answers = float("inf")
        requests.begin(bus, store, "asking", asking, generation=2)
        until(lambda: ("asking", 2) in made())
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        bus.close()
    assert len(kept) == 10
    assert [endpoint.asked[text] for text in kept] == [1] * 10


def datagen(endpoint: Endpoint, folder: Path, store: ArtifactStore) -> Datagen:
    pools = Pools(Sources(store, Bounds(max_bytes=1 << 20)), max_text_chars=500, max_labels=5)
    providers = Providers({"local": Named(base_url=endpoint.url)})
    return Datagen(store, Plans(store), pools, Builder(folder / "work" / "datagen" / "0", Models(providers, tries=3)))


def plan(store: ArtifactStore, **generator: Any) -> Plan:
    """Of forty rows, `text 0` and so on, each label in turn."""
    table = "text,label\n" + "".join(f"text {n},{LABELS[n % 2]}\n" for n in range(40))
    dataset = {
        "source": uploaded(store, "t.csv", table.encode()),
        "generator": {"kind": "llm", "model": "m", "provider": "local"} | generator,
        "rows": {"train": 20, "validation": 10, "test": 10},
    }
    recipe = parse({"datasets": {"d": dataset}}, "the test")
    return make(recipe, lambda base: PlannedBase(name=base, reference=base))


def test_a_dataset_is_written_by_the_model_and_bad_rows_are_kept_with_the_reason(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    endpoint.faults = {"text 7": ["no"] * 3}
    store = local_store(tmp_path)
    (output,) = drain(datagen(endpoint, tmp_path, store).make(asked(store, "r", plan(store))))
    assert isinstance(output, DatasetsMade)
    folder = store.fetch(Plans(store).datasets(output.datasets)["d"])
    made = [row for split in SPLITS for row in read_jsonl(folder / f"{split}.jsonl", Example)]
    assert len(made) == 39
    places = Counter(row.prompt[0].content.startswith("text") for row in made)
    assert min(places[True], places[False]) > 5, "the text comes before the instruction or after it"
    assert {row.completion for row in made} == set(LABELS)
    assert {row.provenance.generator for row in made} == {"llm:m"}
    (lost,) = read_jsonl(folder / "rejected.jsonl", Rejected)
    assert (lost.row, lost.content) == (7, "text 7")
    assert lost.reason.startswith("no usable instruction after 3 tries")
    assert not list((tmp_path / "work" / "datagen" / "0").iterdir()), "what was paid for is in the store now"


def test_the_key_of_a_provider_goes_to_its_address_and_no_other_does(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`openai` is asked where OPENAI_BASE_URL says, with its key; `local` where the setting says, with its own or none."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.setenv("LOCAL_API_KEY", "sk-local")
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url + "/")
    store, named = (
        local_store(tmp_path),
        {"local": Named(base_url=endpoint.url), "keyed": Named(base_url=endpoint.url, key="LOCAL_API_KEY")},
    )
    station = datagen(endpoint, tmp_path, store)
    station = replace(station, builder=replace(station.builder, models=Models(Providers(named), tries=3)))
    for name in ("openai", "local", "keyed"):
        endpoint.keys.clear()
        drain(station.make(asked(store, name, plan(store, provider=name))))
        assert set(endpoint.keys) == {{"openai": "Bearer sk-openai", "local": None, "keyed": "Bearer sk-local"}[name]}


def asked(store: ArtifactStore, run: str, planned: Plan) -> RunRequested:
    return RunRequested(run=run, plan=put_plan(store, run, planned), name="r", items=2)


@pytest.mark.parametrize(
    ("generator", "said"),
    [
        ({"provider": "locl"}, r"no provider `locl` \(did you mean `local`\?\)"),
        ({"provider": "gone"}, r"no provider `gone` \(known: local, openai\)"),
        (
            {"base_url": "http://10.0.0.1/v1", "provider": "openai"},
            "an address that the recipe named.*`provider: NAME`",
        ),
    ],
)
def test_no_other_endpoint_is_asked_in_the_place_of_one_that_cannot_be(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generator: dict[str, Any], said: str
) -> None:
    """A plan of the time when recipes named addresses is read, and refused once, before anything is read."""
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    store = local_store(tmp_path)
    old = plan(store)
    dataset = old.datasets["d"]
    dataset = dataset.model_copy(update={"generator": dataset.generator.model_copy(update=generator)})
    request = asked(store, "r", old.model_copy(update={"datasets": {"d": dataset}}))
    with pytest.raises(Invalid, match=said):
        drain(datagen(endpoint, tmp_path, store).make(request))
    assert not endpoint.asked
    harmless = dataset.model_copy(update={"generator": dataset.generator.model_copy(update={"kind": "template"})})
    request = asked(store, "templates", old.model_copy(update={"datasets": {"d": harmless}}))
    assert drain(datagen(endpoint, tmp_path, store).make(request)), "nobody would be asked there"


def test_a_plan_that_needs_more_than_this_version_has_is_left(endpoint: Endpoint, tmp_path: Path) -> None:
    store = local_store(tmp_path)
    assert plan(store).needs == {"datagen": ("providers",)}
    assert plan(store, provider="openai").needs == plan(store, kind="template").needs == {}
    newer = plan(store).model_copy(update={"needs": {"datagen": ("providers", "judges")}})
    with pytest.raises(Unsupported, match="needs judges"):
        drain(datagen(endpoint, tmp_path, store).make(asked(store, "r", newer)))
