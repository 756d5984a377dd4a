"""The probe of the images: it says by its exit code whether this container's own API answers with success."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from understudy.service.ports import free_ports
from understudy.settings import PROJECT


class Api(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 503)
        self.end_headers()
        self.wfile.write(b"reading the log")

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def port() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def probe(port: int, path: str, **others: str) -> subprocess.CompletedProcess[str]:
    """As an image does it, with a proxy in the environment that must not be asked."""
    env = {"UNDERSTUDY_PORT": str(port), "http_proxy": "http://127.0.0.1:9", **others}
    line = [sys.executable, "-m", "understudy.service.probe", path]
    return subprocess.run(line, env=env, cwd=PROJECT, capture_output=True, text=True, timeout=30)


def test_an_api_that_answers_is_healthy(port: int) -> None:
    assert probe(port, "/healthz").returncode == 0


def test_a_service_with_a_port_for_insiders_is_asked_there(port: int) -> None:
    assert probe(9, "/healthz", UNDERSTUDY_INTERNAL_PORT=str(port)).returncode == 0
    assert probe(port, "/healthz", UNDERSTUDY_INTERNAL_PORT="9").returncode == 1
    assert probe(port, "/healthz", UNDERSTUDY_INTERNAL_PORT="0").returncode == 0


def test_a_refusal_is_not_and_its_reason_is_said(port: int) -> None:
    done = probe(port, "/readyz")
    assert done.returncode == 1
    assert "503 reading the log" in done.stderr


def test_nobody_there_is_not() -> None:
    (port,) = free_ports(1)
    done = probe(port, "/healthz")
    assert done.returncode == 1
    assert "Connection refused" in done.stderr
    assert "Traceback" not in done.stderr
