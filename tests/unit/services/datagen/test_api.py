"""datagen over HTTP: files as the unmodified `openai` SDK expects them, and recipes that are refused at once when they cannot work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from services.datagen.bootstrap import build
from services.datagen.settings import DatagenSettings
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import RunRequested, decode
from understudy.belt.folds.runs import Ledger
from understudy.service.host import Kernel
from understudy.service.web import add_errors
from understudy.testing import local_store

CSV = b"text,label\n" + b"".join(b"remark %d,%d\n" % (n, n % 2) for n in range(20))


class World:
    """The service's routes on a real bus, store and ledger."""

    def __init__(self, folder: Path) -> None:
        self.bus = EmbeddedBus(folder / "bus")
        self.ledger = Ledger(self.bus)
        base = folder / "models" / "seedling"
        base.mkdir(parents=True)
        (base / "config.json").write_text("{}")
        settings = DatagenSettings(data=folder, models=folder / "models", max_upload_bytes=100_000)
        service = build(settings, Kernel(self.bus, local_store(folder), self.ledger))
        app = FastAPI()
        add_errors(app)
        app.include_router(service.router)
        self.http = TestClient(app, raise_server_exceptions=False)

    def upload(self, name: str = "remarks.csv", content: bytes = CSV) -> str:
        answer = self.http.post("/v1/files", files={"file": (name, content)}, data={"purpose": "fine-tune"})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def run(self, source: str, attempt: str = "", **more: Any) -> Any:
        recipe = {"name": "r", "datasets": {"remarks": {"source": source} | more}}
        return self.http.post("/v1/runs", json={"recipe": recipe, "attempt": attempt})

    def requested(self) -> list[str]:
        return [decode(record.value).run for record in self.bus.replay(["run-requested"]) if record]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.ledger.load()
    yield world
    world.bus.close()


