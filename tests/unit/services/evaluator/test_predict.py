"""Proves that questions reach the endpoint as promised, and that an interrupted panel ends like an undisturbed one."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from services.evaluator.predict import REFUSED, Asker, Questions, answered, reference_logprob
from understudy.errors import Invalid, Transient
from understudy.records import Example

Endpoint = Any
World = Any


def questions(examples: list[Example], references: bool = False) -> Questions:
    return Questions(model="base", examples=examples, max_tokens=8, seed=17, references=references)


@pytest.fixture
def examples(world: World) -> list[Example]:
    from understudy.records import read_jsonl

    return list(read_jsonl(world.folder / "datasets" / "general" / "test.jsonl", Example))


def test_answers_come_in_the_order_of_the_questions(
    endpoint: Endpoint, examples: list[Example], tmp_path: Path
) -> None:
    ticks = list(Asker(endpoint.url, 8).ask(questions(examples), tmp_path / "p.jsonl"))
    predictions = answered(tmp_path / "p.jsonl", examples)
    assert [p.id for p in predictions] == [e.id for e in examples]
    assert (ticks[-1].done, ticks[-1].total) == (len(examples), len(examples))
    assert all(
        body["temperature"] == 0 and body["seed"] == 17 and body["max_tokens"] == 8 for body in endpoint.requests
    )
    assert not any("prompt_logprobs" in body for body in endpoint.requests)


def test_takes_up_what_is_there_and_cuts_a_torn_line(
    endpoint: Endpoint, examples: list[Example], tmp_path: Path
) -> None:
    asker = Asker(endpoint.url, 4)
    list(asker.ask(questions(examples, references=True), tmp_path / "whole.jsonl"))
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    endpoint.requests.clear()
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes(b"".join(lines[:25]) + lines[25][:40])
    list(asker.ask(questions(examples, references=True), torn))
    assert answered(torn, examples) == answered(tmp_path / "whole.jsonl", examples)
    assert len(endpoint.requests) == 2 * (len(examples) - 25)  # the torn row is asked again, the others are not


def test_a_last_line_without_its_newline_is_torn_too(
    endpoint: Endpoint, examples: list[Example], tmp_path: Path
) -> None:
    path = tmp_path / "p.jsonl"
    list(Asker(endpoint.url, 4).ask(questions(examples), path))
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    list(Asker(endpoint.url, 4).ask(questions(examples), path))
    assert path.read_bytes() == content


def test_says_something_while_the_endpoint_is_slow_and_stops_when_told(
    endpoint: Endpoint, examples: list[Example], tmp_path: Path
) -> None:
    endpoint.hold_after = 10
    began = time.monotonic()
    steps = Asker(endpoint.url, 4).ask(questions(examples), tmp_path / "p.jsonl")
    ticks = [next(steps) for _ in range(4)]
    steps.close()
    assert time.monotonic() - began < 10
    assert ticks[-1].done == 10
    assert ticks[-1].eta_seconds > 0
    assert len((tmp_path / "p.jsonl").read_bytes().splitlines()) == 10


def test_one_question_too_long_is_an_empty_answer(endpoint: Endpoint, examples: list[Example], tmp_path: Path) -> None:
    long = examples[0].model_copy(
        update={"id": "long", "prompt": (examples[0].prompt[0].model_copy(update={"content": "OVERLONG"}),)}
    )
    asked = [*examples, long]
    list(Asker(endpoint.url, 4).ask(questions(asked, references=True), tmp_path / "p.jsonl"))
    last = answered(tmp_path / "p.jsonl", asked)[-1]
    assert (last.finish_reason, last.text, last.reference_logprob) == (REFUSED, "", None)


def test_more_than_a_tenth_refused_says_nothing_about_the_model(
    endpoint: Endpoint, examples: list[Example], tmp_path: Path
) -> None:
    long = [
        e.model_copy(update={"prompt": (e.prompt[0].model_copy(update={"content": "OVERLONG"}),)}) for e in examples
    ]
    with pytest.raises(Invalid, match=r"refused 5 of 40 questions.*maximum context length"):
        list(Asker(endpoint.url, 1).ask(questions([*examples[:20], *long[20:]]), tmp_path / "p.jsonl"))


def test_a_model_that_is_not_there_yet_is_worth_waiting_for(
    endpoint: Endpoint, examples: list[Example], tmp_path: Path
) -> None:
    endpoint.missing = {"base"}
    with pytest.raises(Transient, match="no model base"):
        list(Asker(endpoint.url, 4).ask(questions(examples), tmp_path / "p.jsonl"))


def test_an_endpoint_that_does_not_answer_is_worth_waiting_for(examples: list[Example], tmp_path: Path) -> None:
    with pytest.raises(Transient, match="did not answer"):
        list(Asker("http://127.0.0.1:9/v1", 2, tries=1).ask(questions(examples), tmp_path / "p.jsonl"))


def test_one_bad_answer_is_one_refused_row_and_the_gateway_gets_no_key(
    examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-operator")
    monkeypatch.setattr("understudy.llm.chat.FIRST_BACKOFF", 0.001)
    keys: set[str | None] = set()

    class Gateway(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            keys.add(self.headers["Authorization"])
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bad = asked["messages"][0]["content"] == examples[3].prompt[0].content
            answer = {"error": {"message": "lost"}} if bad else {"choices": [{"message": {"content": "yes"}}]}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            pass

    gateway = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    threading.Thread(target=gateway.serve_forever, args=(0.02,), daemon=True).start()
    list(Asker(f"http://127.0.0.1:{gateway.server_port}/v1", 4).ask(questions(examples), tmp_path / "p.jsonl"))
    gateway.shutdown()
    predictions = answered(tmp_path / "p.jsonl", examples)
    assert [p.id for p in predictions if p.finish_reason == REFUSED] == [examples[3].id]
    assert keys == {None}


def test_a_reference_is_scored_token_by_token(endpoint: Endpoint, examples: list[Example], tmp_path: Path) -> None:
    list(Asker(endpoint.url, 4).ask(questions(examples, references=True), tmp_path / "p.jsonl"))
    for example, prediction in zip(examples, answered(tmp_path / "p.jsonl", examples), strict=True):
        assert prediction.reference_tokens == len(example.completion.split())
        assert prediction.reference_logprob is not None
        assert prediction.reference_logprob < 0


def positions(*tokens: int) -> list[dict[str, dict[str, Any]] | None]:
    return [None, *({str(token): {"logprob": -token / 10, "rank": 1}} for token in tokens[1:])]


def test_the_answer_begins_where_the_prompt_ends() -> None:
    assert reference_logprob(positions(1, 2, 3, 40, 50), [1, 2, 3], 3) == (-9.0, 2)


def test_without_token_ids_the_number_of_prompt_tokens_decides() -> None:
    assert reference_logprob(positions(1, 2, 3, 40, 50), None, 3) == (-9.0, 2)


def test_a_token_merged_over_the_seam_belongs_to_the_answer() -> None:
    assert reference_logprob(positions(1, 2, 30, 40), [1, 2, 3], 3) == (-7.0, 2)


def test_a_template_that_renders_another_prompt_gives_no_number() -> None:
    assert reference_logprob(positions(1, 20, 30, 40, 50, 60), [1, 2, 3, 4, 5], 5) is None


def test_an_answer_without_tokens_gives_no_number() -> None:
    assert reference_logprob(positions(1, 2, 3), [1, 2, 3], 3) is None
