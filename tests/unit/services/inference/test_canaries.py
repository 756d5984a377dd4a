"""Nothing that a client tells the gateway is told on: the service as a process, with a stub engine, whose log, metrics and errors
are searched for every key, token, cookie, prompt and header that was shown at any door."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from services.inference.settings import InferenceSettings
from understudy.bases import Base
from understudy.belt.apikeys import mint
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import KeyEnded
from understudy.service.child import Child
from understudy.service.doors import DOORS
from understudy.service.ports import free_ports

TOKEN = "canary-token-of-this-installation"
PROMPT = "canary-prompt"
LIVING, MADE = mint("anna", ("inference", "jobs", "read", "admin"))
POOR, MADE_POOR = mint("otto", ("read",))
ENDED, MADE_ENDED = mint("emil", ("admin",))
STRANGER, _ = mint("nobody", ("admin",))
SHOWN = {
    "nothing": {},
    "a key": {"authorization": f"Bearer {LIVING}"},
    "a key that may little": {"authorization": f"Bearer {POOR}"},
    "a key that ended": {"authorization": f"Bearer {ENDED}"},
    "no key of ours": {"authorization": f"Bearer {STRANGER}"},
    "half a key": {"authorization": f"Bearer {LIVING[:-5]}"},
    "the token": {"authorization": f"Bearer {TOKEN}"},
    "a password": {"authorization": "Basic Y2FuYXJ5LXBhc3N3b3Jk"},
    "a cookie": {"cookie": "understudy-session=canary-cookie.1.2.3"},
}
SECRETS = (
    *(text[-20:] for text in (LIVING[:-5], POOR, ENDED, STRANGER)),
    MADE.secret_sha256,
    TOKEN,
    "Y2FuYXJ5LXBhc3N3b3Jk",
    "canary-cookie",
    PROMPT,
)


@pytest.fixture
def gateway(
    tmp_path: Path, base: Base, settings: InferenceSettings, launch: Callable[..., Child]
) -> Iterator[tuple[str, str, Path]]:
    """URLs for all and for insiders, and the log, of a gateway that asks for keys and says all it can."""
    port, inside, engine = free_ports(3)
    with contextlib.closing(EmbeddedBus(tmp_path / "bus.sqlite")) as bus:
        bus.publish(MADE, MADE_POOR, MADE_ENDED, KeyEnded(key_id=MADE_ENDED.key_id, at=time.time() - 1))
    launch(base, settings.model_copy(update={"internal_token": SecretStr(TOKEN)}), engine, 16)
    env = {name: value for name, value in os.environ.items() if not name.startswith("UNDERSTUDY_")}
    said = {"data": tmp_path, "models": settings.models, "port": port, "internal_port": inside, "keys": "required"}
    said |= {
        "base": base.name,
        "engine_url": f"http://127.0.0.1:{engine}",
        "internal_token": TOKEN,
        "log_level": "DEBUG",
    }
    env |= {f"UNDERSTUDY_{name.upper()}": str(value) for name, value in said.items()}
    log = tmp_path / "gateway.log"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "services.inference"], env=env, stdout=file, stderr=file)
    try:
        url, behind = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{inside}"
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{behind}/readyz").is_success and "tiny is ready" in log.read_text():
                    break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield url, behind, log
    finally:
        process.terminate()
        process.wait(20)


def test_no_key_and_no_prompt_is_told_on(gateway: tuple[str, str, Path]) -> None:
    url, behind, log = gateway
    bodies = (
        b"",
        json.dumps({"model": "tiny", "prompt": [PROMPT, PROMPT], "stream": True, "n": 1}).encode(),
        json.dumps({"model": "tiny", "messages": [{"role": "user", "content": PROMPT}]}).encode(),
        json.dumps({"model": "tiny", "prompt": PROMPT, "n": 99, "stop": PROMPT}).encode(),
        json.dumps({"model": "unknown", "prompt": PROMPT}).encode(),
        json.dumps({"model": "lose the core", "name": {"x": PROMPT}}).encode(),
        b'{"prompt": "' + PROMPT.encode(),
    )
    told: list[str] = []
    statuses = set()
    with httpx.Client(timeout=20, trust_env=False) as client:
        for door in DOORS:
            for at in (url, behind) if door.public else (url,):
                for shown in SHOWN.values():
                    for method, body in (("GET", b""), *(("POST", body) for body in bodies)):
                        headers = {"content-type": "application/json", "x-api-key": LIVING, **shown}
                        answer = client.request(method, at + door.family, content=body, headers=headers)
                        statuses.add(answer.status_code)
                        told.append(answer.text + str(answer.headers))
        with socket.create_connection(url.removeprefix("http://").split(":")) as raw:  # type: ignore[arg-type]
            raw.sendall(f"GET /{PROMPT} HTTP/9 {LIVING}\r\n\r\n".encode())
            told.append(raw.recv(10_000).decode())
        told.append(client.get(f"{behind}/metrics").text)
    assert {200, 400, 401, 403, 404} <= statuses
    assert not statuses & {500}
    written = log.read_text()
    assert "engine tiny is ready" in written, "the log is not empty"
    for secret in SECRETS:
        assert secret not in written
        assert not [each for each in told if secret in each]
