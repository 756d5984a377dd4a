"""The embedded stack: four services as child processes of this one, on one data folder, behind one port.

`with Stack(data, port) as stack: stack.wait_ready(...)`. The gateway may listen for others too, the other services never do:
then, or with TLS, it has a second port on loopback, where the others and the commands of this machine ask it.

A thread watches the children: one that dies comes back on its port after a pause that doubles; one that says it cannot go
on (`FATAL_EXIT`), or ends five times in a row, ends the stack with its last words; of kills from outside, ten minutes of
them do. However this process ends, so do the services (`child.py`) and the lock on the data folder (`stackfile.py`): nothing
stale is left to clean up.

Does not know what the services do, only that they answer /readyz on `UNDERSTUDY_PORT`, or the gateway's on
`UNDERSTUDY_INTERNAL_PORT`. Does not run on several machines (Kubernetes does).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from understudy.belt.bus.connect import connect
from understudy.embedded.stackfile import announce, forget, lock
from understudy.errors import FATAL_EXIT, Fatal, disk_full
from understudy.service.child import Child
from understudy.service.log import last_words, rotate
from understudy.service.ports import free_ports, holder, is_free
from understudy.service.published import is_loopback
from understudy.settings import PROJECT, Settings
from understudy.store.artifacts import FsspecArtifactStore
from understudy.terms import STATIONS

GATEWAY = "inference"
"""The service that has the public port; it goes last, because the others ask it."""
GATEWAY_ALONE = tuple(
    f"UNDERSTUDY_{name}" for name in ("PUBLISH", "INTERNAL_PORT", "INTERNAL_HOST", "TLS_CERT", "TLS_KEY")
)
OPENAI_KEY = "OPENAI_API_KEY"
PAYING = ("datagen",)
"""Services that ask models which somebody pays for; the others, and the engines below them, are not shown the key."""
COMMANDS: Mapping[str, Sequence[str]] = {name: (sys.executable, "-m", f"services.{name}") for name in STATIONS}
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
HEALTHY_AFTER = 30.0
"""Seconds of life after which earlier deaths are forgotten."""
MAX_DEATHS = 5
KILLED_PATIENCE = 600.0
"""Seconds of deaths in a row before the stack gives up on a service that somebody, or the system for want of memory, kills."""
PORT_PATIENCE = 2.0
"""Seconds to wait for the port: services of a stack that was killed a moment ago may still be ending."""
LOOKS_PER_ROTATION = 300
"""Logs are looked at every half minute."""
GRACE = 8.0
"""Seconds a service has to end in order."""


@dataclass
class _Service:
    name: str
    command: Sequence[str]
    port: int
    child: Child
    started: float
    deaths: int = 0
    """In a row and of its own doing,"""
    kills: int = 0
    """and from outside."""
    dying_since: float = 0.0
    restart_at: float | None = None


@dataclass
class Stack:
    """One supervised set of services. Raises `Fatal` when it cannot start; `failure` says why it ended by itself."""

    data: Path
    port: int = 0
    """Of the gateway; 0 takes a free one."""
    base: str | None = None
    """Base model to have ready at once, before any run asks for one."""
    host: str = "127.0.0.1"
    """What the gateway listens on."""
    commands: Mapping[str, Sequence[str]] = field(default_factory=lambda: COMMANDS)
    say: Callable[[str], None] = lambda line: None
    """Told about every restart."""
    grace: float = GRACE
    failure: Fatal | None = None

    def __post_init__(self) -> None:
        self.data = self.data.resolve()
        self._inside = 0
        """Of the gateway, for insiders, where `port` is not for them."""
        self._services: dict[str, _Service] = {}
        self._lock_fd = -1
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="stack", daemon=True)

    @property
    def url(self) -> str:
        """Of the gateway, for those on this machine."""
        return f"http://127.0.0.1:{self._inside or self.port}"

    @property
    def _strangers_come(self) -> bool:
        return not is_loopback(self.host) or Settings().keys == "required"

    @property
    def endpoint(self) -> str:
        """Of the gateway, for its users."""
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        return f"{'https' if Settings().tls_cert else 'http'}://{_at(host, self.port)}"

    def start(self) -> None:
        """Take the data folder and the port, start all services; they are not ready yet."""
        self._lock_fd = lock(self.data)
        try:
            _check_versions(self.data)
            self._take_port()
            spare = (port for port in free_ports(len(self.commands) + 2) if port != self.port)
            self._inside = next(spare) if self._strangers_come or Settings().tls_cert else 0
            ports = {name: self.port if name == GATEWAY else next(spare) for name in self.commands}
            env = self._environment(ports)
            self._env = {
                name: env
                | {"UNDERSTUDY_PORT": str(port)}
                | ({} if name in PAYING else dict.fromkeys(_keys_of_providers(), ""))
                for name, port in ports.items()
            }
            if GATEWAY in self._env:
                self._env[GATEWAY] |= self._of_the_gateway()
            for name, command in self.commands.items():
                rotate(self._log(name))
                port = self._inside if name == GATEWAY and self._inside else ports[name]
                self._services[name] = _Service(name, command, port, self._spawn(name, command), time.monotonic())
            self._thread.start()
        except BaseException:
            self.stop()
            raise

    def wait_ready(
        self, on_change: Callable[[dict[str, str | None]], None] = lambda waiting: None, timeout: float = 600
    ) -> None:
        """Return when every service is ready; meanwhile tell what each waits for (None: ready). Raises `Fatal`."""
        waiting: dict[str, str | None] = dict.fromkeys(self._services, "starting")
        deadline = time.monotonic() + timeout
        with httpx.Client(timeout=2, trust_env=False) as client:
            while any(waiting.values()):
                on_change(dict(waiting))
                self.check()
                if time.monotonic() > deadline:
                    late = ", ".join(f"{name} ({reason})" for name, reason in waiting.items() if reason)
                    raise Fatal(f"Not ready after {timeout:.0f} s: {late}", f"See the logs in {self.data / 'logs'}.")
                for name in [name for name, reason in waiting.items() if reason]:
                    waiting[name] = _not_ready(client, self._services[name].port)
                if any(waiting.values()):
                    self._ended.wait(0.2)
        on_change(dict(waiting))
        ports = {name: service.port for name, service in self._services.items()}
        announce(self.data, self.url, self.endpoint, ports)

    def check(self) -> None:
        """Raise why the stack ended by itself, if it did."""
        if self.failure:
            raise self.failure

    def wait(self) -> None:
        """Until the stack ends by itself; raises why."""
        while not self._ended.wait(1.0):
            pass
        self.check()

    def stop(self) -> None:
        """End all services in order, the gateway last, and release the data folder. Safe to call twice.

        Interrupted half-way it leaves the rest to the end of this process, which takes every service with it.
        """
        self._ended.set()
        if self._thread.ident:
            self._thread.join(5)
        if self._lock_fd >= 0:
            forget(self.data)
        for last in (False, True):
            ending = [
                threading.Thread(target=service.child.stop, args=(self.grace,), daemon=True)
                for service in self._services.values()
                if (service.name == GATEWAY) is last
            ]
            for thread in ending:
                thread.start()
            for thread in ending:
                thread.join()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _take_port(self) -> None:
        if not self.port:
            (self.port,) = free_ports(1)
        deadline = time.monotonic() + PORT_PATIENCE
        while not self._is_free():
            if time.monotonic() > deadline:
                who = holder(self.port)
                raise Fatal(
                    f"Port {self.port} is in use{f' by {who}' if who else ''}",
                    "Stop that, or choose another with --port.",
                )
            time.sleep(0.1)

    def _is_free(self) -> bool:
        try:
            return is_free(self.port, self.host)
        except OSError as error:
            what = f"Cannot listen on {_at(self.host, self.port)}: {error.strerror}"
            raise Fatal(what, "Choose another with --port or --host.") from error

    def _environment(self, ports: Mapping[str, int]) -> dict[str, str]:
        paths = [str(PROJECT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        env = {
            "UNDERSTUDY_DATA": str(self.data),
            "UNDERSTUDY_HOST": "127.0.0.1",
            # What is said of the gateway is not for the others, nor what is said of one in containers for this one.
            **dict.fromkeys(GATEWAY_ALONE, ""),
            "UNDERSTUDY_GATEWAY": self.url,
            "UNDERSTUDY_MODELS": str(Settings().models.resolve()),
            "UNDERSTUDY_MEMBER": "0",
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
            "PYTHONUNBUFFERED": "1",
        }
        env |= {
            f"UNDERSTUDY_{name.upper()}_URL": f"http://127.0.0.1:{port}"
            for name, port in ports.items()
            if name != GATEWAY
        }
        if not self._strangers_come:  # who asks is who has started us, so what they may name is theirs to say
            env["UNDERSTUDY_BASES"] = os.environ.get("UNDERSTUDY_BASES") or "*"
        return env | ({"UNDERSTUDY_BASE": self.base} if self.base else {})

    def _of_the_gateway(self) -> dict[str, str]:
        settings = Settings()
        env = {"UNDERSTUDY_HOST": self.host, "UNDERSTUDY_PUBLISH": _at(self.host, self.port)}
        if self._inside:
            env |= {"UNDERSTUDY_INTERNAL_PORT": str(self._inside), "UNDERSTUDY_INTERNAL_HOST": "127.0.0.1"}
        for name, path in (("CERT", settings.tls_cert), ("KEY", settings.tls_key)):
            if path:
                env[f"UNDERSTUDY_TLS_{name}"] = str(path.expanduser().absolute())
        return env

    def _spawn(self, name: str, command: Sequence[str]) -> Child:
        # cwd is not the user's: `-m` puts it first on the import path, and there may be a file called like one of our modules.
        return Child(command, log=self._log(name), env=self._env[name], cwd=PROJECT)

    def _log(self, name: str) -> Path:
        return self.data / "logs" / f"{name}.log"

    def _supervise(self) -> None:
        looks = 0
        while not self._ended.wait(0.1):
            looks += 1
            try:
                for name in self._services if looks % LOOKS_PER_ROTATION == 0 else ():
                    rotate(self._log(name))
                for service in self._services.values():
                    self._look_after(service)
            except Fatal as error:
                self.failure = error
                self._ended.set()
            except OSError as error:  # no process could be started
                self.failure = disk_full(error, self.data) or Fatal(f"Cannot start a service: {error.strerror}")
                self._ended.set()

    def _look_after(self, service: _Service) -> None:
        now = time.monotonic()
        if service.restart_at is not None:
            if now >= service.restart_at:
                service.child, service.started, service.restart_at = (
                    self._spawn(service.name, service.command),
                    now,
                    None,
                )
            return
        code = service.child.poll()
        if code is None:
            return
        if not service.deaths + service.kills or now - service.started >= HEALTHY_AFTER:
            service.deaths = service.kills = 0
            service.dying_since = now
        killed = code == -signal.SIGKILL
        service.deaths, service.kills = service.deaths + (not killed), service.kills + killed
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        often, patience = (service.kills, KILLED_PATIENCE) if killed else (service.deaths, 0.0)
        if code == FATAL_EXIT or (often >= MAX_DEATHS and now - service.dying_since >= patience):
            again = "" if code == FATAL_EXIT else f" {often} times in a row"
            words = last_words(self._log(service.name)) or "it said nothing"
            raise Fatal(f"The {service.name} service {how}{again}: {words}", f"Its log: {self._log(service.name)}")
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (service.deaths + service.kills - 1))
        service.restart_at = now + pause
        self.say(f"{service.name} {how}; starting it again")


def _at(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _keys_of_providers() -> set[str]:
    """Environment variables with keys that somebody pays for."""
    try:
        named = json.loads(os.environ.get("UNDERSTUDY_PROVIDERS") or "{}")
        return {OPENAI_KEY, *(str(each["key"]) for each in named.values() if each.get("key"))}
    except (ValueError, TypeError, AttributeError, KeyError):  # datagen will say what is wrong with it
        return {OPENAI_KEY}


def _check_versions(data: Path) -> None:
    """Raise `Fatal` when bus or store in the folder are of another version: one sentence, before four services say it."""
    settings = Settings(data=data)
    if not settings.bus:
        connect(settings).close()
    if not settings.artifacts:
        FsspecArtifactStore(settings.artifact_url(), settings.cache()).check()


def _not_ready(client: httpx.Client, port: int) -> str | None:
    try:
        answer = client.get(f"http://127.0.0.1:{port}/readyz")
        return None if answer.is_success else str(answer.json()["error"]["message"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return "starting"
