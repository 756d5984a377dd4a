"""Whatever is asked of the four services in whatever shape, with or without a key, is answered: no 500, 503 only for what is
down, and nothing that is taken spoils what others see.

Schemathesis makes the requests from the services' own OpenAPI, sound and broken ones, half of them about what exists. What the
services read by hand has its schema from the models that they read it with. The same seed each time; the long test goes on for longer.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
from fuzz import cases, holds, some
from house import House, living
from hypothesis import given
from hypothesis import strategies as st
from schemathesis import Case

from understudy.service.token import HEADER
from understudy.terms import STATIONS, Station

FEW, MANY = 25, 400
"""Requests of each kind for an operation."""
PAGES = {
    "datagen": ("/v1/files", "/v1/runs"),
    "trainer": ("/v1/fine_tuning/jobs",),
    "inference": ("/v1/models", "/v1/engines"),
}
"""What everybody looks at, which nothing that somebody else asked for may spoil."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with living(tmp_path_factory.mktemp("house"), hold_seconds=0.2, max_upload_bytes=100_000) as house:
        yield house


NASTY: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1e-320, 1e308, math.inf, -math.inf, math.nan, 0.5),
    *(
        "",
        " ",
        "0",
        "-",
        ".",
        "..",
        "tiny",
        "remarks",
        "a" * 70,
        "x" * 5000,
        "\0",
        "\ud800",
        "\u202e",
        "%s{0}{x}",
        "=1+1",
    ),
    *("../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "hf:../x", "hf:a/b@main", "http://127.0.0.1/", "file-0"),
    *([], [[]], {}, {"": ""}, ["tiny"] * 40, {"remarks": -1}, {"remarks": 0}, {"remarks": math.inf}),
)
"""What somebody writes by mistake or on purpose, in place of anything."""


