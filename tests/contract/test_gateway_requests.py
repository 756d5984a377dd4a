"""Through the gateway, with and without keys: nobody gets further than their key lets them, no request ends in a 500, and in a 503
only while what it is for is down. The scope that was checked is that of the route that answers, however a path is written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
import requests
from fuzz import cases, holds, some
from house import House, living, until
from hypothesis import given
from hypothesis import strategies as st
from schemathesis import Case

from understudy.service.doors import hot
from understudy.terms import SCOPES, STATIONS, Scope, Station

FEW, MANY = 12, 150
"""Requests of each kind for an operation, by each who may ask."""
MAY: dict[Scope | None, frozenset[str | None]] = {
    None: frozenset(),
    "inference": frozenset({"inference", None}),
    "read": frozenset({"read", None}),
    "jobs": frozenset({"jobs", "read", None}),
    "admin": frozenset({"inference", "jobs", "read", "admin", None}),
}
"""Key -> scopes of the doors that it opens. Written out once more: what opens a door is no business of the code that is tested."""
NEEDS: dict[str, tuple[str | None, str]] = {
    "/v1/models": (None, "admin"),
    "/v1/engines": ("read", "admin"),
    "/v1/keys": ("admin", "admin"),
    "/v1/usage": ("admin", "admin"),
    "/v1/files": ("read", "jobs"),
    "/v1/runs": ("read", "jobs"),
    "/v1/fine_tuning": ("read", "jobs"),
    "/v1/reports": ("read", "jobs"),
}
"""Family -> scope to read, scope to change."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with living(tmp_path_factory.mktemp("house"), keys="required", hold_seconds=5, max_upload_bytes=100_000) as house:
        until(lambda: ask(house, "admin", "/v1/completions", {"model": "tiny", "prompt": ["a"]}).status_code == 200)
        yield house


def said(house: House, who: Scope | None) -> dict[str, str]:
    return {"authorization": f"Bearer {house.keys[who]}"} if who else {}


def ask(house: House, who: Scope | None, path: str, body: Any) -> httpx.Response:
    headers = said(house, who) | {"content-type": "application/json"}
    return httpx.post(house.url + path, content=json.dumps(body), headers=headers, trust_env=False, timeout=30)


def opens(who: Scope | None, method: str, path: str) -> bool:
    read, change = NEEDS["/".join(path.split("/")[:3])]
    return who is not None and (read if method.upper() in ("GET", "HEAD") else change) in MAY[who]


def fuzz(house: House, station: Station, who: Scope | None, many: int) -> None:
    with requests.Session() as session:
        session.trust_env = False
        for label, strategy in cases(house, station):
            _through(house, who, label, strategy, session, many)


def _through(house: House, who: Scope | None, label: str, strategy: Any, session: requests.Session, many: int) -> None:
    method, path = label.split(" ")

    @some(many)
    @given(case=strategy)
    def through(case: Case) -> None:
        case.headers = {k: v for k, v in (case.headers or {}).items() if k.lower() != "authorization"}
        answer = case.call(base_url=house.url, session=session, headers=said(house, who))
        holds(answer, case.as_curl_command())
        adapter = path.startswith("/v1/models/") and "files" in unquote(case.formatted_path).split("/")
        allowed = "read" in MAY[who] if adapter and method.upper() == "GET" else opens(who, method, path)
        if who is None:
            assert answer.status_code == 401, f"{label}: {answer.status_code} {answer.text}"
        elif answer.status_code == 404 and b"There is nothing at" in answer.content:
            pass  # a path that is no door, for whoever may ask at all
        elif not allowed:
            assert answer.status_code in (403, 415), f"{label} by {who}: {answer.status_code} {answer.text}"
        else:
            assert answer.status_code not in (401, 403), f"{label} by {who}: {answer.text}"

    through()


@pytest.mark.parametrize("who", [None, *SCOPES])
@pytest.mark.parametrize("station", STATIONS)
def test_whoever_asks_whatever_gets_what_the_key_opens_and_no_more(
    house: House, station: Station, who: Scope | None
) -> None:
    fuzz(house, station, who, FEW)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("who", [None, *SCOPES])
@pytest.mark.parametrize("station", STATIONS)
def test_and_so_do_many_more(house: House, station: Station, who: Scope | None) -> None:
    fuzz(house, station, who, MANY)


ODD = st.sampled_from(
    (
        None,
        True,
        0,
        -1,
        17,
        10**30,
        0.5,
        math.nan,
        math.inf,
        "",
        "0",
        "x" * 70_000,
        "\ud800",
        [],
        [[]],
        ["a"] * 100,
        {},
        {"a": {}},
    )
)
FIELDS = (
    "n",
    "best_of",
    "logprobs",
    "prompt_logprobs",
    "max_tokens",
    "stop",
    "stream",
    "stream_options",
    "response_format",
    "tools",
)
FIELDS += (
    "guided_regex",
    "structured_outputs",
    "chat_template",
    "request_id",
    "prompt_embeds",
    "vllm_xargs",
    "\u0000",
    "model",
)


@some(100)
@given(path=st.sampled_from(sorted(hot())), more=st.dictionaries(st.sampled_from(FIELDS), ODD, max_size=3))
def completion(house: House, path: str, more: dict[str, Any]) -> None:
    body = {"model": "tiny", "prompt": ["a"], "messages": [{"role": "user", "content": "a"}]} | more
    for who in (None, "read", "inference"):
        answer = ask(house, who, path, body)  # type: ignore[arg-type]
        holds(answer, f"{path} {body}")
        assert (answer.status_code in (401, 403)) == (who != "inference"), f"{path} by {who}: {answer.text} {body}"


def test_questions_of_any_shape_are_answered_or_refused(house: House) -> None:
    completion(house)


@pytest.mark.parametrize("path", sorted(hot()))
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"a"',
        b"\xff",
        b"[" * 50_000,
        b'{"a":' * 50_000,
        b"{}," * 100_000,
        b'{"model": "tiny"' + b" " * 100_000,
    ],
)
def test_what_is_no_question_is_refused(house: House, path: str, body: bytes) -> None:
    headers = said(house, "inference") | {"content-type": "application/json"}
    answer = httpx.post(house.url + path, content=body, headers=headers, trust_env=False, timeout=30)
    holds(answer, f"{path} {body[:50]!r}")
    assert answer.status_code in (400, 413)


def test_a_503_is_for_what_is_down_and_for_nothing_else(tmp_path: Any) -> None:
    down = {"datagen": "/v1/runs", "trainer": "/v1/fine_tuning/jobs", "evaluator": "/v1/reports/nobody"}
    with (
        living(tmp_path, keys="required", hold_seconds=0.1) as house,
        httpx.Client(base_url=house.url, headers=said(house, "admin"), trust_env=False) as client,
    ):
        for station, path in down.items():
            assert client.get(path).status_code in (200, 404)
            house.halt(station)  # type: ignore[arg-type]
            answer = client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "service_unavailable")
            assert station in answer.json()["error"]["message"]
            assert client.get("/v1/models").status_code == 200
            others = list(down.values())[list(down).index(station) + 1 :]
            assert 503 not in [client.get(other).status_code for other in others]
