"""The stack of compose.yaml, under a project name and a port of its own, so that it disturbs none that is up.

Override files come in by Compose's own variable, COMPOSE_FILE, and by name. Works with `docker compose` and with `docker-compose` 1.29.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from understudy.service.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("kafka", "engine", "datagen", "trainer", "inference", "evaluator")

# Run inside a container: what lies on the bus, and in the store.
MESSAGES = """
import json
from understudy.belt.bus.connect import connect
from understudy.settings import Settings
from understudy.belt.topics import TABLE
bus = connect(Settings())
print(json.dumps({t.name: [json.loads(r.value) for r in bus.replay([t.name]) if r] for t in TABLE if t.name not in ("progress", "keys")}))
"""
ARTIFACTS = """
import json
from pathlib import Path
refs = Path("/data/artifacts/refs/runs")
print(json.dumps({p.relative_to(refs).as_posix(): json.loads(p.read_text())["sha256"] for p in refs.rglob("*.json")}))
"""


# Run inside a container: which of the addresses in its arguments, `host:port`, it can connect to.
REACHED = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def reached(address):
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
        return True
    except OSError:
        return False
with ThreadPoolExecutor(32) as threads:
    print(json.dumps(list(threads.map(reached, sys.argv[1:]))))
"""
# Run inside a container: the status of a GET of the first argument, with the headers in the others.
STATUS = """
import sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[1], headers=dict(header.split(": ") for header in sys.argv[2:]))
try:
    print(urllib.request.urlopen(request, timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


class ComposeStack:
    """`stack.up()`, then `stack.url` answers; ends with `stack.down()`, which leaves nothing.

    `address`: of this machine, to publish the gateway at. `override`: one more file. `env`: what the operator has set.
    """

    def __init__(self, address: str = "127.0.0.1", override: str = "", env: Mapping[str, str] | None = None) -> None:
        (self.port,) = free_ports(1)
        self.url = f"{'https' if 'tls' in override else 'http'}://127.0.0.1:{self.port}"
        modern = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
        self._command = [
            *(["docker", "compose"] if modern else ["docker-compose"]),
            "-p",
            f"understudy-test-{self.port}",
        ]
        self._env = {
            "DOCKER_BUILDKIT": "1",
            "COMPOSE_DOCKER_CLI_BUILD": "1",
            **os.environ,
            **(env or {}),
            "UNDERSTUDY_PUBLISH": f"{address}:{self.port}",
            "COMPOSE_FILE": ":".join([os.environ.get("COMPOSE_FILE", "compose.yaml"), *filter(None, [override])]),
        }

    def build(self) -> None:
        """All images, from the sources as they are."""
        self._compose("build", timeout=3000)

    def up(self) -> None:
        """Start on empty volumes; returns once everything is healthy."""
        self._compose("up", "--detach", timeout=600)
        deadline = time.monotonic() + 300
        while late := [name for name in SERVICES if self.inspect(name, "{{.State.Health.Status}}") != "healthy"]:
            assert time.monotonic() < deadline, f"not healthy: {late}\n{self.logs()}"
            time.sleep(1)

    def start(self, service: str) -> None:
        """Start one service and what it needs; returns once that is healthy."""
        self._compose("up", "--detach", service, timeout=600)

    def run(self, service: str, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in a container of its own, as an operator runs it while the service is not up."""
        line = [*self._command, "run", "--rm", "-T", "--entrypoint", command[0], service, *command[1:]]
        return subprocess.run(line, cwd=ROOT, env=self._env, capture_output=True, text=True, timeout=600)

    def execute(self, service: str, *command: str) -> str:
        """What a command says in a container that is up."""
        return self._compose("exec", "-T", service, *command, timeout=120)

    def reaches(self, service: str, others: Sequence[tuple[str, int]]) -> dict[tuple[str, int], bool]:
        """Which ports of others a container can connect to, by any of their addresses, whatever names it can look up."""
        asked = [(other, address) for other in others for address in self.addresses(other[0])]
        line = [f"{address}:{port}" for (_, port), address in asked]
        found = json.loads(self.execute(service, "python", "-c", REACHED, *line))
        return {
            other: any(yes for (asked_for, _), yes in zip(asked, found, strict=True) if asked_for == other)
            for other in others
        }

    def addresses(self, service: str) -> list[str]:
        """Of a container, in each of its networks."""
        networks = json.loads(self.inspect(service, "{{json .NetworkSettings.Networks}}"))
        return [network["IPAddress"] for network in networks.values()]

    def status(self, service: str, url: str, *headers: str) -> int:
        """How a GET from inside a container is answered."""
        return int(self.execute(service, "python", "-c", STATUS, url, *headers))

    def down(self) -> None:
        """Stop everything and delete the volumes."""
        self._compose("down", "--volumes", "--timeout", "20", timeout=200)

    def kill(self, service: str) -> None:
        """SIGKILL to a container's main process, as a crash or the out-of-memory killer would: `docker kill` counts as an
        operator's stop, and Docker then starts nothing again. The container's init, process 1, is what has it as a child."""
        script = "kill -9 $(cat /proc/1/task/1/children)"
        subprocess.run([*self._command, "exec", "-T", service, "sh", "-c", script], cwd=ROOT, env=self._env, timeout=60)

    def restarts(self, service: str) -> int:
        """How often Docker started the container again by itself."""
        return int(self.inspect(service, "{{.RestartCount}}"))

    def messages(self, run: str) -> dict[str, int]:
        """Topic -> messages of a run on the bus, apart from progress; keys are of no run."""
        found: dict[str, list[dict[str, str]]] = json.loads(self._python("datagen", MESSAGES))
        return {topic: sum(message["run"] == run for message in values) for topic, values in found.items()}

    def artifacts(self, run: str) -> dict[str, str]:
        """Key -> digest of every finished artifact of a run."""
        found: dict[str, str] = json.loads(self._python("datagen", ARTIFACTS))
        ours = {key: digest for key, digest in found.items() if key.startswith(f"{run}/")}
        return {key: digest for key, digest in ours.items() if "/logs/" not in key}  # they have a clock in them

    def logs(self) -> str:
        """The last lines of every container."""
        return self.log(tail="40")

    def log(self, *services: str, tail: str = "all") -> str:
        """All that containers said."""
        return self._compose("logs", "--no-color", "--tail", tail, *services)

    def config(self) -> str:
        """What Compose makes of its files."""
        return self._compose("config")

    def _python(self, service: str, script: str) -> str:
        return self.execute(service, "python", "-c", script)

    def inspect(self, service: str, what: str) -> str:
        """What Docker knows of a service's container, by a template."""
        container = self._compose("ps", "-q", service).strip()
        return subprocess.check_output(["docker", "inspect", "-f", what, container], text=True, timeout=30).strip()

    def _compose(self, *arguments: str, timeout: float = 60) -> str:
        done = subprocess.run(
            [*self._command, *arguments], cwd=ROOT, env=self._env, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout
