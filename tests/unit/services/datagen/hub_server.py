"""A small server that speaks the few routes of the Hugging Face hub by which a data set is listed and fetched."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "c0ffee" * 6 + "beef"


@dataclass
class HubServer:
    """Repositories by name, each {path: content}."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(method, path, Range) of every request."""
    says: dict[str, int] = field(default_factory=dict)
    """Repository -> status with which it is refused."""
    holds: threading.Event | None = None
    """Set: data files are sent only half-way until then."""
    cuts: bool = False
    """The next data file is cut off half-way."""

    def fetched(self) -> list[str]:
        return [
            unquote(path).rpartition(f"{COMMIT}/")[2]
            for method, path, _ in self.asked
            if method == "GET" and "/resolve/" in path
        ]


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch, cache: str) -> Iterator[HubServer]:
    """A server, and the library told to ask it, as HF_ENDPOINT tells it when it is imported."""
    from huggingface_hub import constants

    state = HubServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    try:
        yield state
    finally:
        if state.holds:
            state.holds.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = urlsplit(self.path).path
        self.state.asked.append((self.command, path, self.headers.get("range")))
        parts = [unquote(part) for part in path.split("/")[1:]]
        if parts[:2] == ["api", "datasets"] and parts[4] == "tree":
            repository, file = "/".join(parts[2:4]), None
        else:
            repository, file = "/".join(parts[1:3]), "/".join(parts[5:])
        files = self.state.repositories.get(repository)
        status = self.state.says.get(repository) or (200 if files is not None and file in (None, *files) else 404)
        if status != 200:
            code = "GatedRepo" if status == 403 else "RepoNotFound" if files is None else "EntryNotFound"
            self.send(status, b'{"error": "no"}', {"X-Error-Code": code})
        elif file is None:
            tree: list[Any] = [{"type": "file", "oid": "0", "size": len(body), "path": p} for p, body in files.items()]
            self.send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        else:
            self.give(file, files[file])

    def give(self, file: str, body: bytes) -> None:
        etag = hashlib.sha256(body).hexdigest()
        start = int((self.headers.get("range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        about = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            about["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        halfway = (self.state.holds or self.state.cuts) and self.command == "GET" and not file.endswith(".md")
        self.send(206 if start else 200, body[start:], about, stop=len(body[start:]) // 2 if halfway else None)

    def send(self, status: int, body: bytes, about: dict[str, str], stop: int | None = None) -> None:
        self.send_response(status)
        for name, value in about.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:stop])
        if stop is not None and self.state.holds:
            self.wfile.flush()
            self.state.holds.wait(30)
            self.wfile.write(body[stop:])
        elif stop is not None:
            self.state.cuts, self.close_connection = False, True

    def log_message(self, *_: object) -> None:
        pass
