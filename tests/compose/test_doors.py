"""compose.yaml published beyond this machine, with TLS: nobody comes in without a key, no container reaches what it need not, and
no secret is told. Slow, so it is not part of `make test`: `make test-compose`.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from belt import UNDERSTUDY, small_recipe
from compose_stack import REACHED, SERVICES, ComposeStack

pytestmark = pytest.mark.timeout(3600)

OPENSSL = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=box -addext subjectAltName=IP:127.0.0.1"
OPERATORS = {name: f"canary-{name.lower()}" for name in ("OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY")}
PORTS = [("kafka", 9092), ("kafka", 9093), ("engine", 8000), ("inference", 8000), ("inference", 8001)]
PORTS += [(name, 8000) for name in ("datagen", "trainer", "evaluator")]
IN_BELT = {port for port in PORTS if port not in (("kafka", 9093), ("engine", 8000))}
REACHES = {
    "datagen": IN_BELT,
    "trainer": IN_BELT,
    "evaluator": IN_BELT,
    "inference": {*IN_BELT, ("engine", 8000)},
    "engine": {("engine", 8000), ("inference", 8000), ("inference", 8001)},
}
"""Who needs whom, and nothing else. Kafka's controller is for itself."""


@dataclass
class Published:
    """A stack that is up, and how it came to be."""

    stack: ComposeStack
    cert: Path
    refusal: str
    """What inference said before there was a key."""
    key: str
    """The first one."""
    token: str
    """What its services know each other by."""

    def client(self, key: str = "") -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        trusting = ssl.create_default_context(cafile=self.cert)
        return httpx.Client(base_url=self.stack.url, headers=headers, verify=trusting, trust_env=False, timeout=60)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    """As docs/operations.md tells an operator to do it, on empty volumes."""
    folder = tmp_path_factory.mktemp("tls")
    cert, private = folder / "cert.pem", folder / "key.pem"
    subprocess.run([*OPENSSL.split(), "-keyout", str(private), "-out", str(cert)], check=True, capture_output=True)
    private.chmod(0o644)
    tls = {"UNDERSTUDY_TLS_CERT": str(cert), "UNDERSTUDY_TLS_KEY": str(private)}
    stack = ComposeStack("0.0.0.0", "compose.tls.yaml", {**OPERATORS, **tls})
    stack.build()
    try:
        stack.start("inference")
        deadline = time.monotonic() + 120
        while "nobody has a key yet" not in (refusal := stack.log("inference")):
            assert time.monotonic() < deadline, refusal
            time.sleep(1)
        with pytest.raises(httpx.HTTPError):
            httpx.get(stack.url, verify=False, trust_env=False)
        made = stack.run("inference", "understudy", "keys", "create", "--first")
        assert made.returncode == 0, made.stderr
        stack.up()
        token = stack.execute("datagen", "cat", "/data/internal-token").strip()
        yield Published(stack, cert, refusal, made.stdout.strip(), token)
    finally:
        stack.down()


def test_without_a_key_it_does_not_start_and_says_which_command_makes_one(published: Published) -> None:
    assert "docker compose run --rm --entrypoint understudy inference keys create --first" in published.refusal
    assert published.key.startswith("sk-understudy-")
    again = published.stack.run("inference", "understudy", "keys", "create", "--first")
    assert again.returncode == 1
    assert "Somebody has a key already" in again.stderr


def test_with_one_it_comes_up_by_itself_and_lets_in_who_has_it(published: Published) -> None:
    with published.client() as stranger, published.client(published.key) as anna:
        for path in ("/v1/models", "/v1/runs", "/v1/fine_tuning/jobs", "/v1/reports", "/v1/files"):
            assert stranger.get(path).status_code == 401, path
        for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/"):
            assert stranger.get(path).status_code in (401, 404), path
            assert anna.get(path).status_code == 404, path
        assert anna.get("/v1/models").json()["data"][0]["id"] == "seedling"
        assert anna.get("/v1/runs").status_code == 200
    with published.client(published.token) as insider:
        assert insider.get("/v1/runs").status_code == 401, "what services know each other by opens nothing from outside"
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{published.stack.port}/v1/models", trust_env=False)


