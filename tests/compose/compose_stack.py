"""The stack of compose.yaml, under a project name and a port of its own, so that it disturbs none that is up.

Override files come in by Compose's own variable, COMPOSE_FILE. Works with `docker compose` and with `docker-compose` 1.29.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
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
print(json.dumps({t.name: [json.loads(r.value) for r in bus.replay([t.name]) if r] for t in TABLE if t.name != "progress"}))
"""
ARTIFACTS = """
import json
from pathlib import Path
refs = Path("/data/artifacts/refs/runs")
print(json.dumps({p.relative_to(refs).as_posix(): json.loads(p.read_text())["sha256"] for p in refs.rglob("*.json")}))
"""


class ComposeStack:
    """`stack.up()`, then `stack.url` answers; ends with `stack.down()`, which leaves nothing."""

    def __init__(self) -> None:
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
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
            "UNDERSTUDY_PUBLISH": f"127.0.0.1:{self.port}",
        }

    def build(self) -> None:
        """All images, from the sources as they are."""
        self._compose("build", timeout=3000)

    def up(self) -> None:
        """Start on empty volumes; returns once everything is healthy."""
        self._compose("up", "--detach", timeout=600)
        deadline = time.monotonic() + 300
        while late := [name for name in SERVICES if self._inspect(name, "{{.State.Health.Status}}") != "healthy"]:
            assert time.monotonic() < deadline, f"not healthy: {late}\n{self.logs()}"
            time.sleep(1)

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
        return int(self._inspect(service, "{{.RestartCount}}"))

    def messages(self, run: str) -> dict[str, int]:
        """Topic -> messages of a run on the bus, apart from progress."""
        found: dict[str, list[dict[str, str]]] = json.loads(self._python("datagen", MESSAGES))
        return {topic: sum(message["run"] == run for message in values) for topic, values in found.items()}

    def artifacts(self, run: str) -> dict[str, str]:
        """Key -> digest of every finished artifact of a run."""
        found: dict[str, str] = json.loads(self._python("datagen", ARTIFACTS))
        ours = {key: digest for key, digest in found.items() if key.startswith(f"{run}/")}
        return {key: digest for key, digest in ours.items() if "/logs/" not in key}  # they have a clock in them

    def logs(self) -> str:
        """The last lines of every container."""
        return self._compose("logs", "--no-color", "--tail", "40")

    def _python(self, service: str, script: str) -> str:
        return self._compose("exec", "-T", service, "python", "-c", script, timeout=120)

    def _inspect(self, service: str, what: str) -> str:
        container = self._compose("ps", "-q", service).strip()
        return subprocess.check_output(["docker", "inspect", "-f", what, container], text=True, timeout=30).strip()

    def _compose(self, *arguments: str, timeout: float = 60) -> str:
        done = subprocess.run(
            [*self._command, *arguments], cwd=ROOT, env=self._env, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout
