"""The four services as their processes build them, in threads of this one: real bus, store, folds and sockets, with something in
them: a file, runs, a served model behind a stub engine, a report. No loop runs, so nothing moves that a test does not move."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from understudy.belt import contracts as c
from understudy.belt.apikeys import mint
from understudy.belt.bus.connect import connect
from understudy.belt.turns import outcome
from understudy.records import write_json
from understudy.report import Cell
from understudy.service import host
from understudy.service.ports import free_ports, is_free
from understudy.service.token import HEADER
from understudy.service.web import guarded
from understudy.store import keys
from understudy.terms import SCOPES, STATIONS, Scope, Station
from understudy.testing import report_of

STUB = Path(__file__).parents[1] / "unit/services/inference/stub_engine.py"
CSV = b"text,label\n" + b"".join(b"remark %d,%d\n" % (n, n % 2) for n in range(20))
NONE = c.Artifact(sha256="0" * 64)
DOOMED = 12
"""Runs and files that may be cancelled and deleted."""


class House:
    """`with living(folder) as house:`; `house.http[station]` asks a service as the gateway does, `house.url` is the gateway."""

    def __init__(self, folder: Path, environment: Mapping[str, Any]) -> None:
        ports = dict(zip((*STATIONS, "engine"), free_ports(5), strict=True))
        self.folder, self.ports = folder, ports
        self.urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        self.url = self.urls["inference"]
        base = folder / "models" / "tiny"
        base.mkdir(parents=True)
        (base / "config.json").write_text('{"max_position_embeddings": 512}')
        (base / "chat_template.jinja").write_text("{{ messages }}")
        engine = [sys.executable, "-S", str(STUB), str(ports["engine"]), "tiny", str(folder / "served")]
        self._engine = subprocess.Popen(engine)
        self.apps: dict[Station, FastAPI] = {}
        self.kernels: dict[Station, host.Kernel] = {}
        self._servers: dict[Station, uvicorn.Server] = {}
        self._threads: list[threading.Thread] = []
        self._ends: list[Any] = []
        self.stop = threading.Event()
        self.keys: dict[Scope, str] = {}
        """An API key with that scope alone."""
        for station in STATIONS:
            self._open(station, environment)
            if not self.keys:
                made = {scope: mint(scope, (scope,)) for scope in SCOPES}
                self.kernels[station].bus.publish(*(key for _, key in made.values()))
                self.keys = {scope: text for scope, (text, _) in made.items()}
        self.token = self.kernels["datagen"].token
        said: dict[Station, str] = dict.fromkeys(STATIONS, HEADER.decode()) | {"inference": "authorization"}
        self.http = {
            station: httpx.Client(
                base_url=self.urls[station],
                headers={name: f"Bearer {self.token}" if station == "inference" else self.token},
                trust_env=False,
                timeout=30,
            )
            for station, name in said.items()
        }
        self.fill()

    def _open(self, station: Station, environment: Mapping[str, Any]) -> None:
        module = import_module(f"services.{station}.settings")
        kind = getattr(module, f"{station.capitalize()}Settings")
        more = {f"{name}_url": self.urls[name] for name in (*STATIONS, "engine")} if station == "inference" else {}
        settings = kind(
            data=self.folder,
            models=self.folder / "models",
            port=self.ports[station],
            gateway=self.url,
            **more,
            **{key: value for key, value in environment.items() if key in kind.model_fields},
        )
        bus = connect(settings)
        kernel = host.kernel(settings, bus)
        service = import_module(f"services.{station}.bootstrap").build(settings, kernel)
        app = host._app(station, service, kernel.reader.caught_up, threading.Event())
        wrap = service.wrap or (lambda app, inside: guarded(app, kernel.token, probes=inside))
        server = host._server(wrap(app, True), settings)
        threads = [
            threading.Thread(target=kernel.reader.follow, args=(self.stop,), daemon=True),
            threading.Thread(target=server.run, daemon=True),
        ]
        service.start()
        for thread in threads:
            thread.start()
        assert kernel.reader.caught_up.wait(10)
        until(lambda: server.started)
        self.apps[station], self.kernels[station] = app, kernel
        self._servers[station] = server
        self._threads += threads
        self._ends += [service.close, bus.close]

    def close(self) -> None:
        """End all of it."""
        for server in self._servers.values():
            server.should_exit = True
        self.stop.set()
        for thread in self._threads:
            thread.join(10)
        for end in self._ends:
            end()
        self._engine.kill()
        self._engine.wait()

    def halt(self, station: Station) -> None:
        """That service answers no more."""
        self._servers[station].should_exit = True
        until(lambda: is_free(self.ports[station]))

    def publish(self, *messages: c.Message) -> None:
        """On the bus, and read by all."""
        from understudy.belt.topics import topic_of

        kernel = self.kernels["datagen"]
        kernel.bus.publish(*messages)
        for message in messages:
            *_, last = (record for record in kernel.bus.replay([topic_of(message).name]) if record)
            for each in self.kernels.values():
                each.reader.wait_for(last.topic, last.partition, last.offset)

    def recipe(self, **more: Any) -> dict[str, Any]:
        """One that is accepted."""
        return {
            "name": "r",
            "base": "tiny",
            "datasets": {"remarks": {"source": self.file, "task": "classify"}},
            "variants": {"v": {"train": {"remarks": 1.0}}},
            "training": {"epochs": 1, "lora": {"r": 8}},
            "evaluation": {"panels": {"in-domain": {"dataset": "remarks", "metrics": ["accuracy"]}}},
        } | more

    def fill(self) -> None:
        """Something to ask for."""
        datagen = self.http["datagen"]

        def upload(name: str) -> str:
            answer = datagen.post("/v1/files", files={"file": (name, CSV)}, data={"purpose": "fine-tune"})
            assert answer.status_code == 200, answer.text
            return str(answer.json()["id"])

        def run(fresh: str) -> str:
            answer = datagen.post("/v1/runs", json={"recipe": self.recipe(), "fresh": fresh})
            assert answer.status_code == 200, answer.text
            return str(answer.json()["id"])

        self.file = upload("remarks.csv")
        self.files = [upload(f"{n}.csv") for n in range(DOOMED)]
        self.run = run("")
        self.runs = [run(str(n)) for n in range(DOOMED)]
        store = self.kernels["evaluator"].store
        with store.draft() as folder:
            (folder / "adapter_config.json").write_text("{}")
            adapter = store.put(keys.adapter(self.run, "v"), folder)
        self.model = "ft:tiny:r:v:00000000"
        self.publish(
            c.DatasetsMade(run=self.run, plan=NONE, datasets=NONE),
            c.ModelServed(run=self.run, item="v", model=self.model, base="tiny", parent="tiny", adapter=adapter),
            c.ItemScored(run=self.run, item="base", answers=NONE, measures=NONE),
            c.ItemScored(run=self.run, item="v", answers=NONE, measures=NONE),
        )
        ended = outcome(self.kernels["evaluator"].control.book(self.run))
        planned = store.find(keys.plan(self.run))
        assert planned
        plan = self.kernels["evaluator"].plans.get(planned)
        with store.draft() as folder:
            cells = {"base": Cell(n=100, value=0.5, low=0.4, high=0.6)}
            write_json(folder / "report.json", report_of(plan, cells, run=self.run))
            report = store.put(keys.report(self.run, ended), folder)
        self.publish(c.RunClosed(run=self.run, status="finished", outcome=ended, report=report))
        until(lambda: self.http["evaluator"].get(f"/v1/reports/{self.run}.json").status_code == 200)

    def known(self, method: str) -> dict[str, list[str]]:
        """Parameter -> values that exist; to look at, or to change and delete."""
        about = {"item": ["base", "v", "nobody"], "baseline": ["base", "v", "nobody"]}
        if method != "get":
            return about | {"run": self.runs, "file_id": self.files}
        jobs = self.http["trainer"].get("/v1/fine_tuning/jobs").json()["data"]
        return about | {
            "run": [self.run, self.runs[0]],
            "file_id": [self.file, self.files[0]],
            "job_id": [job["id"] for job in jobs],
            "path": ["tiny", self.model, f"{self.model}/files", f"{self.model}/files/adapter_config.json"],
        }


def until(holds: Any, seconds: float = 20) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.01)


@contextmanager
def living(folder: Path, **environment: Any) -> Iterator[House]:
    """A house that is closed at the end; `environment`: settings, for every service that has them."""
    house = House(folder, environment)
    try:
        yield house
    finally:
        house.close()
