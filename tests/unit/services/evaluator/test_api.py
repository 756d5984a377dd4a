"""Proves what /v1/reports answers: the stored report, locked down, or 404 in OpenAI's shape."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.testclient import TestClient

from services.evaluator.api import router
from understudy.service.web import add_errors
from understudy.testing import local_store


def client(folder: Path) -> TestClient:
    app = FastAPI()
    add_errors(app)
    app.include_router(router(local_store(folder)))
    return TestClient(app)


def test_the_report_as_page_and_as_data(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "report.html").write_text("<!doctype html>hello")
    (made / "report.json").write_text('{"run": "x-1.2"}')
    local_store(tmp_path).put("runs/x-1.2/reports/001-000", made)
    page = client(tmp_path).get("/v1/reports/x-1.2")
    assert page.text == "<!doctype html>hello"
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert client(tmp_path).get("/v1/reports/x-1.2.json").json() == {"run": "x-1.2"}


def test_the_newest_report_is_shown(tmp_path: Path) -> None:
    """After a second try: more variants scored is newer, and with as many the one that tried more often."""
    for outcome in ("003-000", "002-010", "002-002"):
        made = tmp_path / outcome
        made.mkdir()
        (made / "report.json").write_text(f'"{outcome}"')
        local_store(tmp_path).put(f"runs/x/reports/{outcome}", made)
    assert client(tmp_path).get("/v1/reports/x.json").json() == "003-000"
    local_store(tmp_path).drop("runs/x/reports/003-000")
    assert client(tmp_path).get("/v1/reports/x.json").json() == "002-010"


def test_no_report_yet_is_not_found(tmp_path: Path) -> None:
    for path in ("/v1/reports/nowhere", "/v1/reports/nowhere.json"):
        answer = client(tmp_path).get(path)
        assert answer.status_code == 404
        assert "Run `nowhere` has no report yet" in answer.json()["error"]["message"]
