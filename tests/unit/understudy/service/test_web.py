"""Every service answers the same probes, and every error in OpenAI's shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from understudy.errors import Fatal, Invalid, NotFound, Transient
from understudy.service.web import add_errors, add_health, page, page_of


def client(reason: str | None = None, error: Exception | None = None) -> TestClient:
    app = FastAPI()
    add_errors(app)
    add_health(app, "trainer", ready=lambda: reason)

    @app.get("/broken/{number}")
    def broken(number: int) -> None:
        if error:
            raise error

    return TestClient(app, raise_server_exceptions=False)


def test_probes() -> None:
    assert client().get("/healthz").json() == {"status": "ok", "service": "trainer"}
    assert client().get("/readyz").status_code == 200
    assert client("reading the log").get("/readyz").status_code == 503
    assert "python_info" in client().get("/metrics").text


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (Invalid("The table is empty", "Add rows."), 400, "invalid_request_error"),
        (NotFound("There is no run `x`"), 404, "invalid_request_error"),
        (Transient("The store did not answer"), 503, "server_error"),
        (Fatal("The disk is full"), 500, "server_error"),
    ],
)
def test_expected_errors(error: Exception, status: int, kind: str) -> None:
    answer = client(error=error).get("/broken/1")
    body: dict[str, Any] = answer.json()["error"]
    assert (answer.status_code, body["type"], body["message"]) == (status, kind, str(error))
    assert set(body) == {"message", "type", "param", "code"}
    assert body["code"] is None or isinstance(body["code"], str)


def test_no_path_of_this_machine_leaves_it_with_an_error_that_is_ours() -> None:
    said = (
        "The artifact store file:///root/data did not answer: [Errno 5] '/root/data/x.json'. "
        "Is http://minio:9000/a up, or s3://b/c? See /v1/files"
    )
    message = client(error=Transient(said)).get("/broken/1").json()["error"]["message"]
    assert "root" not in message
    for kept in ("http://minio:9000/a", "s3://b/c", "/v1/files", "did not answer"):
        assert kept in message
    full = client(error=Fatal("The disk that holds /root/data is full", "Free some space there")).get("/broken/1")
    assert (
        full.json()["error"]["message"] == "The disk that holds (a place of the service) is full. Free some space there"
    )


def test_malformed_requests_and_unknown_paths_too() -> None:
    assert client().get("/broken/one").status_code == 400
    assert "number" in client().get("/broken/one").json()["error"]["message"]
    assert client().get("/nowhere").status_code == 404
    assert client().get("/nowhere").json()["error"]["message"]
    assert client().post("/healthz").json()["error"]["type"] == "invalid_request_error"


@dataclass(frozen=True)
class Thing:
    id: str


THINGS: list[Any] = [Thing("c"), {"id": "b"}, Thing("a")]
"""Newest first."""


def ids(shown: dict[str, Any]) -> list[str]:
    return [each["id"] if isinstance(each, dict) else each.id for each in shown["data"]]


def test_a_list_is_paged_as_openais_clients_expect() -> None:
    first = page_of(THINGS, None, 2)
    assert (first["object"], ids(first), first["has_more"]) == ("list", ["c", "b"], True)
    assert (first["first_id"], first["last_id"]) == ("c", "b")
    rest = page_of(THINGS, first["last_id"], 2)
    assert (ids(rest), rest["has_more"]) == (["a"], False)
    assert ids(page_of(THINGS, "a", 2)) == []
    assert ids(page_of(THINGS, "a", 10, "asc")) == ["b", "c"]


def test_an_empty_page_says_so_with_every_field() -> None:
    assert page([], False) == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


def test_a_place_that_is_none_is_not_found() -> None:
    with pytest.raises(NotFound, match="`last_id` of the page before"):
        page_of(THINGS, "x", 2)
