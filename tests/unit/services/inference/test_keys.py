"""Keys over HTTP: told once, listed without their secrets, ended at once, replaced with an overlap; each leaves an audit line."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from services.inference.keys import router
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.folds import reader
from understudy.belt.folds.keys import Keys
from understudy.belt.folds.reader import Reader
from understudy.service.web import add_errors

ROOT = {"x-understudy-owner": "root", "x-understudy-key": "rootroot"}
"""As the gateway says who asks."""


class World:
    """The routes on a real bus and reader."""

    def __init__(self, folder: Path) -> None:
        self.bus, self.keys, self.stop = EmbeddedBus(folder / "bus.sqlite"), Keys(), threading.Event()
        self.reader = Reader(self.bus, (self.keys,))
        app = FastAPI()
        add_errors(app)
        app.include_router(router(self.bus, self.keys, self.reader.caught_up.is_set))
        self.http = TestClient(app, raise_server_exceptions=False, headers=ROOT)
        self.thread = threading.Thread(target=self.reader.follow, args=(self.stop,))
        self.thread.start()
        assert self.reader.caught_up.wait(5)

    def make(self, **body: Any) -> dict[str, Any]:
        answer = self.http.post("/v1/keys", json={"name": "anna", "scopes": ["jobs"]} | body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def end(self) -> None:
        self.stop.set()
        self.thread.join()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.end()
    world.bus.close()


def test_a_key_is_told_once_and_holds_when_the_call_returns(world: World) -> None:
    made = world.make(days=1, requests_per_minute=60, at_once=4)
    found = world.keys.find(made["key"])
    assert found
    assert (found.id, found.name, found.made.by) == (made["id"], "anna", "root")
    answer = world.http.get("/v1/keys")
    assert answer.headers["cache-control"] == "no-store"
    (listed,) = answer.json()["data"]
    assert listed == {name: value for name, value in made.items() if name != "key"}
    assert listed["status"] == "active"
    assert listed["scopes"] == ["jobs"]
    assert (listed["requests_per_minute"], listed["at_once"], listed["made_by"]) == (60, 4, "root")
    assert abs(listed["ends_at"] - time.time() - 24 * 3600) < 10
    assert made["key"][-20:] not in answer.text
    assert found.made.secret_sha256 not in answer.text


def test_what_makes_a_key_is_not_kept_by_anybody_on_the_way(world: World) -> None:
    answer = world.http.post("/v1/keys", json={"name": "anna", "scopes": ["read"]})
    assert answer.headers["cache-control"] == "no-store"


def test_a_revoked_key_lets_nobody_in_when_the_call_returns(world: World) -> None:
    made = world.make()
    for _ in range(2):
        ended = world.http.delete(f"/v1/keys/{made['id']}")
        assert (ended.status_code, ended.json()["status"]) == (200, "ended")
        assert world.keys.find(made["key"]) is None
    (listed,) = world.http.get("/v1/keys").json()["data"]
    assert listed["status"] == "ended"


def test_a_rotated_key_goes_on_for_its_overlap_and_not_longer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    old = world.make(days=30, at_once=2)
    answer = world.http.post(f"/v1/keys/{old['id']}/rotate", json={"overlap_hours": 1})
    new = answer.json()
    assert answer.headers["cache-control"] == "no-store"
    assert (new["name"], new["scopes"], new["at_once"]) == ("anna", ["jobs"], 2)
    assert world.keys.find(old["key"])
    assert world.keys.find(new["key"])
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    assert world.keys.find(old["key"]) is None
    assert world.keys.find(new["key"])


def test_a_rotation_without_overlap_ends_the_old_one_at_once(world: World) -> None:
    old = world.make()
    world.http.post(f"/v1/keys/{old['id']}/rotate", json={"overlap_hours": 0})
    assert world.keys.find(old["key"]) is None
    refused = world.http.post(f"/v1/keys/{old['id']}/rotate", json={"overlap_hours": 0})
    assert refused.status_code == 400
    assert "has ended" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "anna"},
        {"name": "anna", "scopes": []},
        {"name": "anna", "scopes": ["everything"]},
        {"name": "", "scopes": ["read"]},
        {"name": "a\nb", "scopes": ["read"]},
        {"name": "anna", "scopes": ["read"], "days": 0},
        {"name": "anna", "scopes": ["read"], "days": 1e300},
        {"name": "anna", "scopes": ["read"], "days": "NaN"},
        {"name": "anna", "scopes": ["read"], "at_once": 0},
        {"name": "anna", "scopes": ["read"], "requests_per_minute": -1},
        {"name": "anna", "scopes": ["read"], "secret_sha256": "0" * 64},
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_made(world: World, body: dict[str, Any]) -> None:
    assert world.http.post("/v1/keys", json=body).status_code == 400
    assert world.keys.all() == []


def test_half_a_surrogate_pair_names_nothing(world: World) -> None:
    body, kind = b'{"name": "\\ud800", "scopes": ["read"]}', {"content-type": "application/json"}
    assert world.http.post("/v1/keys", content=body, headers=kind).status_code == 400


def test_what_is_not_there_is_not_found(world: World) -> None:
    assert world.http.delete("/v1/keys/aaaaaaaa").status_code == 404
    assert world.http.post("/v1/keys/aaaaaaaa/rotate", json={"overlap_hours": 1}).status_code == 404
    for overlap in (-1, 1e9):
        made = world.make()
        answer = world.http.post(f"/v1/keys/{made['id']}/rotate", json={"overlap_hours": overlap})
        assert answer.status_code == 400


def test_keys_are_listed_newest_first_in_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [world.make(name=f"key {n}")["id"] for n in range(3)]
    page = world.http.get("/v1/keys?limit=2").json()
    rest = world.http.get(f"/v1/keys?limit=2&after={page['last_id']}").json()
    assert page["has_more"]
    assert not rest["has_more"]
    assert {key["id"] for key in page["data"] + rest["data"]} == set(made)


def test_every_change_leaves_an_audit_line_without_a_secret(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    made = world.make(name="anna b.")
    new = world.http.post(f"/v1/keys/{made['id']}/rotate", json={"overlap_hours": 1}).json()
    world.http.delete(f"/v1/keys/{made['id']}")
    world.http.delete("/v1/keys/nothing1")
    world.http.get("/v1/keys")
    said = [(r.getMessage(), r.on, r.outcome, r.who, r.key) for r in caplog.records if r.name == "audit"]  # type: ignore[attr-defined]
    assert said == [
        ("key.create", "anna b.", "done", "root", "rootroot"),
        ("key.rotate", made["id"], "done", "root", "rootroot"),
        ("key.revoke", made["id"], "done", "root", "rootroot"),
        ("key.revoke", "nothing1", "notfound", "root", "rootroot"),
    ]
    everything = "\n".join(str(vars(record)) for record in caplog.records)
    for key in (made, new):
        assert key["key"][-20:] not in everything


def test_a_reader_that_stands_still_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "PATIENCE", 0.1)
    world.end()
    answer = world.http.post("/v1/keys", json={"name": "anna", "scopes": ["read"]})
    assert answer.status_code == 503
    assert "is on the bus" in answer.json()["error"]["message"]