def error(answer: Any, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    body = answer.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    return str(body["message"])


def test_the_openai_sdk_uploads_lists_reads_and_deletes(world: World, tmp_path: Path) -> None:
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(world.http.app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        path = tmp_path / "größe.csv"
        path.write_bytes(CSV)
        with path.open("rb") as file:
            made = client.files.create(file=file, purpose="fine-tune")
        assert (made.object, made.bytes, made.filename, made.purpose, made.status) == (
            "file",
            len(CSV),
            path.name,
            "fine-tune",
            "processed",
        )
        assert made.id.startswith("file-")
        assert len(made.id) == 29
        assert client.files.retrieve(made.id) == made
        assert client.files.content(made.id).read() == CSV
        others = [client.files.create(file=(f"{n}.csv", CSV), purpose="evals") for n in range(3)]
        assert {file.id for file in client.files.list(limit=2)} == {made.id, *(other.id for other in others)}, (
            "all pages"
        )
        assert {file.id for file in client.files.list(purpose="evals")} == {other.id for other in others}
        assert client.files.delete(made.id).deleted
        with pytest.raises(openai.NotFoundError, match="There is no file"):
            client.files.retrieve(made.id)
        with pytest.raises(openai.BadRequestError, match="purpose: `lunch`"):
            client.files.create(file=("x.csv", CSV), purpose="lunch")  # type: ignore[arg-type]
    finally:
        server.should_exit = True
        thread.join()


def test_uploads_are_bounded_while_they_arrive(world: World) -> None:
    """A client that names no length cannot send more than is allowed either."""
    assert "more than the 100,000 bytes" in error(
        world.http.post("/v1/files", files={"file": ("a.csv", b"x" * 300_000)}, data={"purpose": "evals"})
    )
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
        for _ in range(400):
            sent += 1
            yield b"x" * 1000

    answer = world.http.post("/v1/files", content=body(), headers={"content-type": "multipart/form-data; boundary=b"})
    assert "more than the 100,000 bytes" in error(answer)


def test_uploads_without_a_file_or_a_form_are_refused(world: World) -> None:
    assert "no `file`" in error(world.http.post("/v1/files", files={"other": ("a", b"x")}, data={"purpose": "evals"}))
    assert "purpose" in error(world.http.post("/v1/files", files={"file": ("a.csv", b"x")}))
    assert "not a multipart form" in error(world.http.post("/v1/files", json={"file": "x"}))
    assert "empty" in error(world.http.post("/v1/files", files={"file": ("a.csv", b"")}, data={"purpose": "evals"}))
    assert "There is no file" in error(world.http.get("/v1/files/file-0/content"), 404)


def test_a_recipe_becomes_a_run_once(world: World) -> None:
    source = world.upload()
    first = world.run(source)
    assert first.status_code == 200, first.text
    assert first.json()["status"] == "queued"
    world.ledger.load()
    again = world.run(source).json()
    assert (again["id"], again["name"], again["status"], list(again["variants"])) == (
        first.json()["id"],
        "r",
        "queued",
        ["base", "remarks"],
    )
    afresh = world.run(source, attempt="2").json()
    assert world.requested() == [first.json()["id"], afresh["id"]]
    world.ledger.load()
    assert world.http.get(f"/v1/runs/{afresh['id']}").json()["status"] == "queued"
    listed = world.http.get("/v1/runs", params={"limit": 1}).json()
    assert listed["object"] == "list"
    assert listed["has_more"] is True
    rest = world.http.get("/v1/runs", params={"after": listed["last_id"]}).json()
    assert {listed["data"][0]["id"], rest["data"][0]["id"]} == set(world.requested())
    assert "There is no run `x`" in error(world.http.get("/v1/runs/x"), 404)


def test_the_request_on_the_bus_is_the_recipe(world: World) -> None:
    world.run(world.upload())
    (record,) = (record for record in world.bus.replay(["run-requested"]) if record)
    message = decode(record.value)
    assert isinstance(message, RunRequested)
    assert message.recipe.datasets["remarks"].task == "classify"


@pytest.mark.parametrize(
    ("content", "more", "said"),
    [
        (CSV, {"columns": {"label": "feeling"}}, "remarks.csv has no column `feeling`. It has `text`, `label`"),
        (b"text,label\na,1\nb,1\n", {}, "remarks.csv has one label only: all 2 usable rows are `1`"),
        (b"text,label\n", {}, "remarks.csv has no rows"),
        (b"text,label\n\xe9,1\n", {}, "remarks.csv:2 is not UTF-8"),
        (CSV, {"labels": {"a": "x"}}, "no usable row; 20 rows were rejected"),
        (CSV, {"colums": {}}, "unknown key `datasets.remarks.colums` (did you mean `columns`?)"),
    ],
)
def test_what_is_wrong_is_heard_at_once(world: World, content: bytes, more: dict[str, Any], said: str) -> None:
    assert said in error(world.run(world.upload(content=content), **more))
    assert world.requested() == []


def test_missing_things_are_heard_at_once(world: World) -> None:
    source = world.upload()
    assert "no uploaded file file-123" in error(world.run("file-123"))
    assert "carries no revision" in error(world.run("hf:owner/name"))
    recipe = {"datasets": {"d": {"source": source}}}
    assert "no base model `nothing`" in error(
        world.http.post("/v1/runs", json={"recipe": recipe | {"base": "nothing"}})
    )
    panels = {"p": {"prompts": source, "metrics": ["bleu"]}}
    answer = world.http.post("/v1/runs", json={"recipe": recipe | {"evaluation": {"panels": panels}}})
    assert "has no column `prompt`" in error(answer)
    assert error(world.http.post("/v1/runs", content=b"{")).startswith("The request is not JSON")
    assert "recipe: Field required" in error(world.http.post("/v1/runs", json={}))
    assert "more than" in error(world.http.post("/v1/runs", content=b" " * 600_000))


def test_no_run_is_accepted_before_the_log_is_read(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert "still reading the log" in error(world.run(world.upload()), 503)
    assert world.requested() == []
    world.bus.close()
