"""One token per installation, whoever comes first; the guard lets in who has it."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from pydantic import SecretStr

from understudy.errors import Fatal
from understudy.service.token import internal_token
from understudy.service.web import guarded, owner_of
from understudy.settings import Settings


def test_all_who_start_at_once_get_the_same_token_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    with ThreadPoolExecutor(16) as threads:
        tokens = set(threads.map(lambda _: internal_token(settings), range(64)))
    (path,) = (tmp_path / "data").iterdir()
    assert tokens == {path.read_text()}
    assert len(path.read_text()) >= 43
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_operators_own_token_comes_first_and_is_in_no_print_of_the_settings(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, internal_token=SecretStr("a-word-of-the-operator"))
    assert internal_token(settings) == "a-word-of-the-operator"
    assert "a-word" not in repr(settings)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(Fatal, match="UNDERSTUDY_INTERNAL_TOKEN"):
        internal_token(Settings(data=tmp_path / "data"))


@pytest.mark.parametrize(
    "content", ["", "\n", "short", "two words of some length", "ä" * 20, "with\r\nx-header: of-its-own"]
)
def test_what_cannot_be_a_token_lets_in_nobody(tmp_path: Path, content: str) -> None:
    """With an empty file each request that says nothing would say the right thing."""
    (tmp_path / "internal-token").write_text(content)
    with pytest.raises(Fatal, match="is no token"):
        internal_token(Settings(data=tmp_path))


def test_a_volume_without_links_keeps_no_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("understudy.service.token.os.link", no_links)
    with pytest.raises(Fatal, match="UNDERSTUDY_INTERNAL_TOKEN"):
        internal_token(Settings(data=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_service_answers_the_gateway_and_probes_and_nobody_else() -> None:
    app = FastAPI()

    @app.get("/v1/runs")
    def runs(request: Request) -> dict[str, str]:
        return {"owner": owner_of(request)}

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {}

    client = TestClient(guarded(app, "token"))
    assert client.get("/healthz").status_code == 200
    for headers in ({}, {"x-understudy-token": "wrong"}, {"authorization": "Bearer token"}):
        refused = client.get("/v1/runs", headers=headers)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "internal_token"
    public = TestClient(guarded(app, "token", probes=False))
    assert public.get("/healthz").status_code == 401
    said = {"x-understudy-token": "token", "x-understudy-owner": "anna"}
    assert client.get("/v1/runs", headers=said).json() == {"owner": "anna"}
