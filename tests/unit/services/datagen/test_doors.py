"""datagen's doors with everything in them that nobody should send: an answer from 400 to 499 that is short, never a 500."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.unit.services.datagen.test_api import World, error

ODD = [
    "x" * 20_000,
    "\x00",
    "a\nb",
    "\x1b[2J",
    "..",
    "../../etc/passwd",
    "%2e%2e%2f",
    "é" * 3000,
    " ",
    "file-\x00",
    "a/b/c",
]
RECIPE = {"datasets": {"d": {"source": "file-123"}}}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_no_name_in_a_path_or_query_is_too_odd(world: World, odd: str) -> None:
    name = quote(odd, safe="")
    for method, path in [
        ("GET", f"/v1/files/{name}"),
        ("GET", f"/v1/files/{name}/content"),
        ("DELETE", f"/v1/files/{name}"),
        ("GET", f"/v1/files?after={name}"),
        ("GET", f"/v1/files?purpose={name}"),
        ("GET", f"/v1/files?limit={name}"),
        ("GET", f"/v1/runs/{name}"),
        ("GET", f"/v1/runs/{name}/logs"),
        ("GET", f"/v1/runs/r/logs?item={name}"),
        ("DELETE", f"/v1/runs/{name}"),
        ("POST", f"/v1/runs/{name}/cancel"),
        ("GET", f"/v1/runs?after={name}"),
        ("GET", f"/v1/runs?order={name}"),
    ]:
        answer = world.http.request(method, path)
        assert answer.status_code in ((200,) if "purpose" in path else (400, 404, 405, 422)), (
            path[:50],
            answer.text[:200],
        )


@pytest.mark.parametrize(
    "name", ["x" * 60_000 + ".csv", "a\x00b.csv", "\x1b[2J.csv", "..", "/", "\\", "é" * 200, "a\r\nb.csv"]
)
def test_no_name_of_a_file_is_too_odd(world: World, name: str) -> None:
    answer = world.http.post("/v1/files", files={"file": (name, b"text\na\n")}, data={"purpose": "evals"})
    assert answer.status_code in (200, 400), answer.text[:200]
    if answer.status_code == 200:
        shown = answer.json()["filename"]
        assert len(shown.encode()) <= 220
        assert shown.isprintable()
        content = world.http.get(f"/v1/files/{answer.json()['id']}/content")
        assert content.content == b"text\na\n"


BODIES = [
    b"[" * 100_000,
    b'{"recipe":' * 500 + b"{}" + b"}" * 500,
    b'{"recipe": {"seed": 1e400}}',
    b'{"recipe": {"seed": ' + b"9" * 5000 + b"}}",
    b'{"recipe": {"seed": ' + b"9" * 4000 + b"}}",
    b'{"recipe": {"datasets": {"d": {"source": "x", "labels": {"a": NaN}}}}}',
    b'{"recipe": ' + json.dumps({f"k{n}": 0 for n in range(30_000)}).encode() + b"}",
    b'{"recipe": ' + json.dumps(RECIPE | {"variants": {f"v{n}": {"train": 3} for n in range(9_000)}}).encode() + b"}",
    b'{"recipe": {}, "fresh": "' + b"x" * 65 + b'"}',
    b'{"recipe": {}, "' + b"x" * 400_000 + b'": 1}',
    b'{"recipe": ' + json.dumps(RECIPE).encode() + b', "fresh": "\\ud800"}',
    b'{"recipe": ' + json.dumps(RECIPE | {"base": "\ud800"}).encode() + b"}",
    b'{"recipe": ' + json.dumps(RECIPE | {"name": "a\n"}).encode() + b"}",
    b'{"recipe": "' + b" " * 600_000 + b'"}',
    b"\x00",
    b"\xff\xfe",
    b"null",
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_no_body_of_a_run_is_too_odd(world: World, body: bytes) -> None:
    began = time.process_time()
    said = error(world.http.post("/v1/runs", content=body, headers={"content-type": "application/json"}))
    assert len(said) < 2000
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    "body", [b'{"item": "' + b"x" * 300 + b'"}', b'{"item": 3}', b"[1]", b'{"item": "\\ud800"}', b"{"]
)
def test_no_body_of_a_cancellation_is_too_odd(world: World, body: bytes) -> None:
    error(world.http.post("/v1/runs/r/cancel", content=body, headers={"content-type": "application/json"}))


def test_a_panel_brings_a_number_of_prompts(world: World) -> None:
    """Each is asked of every item."""
    remarks = world.upload()
    prompts = world.upload("p.csv", b"prompt\n" + b"".join(b"%d?\n" % n for n in range(10_001)))
    recipe = {
        "datasets": {"d": {"source": remarks}},
        "evaluation": {"panels": {"p": {"prompts": prompts, "metrics": ["perplexity"]}}},
    }
    said = error(world.http.post("/v1/runs", json={"recipe": recipe}))
    assert "`panel:p`: p.csv has more than 10,000 prompts" in said
