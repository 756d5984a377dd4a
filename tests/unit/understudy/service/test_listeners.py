"""A service's listeners, with real sockets and a real certificate: who finds what where, and that both end in order."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from understudy.service.ports import free_ports

SERVICE = """
import sys
from fastapi import APIRouter, Request
from understudy.service.host import Service, serve
from understudy.settings import Settings

router = APIRouter()

@router.get("/v1/things")
def things(request: Request):
    return {"client": request.client.host, "scheme": request.url.scheme}

serve("datagen", Settings(), lambda settings, kernel: Service(lanes=(), router=router))
"""
OPENSSL = (
    "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=here -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for this machine, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run([*OPENSSL.split(), "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


def start(data: Path, **settings: object) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("UNDERSTUDY_")}
    env |= {f"UNDERSTUDY_{name.upper()}": str(value) for name, value in {"data": data, **settings}.items()}
    return subprocess.Popen([sys.executable, "-c", SERVICE], env=env, stderr=subprocess.PIPE, text=True)


@contextmanager
def service(data: Path, url: str, **settings: object) -> Iterator[subprocess.Popen[str]]:
    """A service that is ready, as who asks `url` sees."""
    process = start(data, **settings)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            try:
                if httpx.get(f"{url}/readyz", trust_env=False).is_success:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.communicate()


def last_word(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=60)
    assert process.returncode == 70, said
    return said.splitlines()[-1]


def test_probes_are_at_the_internal_port_alone_and_both_listeners_end_at_once(tmp_path: Path) -> None:
    public, internal = free_ports(2)
    at, inside = f"http://127.0.0.1:{public}", f"http://127.0.0.1:{internal}"
    with (
        service(tmp_path, inside, port=public, internal_port=internal) as process,
        httpx.Client(trust_env=False) as client,
    ):
        known = {"x-understudy-token": (tmp_path / "internal-token").read_text(), "x-forwarded-for": "6.6.6.6"}
        for path in ("/healthz", "/readyz", "/metrics"):
            assert client.get(inside + path).status_code == 200
            assert client.get(at + path).status_code == 401
        for url in (at, inside):
            assert client.get(f"{url}/v1/things").status_code == 401
            assert client.get(f"{url}/v1/things", headers=known).json() == {"client": "127.0.0.1", "scheme": "http"}
        upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
        assert client.get(f"{at}/v1/things", headers={**upgrade, "sec-websocket-key": "a" * 24}).status_code == 401
        with socket.create_connection(("127.0.0.1", internal)) as idle:  # who just sits there holds up nothing
            idle.sendall(b"GET /healthz HTTP/1.1\r\n")
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            assert time.monotonic() - began < 6


def test_the_internal_port_may_be_on_loopback_while_the_public_one_is_not(tmp_path: Path) -> None:
    public, internal = free_ports(2)
    inside = f"http://127.0.0.1:{internal}"
    with service(tmp_path, inside, host="0.0.0.0", port=public, internal_port=internal, internal_host="127.0.0.1"):
        address = socket.gethostbyname(socket.gethostname())
        other = address if not address.startswith("127.0.0.1") else "127.0.0.2"
        assert httpx.get(f"http://{other}:{public}/healthz", trust_env=False).status_code == 401
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://{other}:{internal}/healthz", trust_env=False)


def test_the_public_port_speaks_tls_and_nothing_else_while_insiders_need_none(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    public, internal = free_ports(2)
    cert, key = pair
    inside = f"http://127.0.0.1:{internal}"
    with service(tmp_path, inside, port=public, internal_port=internal, tls_cert=cert, tls_key=key):
        known = {"x-understudy-token": (tmp_path / "internal-token").read_text()}
        trusting = ssl.create_default_context(cafile=cert)
        answer = httpx.get(f"https://localhost:{public}/v1/things", headers=known, verify=trusting, trust_env=False)
        assert answer.json()["scheme"] == "https"
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"https://localhost:{public}/v1/things", verify=ssl.create_default_context(), trust_env=False)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{public}/v1/things", headers=known, trust_env=False)

        def agreed(version: ssl.TLSVersion) -> str:
            context = ssl.create_default_context(cafile=cert)
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version
            with socket.create_connection(("127.0.0.1", public)) as plain:
                return context.wrap_socket(plain, server_hostname="localhost").cipher()[0]  # type: ignore[index]

        assert "GCM" in agreed(ssl.TLSVersion.TLSv1_3) or "CHACHA" in agreed(ssl.TLSVersion.TLSv1_3)
        assert agreed(ssl.TLSVersion.TLSv1_2).startswith("ECDHE")
        with pytest.raises(ssl.SSLError):
            agreed(ssl.TLSVersion.TLSv1_1)


@pytest.mark.parametrize("what", ["no key", "no file", "another's key", "a key with a password", "no certificate"])
def test_what_is_no_pair_ends_the_service_with_that_word_and_asks_no_terminal(
    tmp_path: Path, pair: tuple[Path, Path], what: str
) -> None:
    cert, key = pair
    other = tmp_path / "other.pem"
    if what == "another's key":
        subprocess.run(f"openssl genrsa -out {other} 2048".split(), check=True, capture_output=True)
    elif what == "a key with a password":
        line = f"openssl rsa -aes128 -passout pass:word -in {key} -out {other}"
        subprocess.run(line.split(), check=True, capture_output=True)
    elif what == "no certificate":
        cert, other = key, key
    settings = {"tls_cert": cert} if what == "no key" else {"tls_cert": cert, "tls_key": other}
    said = last_word(start(tmp_path / "data", port=free_ports(1)[0], **settings))
    assert "UNDERSTUDY_TLS_CERT and UNDERSTUDY_TLS_KEY are no certificate with its key" in said


def test_an_internal_port_that_is_taken_ends_the_service(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = last_word(start(tmp_path, port=free_ports(1)[0], internal_port=port))
        assert f"Cannot listen on 127.0.0.1:{port}" in said
