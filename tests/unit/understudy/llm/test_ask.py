"""Asking many: each answer is in the log before anything else, once; what a kill, a refusal or a silent endpoint leaves is taken up."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench._llm_server import running
from understudy.errors import Fatal, Transient
from understudy.llm.answers import Completion
from understudy.llm.ask import Enough, Log, Tally, Tick, ask
from understudy.llm.chat import Away, ChatClient, Refused, Unanswered
from understudy.records import Turn, resume_jsonl
from understudy.terms import Frozen


class Line(Frozen):
    id: str
    text: str


@dataclass(frozen=True)
class Question:
    id: str


QUESTIONS = [Question(f"q{n}") for n in range(40)]


def turns(question: Question) -> list[Turn]:
    return [Turn(role="user", content=question.id)]


async def answer(chat: ChatClient, question: Question) -> Line:
    return Line(id=question.id, text=(await chat.complete("m", turns(question), max_tokens=5)).text)


def refuse(question: Question, error: Refused, tally: Tally) -> Line:
    return Line(id=question.id, text=f"refused {tally.refused} of {tally.total}")


def answered(url: str) -> Counter[str]:
    with urllib.request.urlopen(f"{url}/figures") as response:
        return Counter(json.load(response)["answered"])


class Chat(ChatClient):
    """A client whose endpoint is a function."""

    def __init__(self, respond: Callable[[str], str]) -> None:
        super().__init__("http://model.example/v1", None)
        self.respond = respond

    async def complete(self, model: str, messages: Any, **more: Any) -> Completion:
        await asyncio.sleep(0)
        return Completion(self.respond(messages[-1].content), "stop", 1, 1, {})


def asking(
    path: Path,
    respond: Callable[[str], str],
    workers: int = 4,
    refused: Callable[[Question, Refused, Tally], Line] = refuse,
) -> Generator[Tick, None, None]:
    with Log(path, resume_jsonl(path, Line)) as log:
        yield from ask(log, QUESTIONS, answer, refused, lambda _: Chat(respond), workers)


def lines(path: Path) -> list[Line]:
    return [Line.model_validate_json(line) for line in path.read_text().splitlines()]


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_ask import Line, Question, answer, refuse
from understudy.llm.ask import Log, ask
from understudy.llm.chat import ChatClient
from understudy.records import resume_jsonl
path = Path({path!r})
with Log(path, resume_jsonl(path, Line)) as log:
    questions = [Question(f"q{{n}}") for n in range(1000)]
    for _ in ask(log, questions, answer, refuse, lambda n: ChatClient({url!r}, None, concurrency=n), 8):
        pass
"""


def test_kill_9_at_any_moment_loses_doubles_and_pays_twice_nothing_but_what_was_under_way(tmp_path: Path) -> None:
    log, kills = tmp_path / "log.jsonl", 4
    with running(latency=0.03) as url:
        script = KILLED.format(here=str(Path(__file__).parent), path=str(log), url=f"{url}/v1")
        before: Counter[str] = Counter()
        done: set[str] = set()
        for _ in range(kills):
            child = subprocess.Popen([sys.executable, "-c", script])
            while len(answered(url)) < len(before) + 20 and child.poll() is None:
                time.sleep(0.02)
            time.sleep(random.uniform(0, 0.2))
            child.send_signal(signal.SIGKILL)
            child.wait()
            time.sleep(0.1)
            kept = {line.id for line in resume_jsonl(log, Line)}
            after = answered(url)
            assert sum(after.values()) - sum(before.values()) >= 20, "it was working when it was killed"
            assert len(after.keys() - kept) <= 8, "only what was under way has no line"
            paid_again = [one for one in done if after[one] != before[one]]
            assert not paid_again, "what has a line is not asked again"
            before, done = after, kept
        subprocess.run([sys.executable, "-c", script], check=True)
        paid = answered(url)
    assert not [one for one in done if paid[one] != before[one]]
    found = Counter(line.id for line in lines(log))
    assert (len(found), set(found.values())) == (1000, {1}), "none lost, none doubled"
    assert sum(paid.values()) - 1000 <= 8 * kills


def test_what_has_a_line_is_not_asked_again_and_a_torn_line_is(tmp_path: Path) -> None:
    asked: list[str] = []
    path = tmp_path / "log.jsonl"
    path.write_text('{"id":"q0","text":"kept"}\n{"id":"q1","te')
    *_, last = asking(path, lambda text: asked.append(text) or "new")  # type: ignore[func-returns-value]
    assert sorted(asked) == sorted(question.id for question in QUESTIONS[1:])
    assert (last.done, last.total) == (40, 40)
    assert [line.text for line in lines(path)].count("kept") == 1
    assert len(lines(path)) == 40


def test_who_is_refused_has_a_line_and_the_caller_says_when_it_is_enough(tmp_path: Path) -> None:
    def respond(text: str) -> str:
        if text in ("q3", "q4", "q5"):
            raise Refused("not this one", 400)
        return "yes"

    def at_most_two(question: Question, error: Refused, tally: Tally) -> Line:
        if tally.refused > 2:
            raise error
        return refuse(question, error, tally)

    list(asking(tmp_path / "a.jsonl", respond))
    assert [line.text for line in lines(tmp_path / "a.jsonl")].count("refused 1 of 40") == 1
    assert len(lines(tmp_path / "a.jsonl")) == 40
    with pytest.raises(Refused, match="not this one"):
        list(asking(tmp_path / "b.jsonl", respond, refused=at_most_two))


