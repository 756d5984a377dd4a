"""The key of the command line: to whom it is sent, to whom it is not, and what a refusal says to do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from understudy.belt.folds.views import RunSummary
from understudy.embedded import stackfile
from understudy.errors import Invalid
from understudy.service.token import internal_token
from understudy.settings import Settings
from understudy_cli import main
from understudy_cli.client import Gateway, Unreachable

KEY = "sk-understudy-abcd2345-" + "x" * 43


class Server:
    """Answers everything alike, and remembers which key came with it."""

    def __init__(self) -> None:
        self.came: list[str | None] = []
        self.status, self.headers = 200, dict[str, str]()
        self.said: dict[str, object] = {"data": [], "has_more": False}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.came.append(self.headers.get("authorization"))
                body = json.dumps(outer.said).encode()
                self.send_response(outer.status)
                for name, value in {**outer.headers, "content-length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_DELETE = do_GET

            def log_message(self, *_: object) -> None:
                return

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def refuses(self, status: int, message: str, code: str | None = None) -> None:
        self.status, self.said = status, {"error": {"message": message, "code": code}}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def other() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def cli(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    return int(end.value.code or 0)


def test_the_variable_and_the_option_are_sent_as_any_client_would(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    at = ("--server", server.url, "--data", str(tmp_path))
    cli("runs", *at)
    monkeypatch.setenv("UNDERSTUDY_API_KEY", f"{KEY}\n")
    cli("runs", *at)
    cli("runs", "--key", "sk-understudy-of-the-option", *at)
    assert server.came == [None, f"Bearer {KEY}", "Bearer sk-understudy-of-the-option"]


@pytest.mark.parametrize(
    "words",
    [
        ("keys", "create", "anna", "--scope", "read"),
        ("keys", "list"),
        ("keys", "revoke", "abcd2345"),
        ("keys", "rotate", "abcd2345"),
        ("runs",),
        ("watch", "r"),
        ("report", "r"),
        ("logs", "r"),
        ("cancel", "r"),
        ("delete", "r", "--yes"),
        ("pull", "m", "folder"),
        ("chat", "m"),
    ],
)
def test_every_command_that_asks_a_server_sends_it(words: tuple[str, ...], server: Server, tmp_path: Path) -> None:
    server.refuses(401, "No.")
    assert cli(*words, "--server", server.url, "--key", KEY, "--data", str(tmp_path)) == 1
    assert set(server.came) == {f"Bearer {KEY}"}


def test_run_sends_it_too(server: Server, tmp_path: Path) -> None:
    server.refuses(401, "No.")
    (tmp_path / "a.csv").write_text("text,label\ngood,1\n")
    (tmp_path / "r.yaml").write_text(
        "name: r\ndatasets: {d: {source: a.csv}}\nvariants: {v: {train: d}}\n"
        "evaluation: {panels: {p: {dataset: d, metrics: [accuracy]}}}\n"
    )
    assert cli("run", str(tmp_path / "r.yaml"), "--server", server.url, "--key", KEY, "--data", str(tmp_path)) == 1
    assert set(server.came) == {f"Bearer {KEY}"}


def test_a_redirect_is_not_followed(server: Server, other: Server) -> None:
    server.status, server.headers = 302, {"location": f"{other.url}/v1/models"}
    with Gateway(server.url, KEY) as gateway:
        with pytest.raises(Invalid, match=f"sends on to {other.url}/v1/models"):
            gateway.models()
        with pytest.raises(Invalid, match="neither key nor data go there"):
            list(gateway.chat("m", [], 1, 0))
    assert other.came == []


def test_the_stack_of_a_data_folder_needs_no_key_and_is_sent_none_of_another(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who can read the folder has the machine: what lets the services in lets them in too."""
    monkeypatch.setenv("UNDERSTUDY_API_KEY", KEY)
    token = internal_token(Settings(data=tmp_path))
    descriptor = stackfile.lock(tmp_path)
    stackfile.announce(tmp_path, server.url, server.url, {})
    cli("runs", "--data", str(tmp_path))
    assert server.came == [f"Bearer {token}"]
    (tmp_path / "internal-token").unlink()
    cli("runs", "--data", str(tmp_path))
    assert server.came[1:] == [f"Bearer {KEY}"], "it is somebody else's folder, but perhaps our key"
    assert not (tmp_path / "internal-token").exists(), "looking makes nothing"
    stackfile.forget(tmp_path)
    del descriptor


def test_a_refusal_says_what_to_do(server: Server) -> None:
    server.refuses(401, "This gateway asks for an API key", "invalid_api_key")
    with (
        Gateway(server.url) as gateway,
        pytest.raises(Invalid, match="Put yours in UNDERSTUDY_API_KEY, or name it with"),
    ):
        gateway.models()
    server.refuses(401, "This API key lets nobody in", "invalid_api_key")
    with (
        Gateway(server.url, KEY) as gateway,
        pytest.raises(Invalid, match=f"nobody in[.] Is it the one for {server.url}"),
    ):
        gateway.models()
    server.refuses(403, "Your key `a` lacks the scope `jobs`", "insufficient_scope")
    with Gateway(server.url, KEY) as gateway, pytest.raises(Invalid, match=r"scope `jobs`\. Ask whoever runs"):
        gateway.models()
    server.status, server.said = 401, {"detail": "a proxy's own words"}
    with Gateway(server.url) as gateway, pytest.raises(Invalid, match="answered 401 to GET /v1/models"):
        gateway.models()


@pytest.mark.parametrize("wrong", ["sk-é", "sk-a\nb: c", "sk-a\x00"])
def test_what_cannot_be_a_key_is_not_sent_and_not_said(wrong: str, server: Server) -> None:
    with pytest.raises(Invalid, match="a character that no key has") as error:
        Gateway(server.url, wrong)
    assert wrong not in str(error.value)
    assert server.came == []


def test_a_key_is_in_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for url in ("http://127.0.0.1:1", "http://[", "gpu-box"):
        cli("runs", "--server", url, "--key", KEY, "--data", str(tmp_path))
    with pytest.raises(Unreachable) as error, Gateway("http://127.0.0.1:1", KEY) as gateway:
        gateway.models()
    assert KEY not in capsys.readouterr().err + str(error.value)


def test_runs_are_listed_with_who_asked_where_that_is_known(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunSummary(
        id="r-1", name="r", status="queued", generation=1, created_at=0, owner="anna b.", bases=("tiny",), stages={}
    )
    nobodys = run.model_copy(update={"id": "r-2", "owner": ""})
    server.said = {"data": [each.model_dump(mode="json") for each in (run, nobodys)], "has_more": False}
    cli("runs", "--server", server.url, "--data", str(tmp_path))
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "status", "started", "by", "items", "base"]
    assert "anna b." in first
    assert "anna" not in second
    server.said = {"data": [nobodys.model_dump(mode="json")], "has_more": False}
    cli("runs", "--server", server.url, "--data", str(tmp_path))
    assert " by " not in capsys.readouterr().out
