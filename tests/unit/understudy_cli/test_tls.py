"""The command line trusts whom SSL_CERT_FILE names, on this machine too, and says so where it trusts nobody."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from understudy_cli.client import Gateway, Unreachable


class Api(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"data": [{"id": "base"}]}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def cert(tmp_path: Path) -> Path:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    line = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}"
    subprocess.run(line.split(), check=True, capture_output=True)
    return cert


@pytest.fixture
def url(cert: Path) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Api)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, cert.with_name("key.pem"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_authority_of_our_own(url: str, cert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with Gateway(url) as gateway, pytest.raises(Unreachable, match="SSL_CERT_FILE"):
        gateway.models()
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with Gateway(url) as gateway:
        assert gateway.models() == ["base"]