def test_who_operates_it_sees_whose_keys_there_are_inside(published: Published) -> None:
    listed = published.stack.execute("inference", "understudy", "keys", "list", "--json")
    assert '"admin"' in listed
    assert published.key.rsplit("-", 1)[1] not in listed
    made = published.stack.execute("inference", "understudy", "keys", "create", "ci", "--scope", "read").strip()
    deadline = time.monotonic() + 10
    with published.client(made) as ci:
        while (status := ci.get("/v1/runs").status_code) != 200:
            assert status == 401
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert ci.post("/v1/runs", json={}).status_code == 403


@pytest.mark.parametrize("name", REACHES)
def test_a_container_reaches_what_it_needs_and_nothing_else(published: Published, name: str) -> None:
    found = published.stack.reaches(name, PORTS)
    assert {port for port, yes in found.items() if yes} == REACHES[name]


def test_a_container_that_is_none_of_ours_reaches_none_of_them(published: Published) -> None:
    line = [f"{address}:{port}" for name, port in PORTS for address in published.stack.addresses(name)]
    run = [
        "docker",
        "run",
        "--rm",
        "--network",
        "bridge",
        "--entrypoint",
        "python",
        "understudy-datagen",
        "-c",
        REACHED,
    ]
    said = subprocess.run([*run, *line], capture_output=True, text=True, timeout=120, check=True).stdout
    assert said.count("false") == len(line), said


def test_services_answer_the_gateway_alone_and_probes_everybody_inside(published: Published) -> None:
    stack, known = published.stack, f"x-understudy-token: {published.token}"
    for name, path in (("datagen", "/v1/runs"), ("trainer", "/v1/fine_tuning/jobs"), ("evaluator", "/openapi.json")):
        assert stack.status("trainer", f"http://{name}:8000{path}") == 401
        assert stack.status("trainer", f"http://{name}:8000{path}", "x-understudy-token: guessed") == 401
        assert stack.status("trainer", f"http://{name}:8000{path}", known) == 200
        assert stack.status("trainer", f"http://{name}:8000/metrics") == 200
    assert stack.status("evaluator", "http://inference:8001/metrics") == 200
    assert stack.status("evaluator", "http://inference:8001/v1/runs") == 401
    assert stack.status("evaluator", "http://inference:8001/v1/runs", f"authorization: Bearer {published.token}") == 200
    assert stack.status("engine", "http://inference:8001/v1/runs") == 401


def test_the_token_of_the_services_is_theirs_alone(published: Published) -> None:
    stack = published.stack
    assert len(published.token) >= 43
    assert stack.execute("datagen", "stat", "-c", "%a %u", "/data/internal-token").split() == ["600", "10001"]
    for name in ("trainer", "inference", "evaluator"):
        assert stack.execute(name, "cat", "/data/internal-token").strip() == published.token
    assert "internal-token" not in stack.execute("engine", "ls", "-A", "/data")


def test_a_run_goes_through_with_a_key_and_an_authority_of_our_own(published: Published, tmp_path: Path) -> None:
    line = [
        str(UNDERSTUDY),
        "run",
        str(small_recipe(tmp_path)),
        "--server",
        published.stack.url,
        "--data",
        str(tmp_path),
    ]
    env = {**os.environ, "SSL_CERT_FILE": str(published.cert), "UNDERSTUDY_API_KEY": published.key}
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr + published.stack.logs()
    env.pop("UNDERSTUDY_API_KEY")
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "API key" in done.stderr


def test_no_secret_is_told(published: Published) -> None:
    """By what was said meanwhile, by the images, or by what Docker and Compose show of the stack."""
    stack = published.stack
    made = [published.key, published.key.rsplit("-", 1)[1], published.token]
    said = stack.log()
    for secret in (*made, *OPERATORS.values(), "PRIVATE KEY"):
        assert secret not in said
    for name in SERVICES:
        shown = stack.inspect(name, "{{json .}}")
        image = stack.inspect(name, "{{.Image}}")
        for line in (["image", "inspect", image], ["history", "--no-trunc", image]):
            built = subprocess.check_output(["docker", *line], text=True)
            assert not [secret for secret in (*made, *OPERATORS.values()) if secret in built], name
        assert not [secret for secret in made if secret in shown], name
    for secret in made:
        assert secret not in stack.config()
