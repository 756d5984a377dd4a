"""One engine: a vLLM server for one base, kept alive, with its adapters.

A thread starts it as a child, waits until it is healthy, loads its adapters, and does so again whenever it dies; after
several deaths in a row `failure` says why, and it goes on trying with longer pauses. With an engine that runs
elsewhere the same thread starts nothing and watches instead. Does not know vLLM's options (`launch.py`), the ledger
(`fleet.py`) or the gateway.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client import Gauge

from services.inference.adapters import EngineClient, reconcile
from services.inference.launch import Process, covering_rank, log_file, model_len, spawn
from services.inference.settings import InferenceSettings
from understudy.bases import Base
from understudy.belt.contracts import Artifact
from understudy.embedded.ports import free_ports
from understudy.errors import UnderstudyError

log = logging.getLogger(__name__)

READY = Gauge("understudy_engine_ready", "1 while the engine of a base answers", ["base"])
START = Gauge("understudy_engine_start_seconds", "Seconds the engine's latest start took", ["base"])

QUICK_DEATHS, QUICK = 3, 30.0
"""So many lives in a row, each shorter than so many seconds of service, make a failure."""


class Engine:
    """`engine.start()`, then read `url` and `serving` from any thread; ends with `engine.close()`."""

    def __init__(
        self,
        base: Base,
        settings: InferenceSettings,
        desired: Callable[[], Mapping[str, Artifact]],
        fetch: Callable[[Artifact], Path],
        launch: Callable[[Base, InferenceSettings, int, int], Process] | None = None,
        pause: float = 0.5,
    ) -> None:
        self.base = base
        self.rank = covering_rank(settings.max_lora_rank)
        self.url: str | None = None
        """Where it answers; None while it does not."""
        self.serving: frozenset[str] = frozenset()
        """The base and every loaded adapter; empty while it does not answer."""
        self.failure: str | None = None
        """Why it does not come up, after several attempts."""
        self.max_len = model_len(base, settings)
        self._settings = settings
        self._launch = launch or spawn
        self._desired, self._fetch = desired, fetch
        self._pause = pause
        self._candidates: dict[str, Artifact] = {}
        self._stop, self._wake, self._ready = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._supervise, name=f"engine-{base.name}", daemon=True)
        self.since = time.monotonic()
        """When the present start began."""

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def close(self, wait: bool = True) -> None:
        """End the engine with all its processes."""
        self._stop.set()
        self._wake.set()
        if wait and self._thread.ident:
            self._thread.join()

    def require(self, rank: int) -> None:
        """Be able to load adapters of `rank`; restarts the engine when it is not."""
        if covering_rank(rank) > self.rank:
            self.rank = covering_rank(rank)
            self._wake.set()

    def wake(self) -> None:
        """Look again at what adapters are desired."""
        self._wake.set()

    def wait_ready(self, timeout: float) -> bool:
        """Whether it answers, waiting at most `timeout` seconds."""
        return self._ready.wait(timeout)

    def load(self, name: str, adapter: Artifact) -> Path:
        """Load an adapter now, and again after a restart although nothing desires it yet; its folder. Raises as `EngineClient`."""
        self._candidates[name] = adapter
        with self.client() as client:
            folder = self._fetch(adapter)
            client.load(name, folder)
            self.serving = client.models()
        return folder

    def drop(self, name: str) -> None:
        """Forget an adapter that `load` brought."""
        self._candidates.pop(name, None)
        with self.client() as client:
            client.unload(name)
            self.serving = client.models()

    def client(self) -> EngineClient:
        """The engine's API; raises `Transient` on use while the engine does not answer."""
        return EngineClient(self.url or "http://127.0.0.1:9")  # port 9, discard: nobody listens there

    def _supervise(self) -> None:
        deaths = 0
        while not self._stop.is_set():
            self.since, served_from = time.monotonic(), 0.0
            process: Process | None = None
            rank = self.rank
            try:
                (port,) = free_ports(1)
                process = self._launch(self.base, self._settings, port, rank)
                url = self._settings.engine_url.rstrip("/") or f"http://127.0.0.1:{port}"
                why = self._until_healthy(url, process)
                if not why:
                    served_from = time.monotonic()
                    why = self._serve(url, process, rank)
            except Exception as error:
                if not isinstance(error, UnderstudyError):
                    log.exception("engine %s", self.base.name)
                why = str(error)
            finally:
                self._ready.clear()
                self.url, self.serving = None, frozenset()
                READY.labels(self.base.name).set(0)
                if process:
                    process.stop()
            if self._stop.is_set() or self.rank > rank:
                continue
            deaths = 1 if served_from and time.monotonic() - served_from > QUICK else deaths + 1
            log.error("engine %s: %s", self.base.name, why)
            if deaths >= QUICK_DEATHS:
                self.failure = why
            self._stop.wait(min(30.0, self._pause * 2 ** (deaths - 1)))

    def _until_healthy(self, url: str, process: Process) -> str | None:
        """Wait for the engine's first sign of life; why it gave none, else None."""
        with EngineClient(url) as client:
            while not self._stop.wait(0.2):
                if process.poll() is not None:
                    return f"The engine of `{self.base.name}` ended while it started. {self._last_words()}"
                if client.healthy():
                    if self.base.name not in client.models():
                        return (
                            f"The engine at {url} serves {', '.join(sorted(client.models()))}, not `{self.base.name}`."
                            " Start it with that --served-model-name."
                        )
                    client.prompt_logprobs(self.base.name, ["ready"])  # the first request takes seconds: not a user's
                    return None
                if time.monotonic() - self.since > self._settings.engine_timeout:
                    return (
                        f"The engine of `{self.base.name}` was not healthy after {self._settings.engine_timeout:.0f} s."
                        f" {self._last_words()}"
                    )
        return "stopped"

    def _serve(self, url: str, process: Process, rank: int) -> str:
        """Load the adapters and keep them loaded until the engine ends; why it did."""
        watched = bool(self._settings.engine_url)
        with EngineClient(url) as client:
            while True:
                self._wake.clear()
                if self.rank > rank and not watched:
                    return "restarts for larger adapters"
                self.serving = reconcile(client, {**self._desired(), **self._candidates}, self._fetch)
                if self.url is None:
                    START.labels(self.base.name).set(time.monotonic() - self.since)
                    READY.labels(self.base.name).set(1)
                    log.info("engine %s is ready after %.1f s", self.base.name, time.monotonic() - self.since)
                    self.url, self.failure = url, None
                    self._ready.set()
                while not self._wake.wait(2.0 if watched else 0.2):
                    if process.poll() is not None:
                        return f"The engine of `{self.base.name}` ended. {self._last_words()}"
                    if watched:  # it may have restarted and forgotten its adapters
                        break
                if self._stop.is_set():
                    return "stopped"

    def _last_words(self) -> str:
        """The last lines of the engine's log, errors preferred."""
        path = log_file(self._settings, self.base)
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            lines = file.read().decode(errors="replace").splitlines()
        telling = [line for line in lines if "Error" in line or "error:" in line] or lines
        return f"Its last words in {path}: {' | '.join(line.strip() for line in telling[-3:])[-1000:]}"
