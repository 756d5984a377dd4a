"""Every service answers the same probes, and every error in OpenAI's shape."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from understudy.errors import Fatal, Invalid, Transient
from understudy.service.web import NotFound, add_errors, add_health


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


def test_malformed_requests_and_unknown_paths_too() -> None:
    assert client().get("/broken/one").status_code == 400
    assert "number" in client().get("/broken/one").json()["error"]["message"]
    assert client().get("/nowhere").status_code == 404
    assert client().get("/nowhere").json()["error"]["message"]
    assert client().post("/healthz").json()["error"]["type"] == "invalid_request_error"