def places(of: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document, its parts before it."""
    for key, value in of.items() if isinstance(of, dict) else enumerate(of) if isinstance(of, list) else ():
        yield from places(value, (*at, key))
        yield (*at, key)


@st.composite
def spoilt(draw: st.DrawFn, recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe with one to three things in it replaced, removed or named otherwise."""
    recipe = copy.deepcopy(recipe)
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        *way, last = draw(st.sampled_from(list(places(recipe))))
        inner = recipe
        for part in way:
            inner = inner[part]
        what = draw(st.sampled_from(("value", "value", "value", "name", "gone")))
        old = inner[last] if what == "value" else inner.pop(last)
        if what == "value":
            inner[last] = copy.deepcopy(draw(st.sampled_from(NASTY)))
        elif what == "name" and isinstance(inner, dict):
            inner[str(draw(st.sampled_from(NASTY)))[:5000]] = old
        if not recipe:
            break
    return recipe


def unspoilt(house: House) -> None:
    for station, paths in PAGES.items():
        for path in paths:
            answer = house.http[station].get(path)  # type: ignore[index]
            assert answer.status_code == 200, f"{path}: {answer.text}"


def fuzz(house: House, station: Station, many: int) -> None:
    with requests.Session() as session:
        session.trust_env = False
        session.headers[HEADER.decode()] = house.token
        for name, strategy in cases(house, station):

            @some(many)
            @given(case=strategy)
            def ask(case: Case) -> None:
                holds(case.call(base_url=house.urls[station], session=session), case.as_curl_command())

            print(name)
            ask()
    unspoilt(house)


@pytest.mark.parametrize("station", STATIONS)
def test_no_request_by_or_against_its_schema_breaks_a_service(house: House, station: Station) -> None:
    fuzz(house, station, FEW)


def full(house: House) -> dict[str, Any]:
    """A recipe with everything in it."""
    table = {"source": house.file, "task": "classify", "columns": {"text": "text", "label": "label"}}
    rows = {"rows": {"train": 8, "validation": 4, "test": 8}}
    panel = {"dataset": "remarks", "metrics": ["accuracy", "f1"], "max_tokens": 8}
    return house.recipe(
        base=["tiny"],
        seeds=2,
        datasets={"remarks": table | rows, "more": {"source": house.file, "task": "classify"}},
        variants={"v": {"train": {"remarks": 2.0, "more": 1.0}}, "w": {"train": "remarks", "training": {"epochs": 2}}},
        training={
            "epochs": 1,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "weight_decay": 0.1,
            "lora": {"r": 8, "alpha": 16},
        },
        evaluation={"panels": {"in-domain": panel}},
    )


def recipes(house: House, many: int) -> None:
    whole, taken = full(house), 0
    datagen, trainer = house.http["datagen"], house.http["trainer"]
    sound = datagen.post("/v1/runs", json={"recipe": whole})
    assert sound.status_code == 200, sound.text

    @some(many)
    @given(recipe=spoilt(whole))
    def ask(recipe: dict[str, Any]) -> None:
        nonlocal taken
        body = json.dumps({"recipe": recipe})
        answer = datagen.post("/v1/runs", content=body, headers={"content-type": "application/json"})
        holds(answer, body)
        if answer.status_code == 200:
            taken += 1
            for client, path in ((datagen, f"/v1/runs/{answer.json()['id']}"), (trainer, "/v1/fine_tuning/jobs")):
                seen = client.get(path)
                assert seen.status_code == 200, f"{path}: {seen.text}\n{body}"

    ask()
    unspoilt(house)
    assert taken > many // 20, "hardly any was sound enough to be taken"


def test_no_recipe_that_is_nearly_right_breaks_the_door_or_what_others_see(house: House) -> None:
    recipes(house, 10 * FEW)


BODIES = {
    "deep": b"[" * 100_000,
    "deep in the recipe": b'{"recipe": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001,
    "no text": b"\xff\xfe\x00",
    "half a pair": b'{"recipe": {"name": "\\ud800"}}',
    "a number of 5,000 digits": b'{"recipe": {"seed": ' + b"9" * 5000 + b"}}",
    "not a number": b'{"recipe": {"seed": NaN}, "fresh": -Infinity}',
    "with a mark before it": b'\xef\xbb\xbf{"recipe": {}}',
    "twice": b'{"recipe": {}, "recipe": []}',
    "a list": b"[]",
    "text": b'"recipe"',
    "nothing": b"",
    "a NUL": b'{"recipe": {"name": "\\u0000"}}',
    "a name of a megabyte": b'{"recipe": {"name": "' + b"x" * 1_000_000 + b'"}}',
    "too many variants": json.dumps(
        {"recipe": {"variants": {f"v{n}": {"train": "d"} for n in range(20_000)}}}
    ).encode(),
    "too long": b" " * 20_000_000,
}


@pytest.mark.parametrize("what", BODIES)
@pytest.mark.parametrize("path", ["/v1/runs", "/v1/runs/{run}/cancel"])
def test_a_body_that_is_no_request_is_refused(house: House, what: str, path: str) -> None:
    target = path.format(run=house.run)
    answer = house.http["datagen"].post(target, content=BODIES[what], headers={"content-type": "application/json"})
    holds(answer, what)
    assert answer.status_code in (400, 413) or (what == "nothing" and path.endswith("cancel"))


@pytest.mark.parametrize("station", ["datagen", "trainer", "evaluator"])
def test_without_the_token_nobody_asks_a_service_anything_but_how_it_is(house: House, station: Station) -> None:
    paths = list(house.apps[station].openapi()["paths"])
    with httpx.Client(base_url=house.urls[station], trust_env=False) as stranger:
        for path in (
            *paths,
            "/openapi.json",
            "/nothing",
            "/metrics/",
            "//metrics",
            "/metrics/../v1/runs",
            "/healthz%2f..%2fv1/runs",
        ):
            for said in ({}, {HEADER.decode(): ""}, {HEADER.decode(): "x" * 43}, {HEADER.decode(): house.token[:-1]}):
                answer = stranger.get(path, headers=said)
                assert answer.status_code == 401, f"{path}: {answer.status_code}"
        for path in ("/healthz", "/readyz", "/metrics"):
            assert stranger.get(path).status_code == 200


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("station", STATIONS)
def test_nor_do_many_more(house: House, station: Station) -> None:
    fuzz(house, station, MANY)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_nor_do_many_more_recipes(house: House) -> None:
    recipes(house, 10 * MANY)