@pytest.mark.parametrize("status", [401, 402, 429])
def test_a_key_that_is_refused_is_no_matter_of_one_question(tmp_path: Path, status: int) -> None:
    asked: list[str] = []

    def respond(text: str) -> str:
        asked.append(text)
        raise Refused("no", status)

    with pytest.raises(Refused):
        list(asking(tmp_path / "log.jsonl", respond))
    assert len(asked) <= 4
    assert not lines(tmp_path / "log.jsonl")


def test_an_unanswered_question_is_asked_again_last_and_a_silent_endpoint_ends_it(tmp_path: Path) -> None:
    tries: Counter[str] = Counter()
    order: list[str] = []

    def once(text: str) -> str:
        tries[text] += 1
        order.append(text)
        if text in ("q0", "q1") and tries[text] == 1:
            raise Unanswered("lost")
        return "yes"

    list(asking(tmp_path / "a.jsonl", once, workers=2))
    assert set(order[-2:]) == {"q0", "q1"}
    assert len(lines(tmp_path / "a.jsonl")) == 40

    def never(_: str) -> str:
        raise Unanswered("nobody there")

    with pytest.raises(Transient, match="nobody there"):
        list(asking(tmp_path / "b.jsonl", never))


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    "bad", [("q0",), ("q39",), tuple(f"q{n}" for n in range(20, 40))], ids=["first", "last", "half"]
)
def test_a_question_that_alone_is_not_answered_is_refused_in_the_end(
    tmp_path: Path, workers: int, bad: tuple[str, ...]
) -> None:
    tries: Counter[str] = Counter()

    def respond(text: str) -> str:
        tries[text] += 1
        if text in bad:
            raise Unanswered("cannot tokenize")
        return "yes"

    said: dict[str, str] = {}

    def refused(question: Question, error: Refused, tally: Tally) -> Line:
        said[question.id] = str(error)
        return refuse(question, error, tally)

    list(asking(tmp_path / "log.jsonl", respond, workers, refused))
    assert said.keys() == set(bad)
    assert said[bad[0]] == "not answered after 3 tries, while others were: cannot tokenize"
    assert [tries[one] for one in bad] == [3] * len(bad)
    assert len(lines(tmp_path / "log.jsonl")) == 40


def test_who_goes_on_where_only_such_a_question_is_left_ends_too(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(f'{{"id":"q{n}","text":"yes"}}\n' for n in range(39)))

    def respond(text: str) -> str:
        if text == "q39":
            raise Unanswered("cannot tokenize")
        return "yes"

    list(asking(path, respond))
    assert lines(path)[-1].text == "refused 1 of 40"


@pytest.mark.parametrize("answers", [0, 1, 20, 39])
def test_an_endpoint_that_is_gone_for_everybody_costs_no_question(tmp_path: Path, answers: int) -> None:
    asked: list[str] = []

    def respond(text: str) -> str:
        asked.append(text)
        if len(asked) > answers:
            raise Unanswered("nobody there")
        return "yes"

    with pytest.raises(Unanswered, match="nobody there"):
        list(asking(tmp_path / "log.jsonl", respond))
    assert [line.text for line in lines(tmp_path / "log.jsonl")] == ["yes"] * answers
    assert len(asked) < answers + 40


def test_an_endpoint_that_is_away_is_asked_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def respond(text: str) -> str:
        asked.append(text)
        raise Away("in an hour")

    with pytest.raises(Away):
        list(asking(tmp_path / "log.jsonl", respond, workers=1))
    assert len(asked) == 1


def test_enough_ends_it_with_what_was_under_way(tmp_path: Path) -> None:
    def respond(text: str) -> str:
        if text == "q10":
            raise Enough
        return "yes"

    *_, last = asking(tmp_path / "log.jsonl", respond, workers=1)
    assert (last.done, [line.id for line in lines(tmp_path / "log.jsonl")]) == (10, [f"q{n}" for n in range(10)])


def test_closed_it_hangs_up_within_a_second_and_keeps_what_it_has(tmp_path: Path) -> None:
    with running(latency=30) as url, Log(tmp_path / "log.jsonl", list[Line]()) as log:
        steps = ask(log, QUESTIONS, answer, refuse, lambda n: ChatClient(f"{url}/v1", None, concurrency=n), 16)
        began = time.monotonic()
        tick = next(steps)
        assert time.monotonic() - began < 1, "it says something while nobody answers"
        assert (tick.done, tick.eta_seconds) == (0, 0.0)
        began = time.monotonic()
        steps.close()
        assert time.monotonic() - began < 1.2


def test_a_full_disk_is_said_and_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "log.jsonl", os.write
    with Log(path, list[Line]()) as log:
        log.append(Line(id="a", text="whole"))
        monkeypatch.setattr(os, "write", lambda file, content: write(file, content[:7]))
        with pytest.raises(Fatal, match="is full"):
            log.append(Line(id="b", text="torn"))
        monkeypatch.undo()
        log.append(Line(id="c", text="whole"))
        assert list(log.lines) == ["a", "c"]
    assert [line.id for line in lines(path)] == ["a", "c"]
