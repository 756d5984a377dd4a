"""datagen over HTTP: files as the unmodified `openai` SDK expects them, recipes that are refused at once when they cannot
work, and runs that are asked for, cancelled, taken up again and deleted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from services.datagen.bootstrap import build
from services.datagen.settings import DatagenSettings
from understudy.belt import contracts as c
from understudy.belt import turns
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.folds import reader
from understudy.errors import Transient
from understudy.plan import Plan
from understudy.service.host import kernel
from understudy.service.web import add_errors
from understudy.store import keys

CSV = b"text,label\n" + b"".join(b"remark %d,%d\n" % (n, n % 2) for n in range(20))
SHA = c.Artifact(sha256="0" * 64)


class World:
    """The service's routes on a real bus, store and reader."""

    def __init__(self, folder: Path, reads: bool = True) -> None:
        self.folder, self.stop = folder, threading.Event()
        self.bus = EmbeddedBus(folder / "bus")
        base = folder / "models" / "seedling"
        base.mkdir(parents=True)
        (base / "config.json").write_text("{}")
        settings = DatagenSettings(data=folder, models=folder / "models", max_upload_bytes=100_000)
        self.kernel = kernel(settings, self.bus)
        app = FastAPI()
        add_errors(app)
        app.include_router(build(settings, self.kernel).router)
        self.http = TestClient(app, raise_server_exceptions=False)
        self._thread = threading.Thread(target=self.kernel.reader.follow, args=(self.stop,))
        if reads:
            self._thread.start()
            assert self.kernel.reader.caught_up.wait(5)

    def close(self) -> None:
        self.stop.set()
        if self._thread.ident:
            self._thread.join()
        self.bus.close()

    def upload(self, name: str = "remarks.csv", content: bytes = CSV) -> str:
        answer = self.http.post("/v1/files", files={"file": (name, content)}, data={"purpose": "fine-tune"})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def run(self, source: str, fresh: str = "", **more: Any) -> Any:
        recipe = {"name": "r", "datasets": {"remarks": {"source": source} | more}}
        return self.http.post("/v1/runs", json={"recipe": recipe, "fresh": fresh})

    def cancel(self, run: str, item: str | None = None) -> Any:
        return self.http.post(f"/v1/runs/{run}/cancel", json={"item": item} if item else None)

    def requested(self) -> list[tuple[str, int]]:
        messages = self.messages("run-requested")
        return [(message.run, message.generation) for message in messages]

    def messages(self, topic: str) -> list[Any]:
        return [c.decode(record.value) for record in self.bus.replay([topic]) if record]

    def publish(self, *messages: c.Message) -> None:
        """On the bus, and read."""
        self.bus.publish(*messages)
        *_, last = (record for record in self.bus.replay([topic_of(messages[-1])]) if record)
        self.kernel.reader.wait_for(last.topic, last.partition, last.offset)

    def close_run(self, run: str, *ends: c.Message, status: str = "finished") -> None:
        """What the closer does once nothing of a run is on the belt."""
        if ends:
            self.publish(*ends)
        book = self.kernel.control.book(run)
        closed = {"run": run, "generation": max(1, book.reached), "status": status, "outcome": turns.outcome(book)}
        self.publish(c.RunClosed.model_validate(closed))


def topic_of(message: c.Message) -> str:
    from understudy.belt.topics import topic_of

    return topic_of(message).name


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


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
    state = first.json()
    assert (state["object"], state["name"], state["status"], state["generation"]) == ("run", "r", "queued", 1)
    assert {name: item["stage"] for name, item in state["items"].items()} == {"base": "waiting", "remarks": "waiting"}
    assert world.run(source).json() == state == world.http.get(f"/v1/runs/{state['id']}").json()
    afresh = world.run(source, fresh="2").json()
    assert world.requested() == [(state["id"], 1), (afresh["id"], 1)]
    assert "There is no run `x`" in error(world.http.get("/v1/runs/x"), 404)
    near = error(world.http.get(f"/v1/runs/{state['id'][:-1]}"), 404)
    assert f"did you mean `{state['id']}`" in near


def test_runs_are_listed_in_pages(world: World) -> None:
    source = world.upload()
    made = [world.run(source, fresh=str(n)).json()["id"] for n in range(5)]
    listed = world.http.get("/v1/runs", params={"limit": 2}).json()
    assert (listed["object"], [run["id"] for run in listed["data"]], listed["has_more"]) == ("list", made[:2:-1], True)
    assert "items" not in listed["data"][0]
    assert listed["data"][0]["stages"] == {"waiting": 2}
    rest = world.http.get("/v1/runs", params={"after": listed["last_id"]}).json()
    assert ([run["id"] for run in rest["data"]], rest["has_more"]) == (made[2::-1], False)
    oldest = world.http.get("/v1/runs", params={"limit": 1, "order": "asc"}).json()
    assert [run["id"] for run in oldest["data"]] == made[:1]
    assert "nothing with the id `x`" in error(world.http.get("/v1/runs", params={"after": "x"}), 404)


def test_what_is_on_the_bus_is_the_plan(world: World) -> None:
    run = world.run(world.upload(), task="classify").json()["id"]
    (message,) = world.messages("run-requested")
    planned: Plan = world.kernel.plans.get(message.plan)
    assert world.kernel.store.find(keys.plan(run)) == message.plan
    assert planned.datasets["remarks"].task == "classify"
    assert [item.name for item in planned.items] == ["base", "remarks"]
    assert planned.bases[0].fingerprint


def test_a_run_that_is_over_is_taken_up_again_unless_all_came_through(world: World) -> None:
    source = world.upload()
    run = world.run(source).json()["id"]
    plan = world.messages("run-requested")[0].plan
    made = c.DatasetsMade(run=run, plan=plan, datasets=SHA)
    scored = c.ItemScored(run=run, item="base", answers=SHA, measures=SHA)
    world.publish(made)
    assert world.run(source).json()["status"] == "running"
    world.close_run(run, scored, c.ItemFailed(run=run, item="remarks", station="trainer", reason="too hot"))
    state = world.http.get(f"/v1/runs/{run}").json()
    assert (state["status"], state["items"]["remarks"]["reason"]) == ("finished", "too hot")

    (world.folder / "models/seedling/config.json").write_text('{"changed": 1}')  # a new plan would be another one
    again = world.run(source).json()
    assert (again["status"], again["generation"]) == ("queued", 2)
    assert again["items"]["base"]["stage"] == "scored", "what came through stays"
    assert world.run(source).json() == again, "it runs already"
    assert world.requested() == [(run, 1), (run, 2)]
    assert world.messages("run-requested")[1].plan == plan, "with the plan it began with"

    world.publish(made.model_copy(update={"generation": 2}))
    world.close_run(run, c.ItemScored(run=run, generation=2, item="remarks", answers=SHA, measures=SHA))
    assert world.run(source).json()["status"] == "finished"
    assert len(world.requested()) == 2, "complete: nothing to do"


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b'{"item": null}'])
def test_a_run_is_cancelled_and_can_be_taken_up_again(world: World, body: bytes) -> None:
    source = world.upload()
    run = world.run(source).json()["id"]
    answer = world.http.post(f"/v1/runs/{run}/cancel", content=body)
    assert answer.status_code == 200, answer.text
    assert {item["stage"] for item in answer.json()["items"].values()} == {"cancelled"}
    (wish,) = world.messages("run-control")
    assert (wish.run, wish.generation, wish.item) == (run, 1, None)
    world.close_run(run, status="cancelled")
    assert world.cancel(run).json()["status"] == "cancelled"
    assert len(world.messages("run-control")) == 1, "nothing is wished of a run that is over"
    again = world.run(source).json()
    assert (again["generation"], again["items"]["base"]["stage"]) == (2, "waiting")


def test_one_item_is_cancelled_twice_and_from_two_places(world: World) -> None:
    run = world.run(world.upload()).json()["id"]
    with ThreadPoolExecutor(2) as places:
        answers = list(places.map(lambda _: world.cancel(run, "remarks"), range(4)))
    for answer in answers:
        assert answer.status_code == 200, answer.text
        stages = {name: item["stage"] for name, item in answer.json()["items"].items()}
        assert stages == {"base": "waiting", "remarks": "cancelled"}


def test_what_is_not_there_cannot_be_cancelled(world: World) -> None:
    run = world.run(world.upload()).json()["id"]
    assert f"did you mean `{run}`" in error(world.cancel(run[:-2]), 404)
    assert f"Run `{run}` has no item `remark` (did you mean `remarks`?)" in error(world.cancel(run, "remark"), 404)
    assert "variant: Extra inputs" in error(world.http.post(f"/v1/runs/{run}/cancel", json={"variant": "x"}))
    assert "not JSON" in error(world.http.post(f"/v1/runs/{run}/cancel", content=b"{"))
    assert world.messages("run-control") == []


def test_a_run_is_deleted_with_all_it_made_and_can_begin_anew(world: World) -> None:
    source = world.upload()
    run = world.run(source).json()["id"]
    with world.kernel.store.draft() as folder:
        (folder / "train.jsonl").write_bytes(b"x" * 5000)
        world.kernel.store.put(keys.dataset(run, "remarks"), folder)
    world.publish(c.DatasetsMade(run=run, plan=world.messages("run-requested")[0].plan, datasets=SHA))
    assert world.http.get(f"/v1/runs/{run}").json()["status"] == "running", "it need not be over"
    answer = world.http.delete(f"/v1/runs/{run}").json()
    assert answer.pop("freed_bytes") > 5000
    assert answer == {"id": run, "object": "run", "deleted": True}
    assert f"Run `{run}` was deleted" in error(world.http.get(f"/v1/runs/{run}"), 404)
    assert f"Run `{run}` was deleted" in error(world.cancel(run), 404)
    assert world.http.get("/v1/runs").json()["data"] == []
    assert world.kernel.store.find(keys.plan(run)) is None
    assert world.kernel.store.find(keys.dataset(run, "remarks")) is None
    again = world.run(source).json()
    assert (again["id"], again["generation"], again["status"]) == (run, 2, "queued")
    assert world.kernel.store.find(keys.plan(run))


def test_a_deletion_that_failed_half_way_is_finished_by_the_next(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is away in the first; the second frees what was left, and a third finds nothing any more."""
    run = world.run(world.upload()).json()["id"]
    store = type(world.kernel.store)
    with monkeypatch.context() as away:
        away.setattr(store, "delete_all", lambda *_: (_ for _ in ()).throw(Transient("The bucket is away")))
        assert "The bucket is away" in error(world.http.delete(f"/v1/runs/{run}"), 503)
    assert world.kernel.store.find(keys.plan(run))
    answer = world.http.delete(f"/v1/runs/{run}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["freed_bytes"] > 0
    assert world.kernel.store.find(keys.plan(run)) is None
    assert world.http.delete(f"/v1/runs/{run}").json()["freed_bytes"] == 0
    assert sum(isinstance(message, c.RunDeleted) for message in world.messages("run-control")) <= 2
    assert "There is no run" in error(world.http.delete("/v1/runs/never-heard-of"), 404)


def test_a_run_that_is_begun_while_it_is_deleted_keeps_its_plan(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store with many names takes its time: what begins meanwhile waits, and other runs do not."""
    source = world.upload()
    run = world.run(source).json()["id"]
    deleting, store = threading.Event(), type(world.kernel.store)
    slow = store.delete_all

    def delete_all(self: Any, prefix: str) -> int:
        deleting.set()
        time.sleep(0.5)
        return slow(self, prefix)

    monkeypatch.setattr(store, "delete_all", delete_all)
    with ThreadPoolExecutor(1) as pool:
        deleted = pool.submit(world.http.delete, f"/v1/runs/{run}")
        assert deleting.wait(5)
        again = world.run(source).json()
        assert deleted.result().status_code == 200
    assert (again["id"], again["generation"]) == (run, 2)
    plan = world.kernel.store.find(keys.plan(run))
    assert plan
    assert plan.sha256 == again["plan"]["sha256"]
    assert world.kernel.store.files(plan)


def test_a_run_that_is_taken_up_right_after_it_was_cancelled_goes_on(world: World) -> None:
    """What closes the cancelled generation is still on its way; the wish alone says that it is over. One that is complete stays so."""
    source = world.upload()
    run = world.run(source).json()["id"]
    plan = world.messages("run-requested")[0].plan
    world.publish(c.DatasetsMade(run=run, plan=plan, datasets=SHA))
    assert world.cancel(run).json()["generation"] == 1
    again = world.run(source).json()
    assert (again["generation"], again["status"]) == (2, "queued")
    assert {item["stage"] for item in again["items"].values()} == {"waiting"}
    world.close_run(run, status="cancelled")
    state = world.http.get(f"/v1/runs/{run}").json()
    assert (state["generation"], state["status"]) == (2, "queued"), "the end of the first is none of the second"
    assert world.run(source).json() == state, "it goes on, and once"
    scored = [c.ItemScored(run=run, item=item, answers=SHA, measures=SHA, generation=2) for item in ("base", "remarks")]
    world.publish(*scored)
    world.cancel(run)
    assert world.run(source).json()["generation"] == 2, "nothing is left to do"


def test_a_damaged_base_is_told_with_the_file_and_what_to_do(world: World) -> None:
    source, base = world.upload(), world.folder / "models" / "seedling"
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        for content in (b'{"a": ', b"\xff\xfe", b"[1]", b"[" * 100_000):
            before = (base / name).read_bytes() if (base / name).exists() else b"{}"
            (base / name).write_bytes(content)
            said = error(world.run(source))
            assert f"Base model `seedling`: its {name} cannot be read" in said
            assert str(world.folder) not in said
            assert "download it again" in said
            (base / name).write_bytes(before)
    assert world.requested() == []


def test_a_wrong_path_tells_nothing_of_what_lies_there(world: World) -> None:
    (world.folder / "secret.csv").write_text("text,label\na,1\n")
    said = error(world.run(str(world.folder / "secrets.csv")))
    assert "secrets.csv" in said
    assert "secret.csv" not in said


def test_too_many_classes_are_heard_at_once_also_in_a_long_table(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.datagen.pools.CHECKED_ROWS", 150)
    content = b"text,label\n" + b"".join(b"row %d,%d\n" % (n, n) for n in range(300))
    assert "has 150 different labels in column `label`, at most 100" in error(world.run(world.upload(content=content)))


def test_the_log_of_a_run_tells_what_happened_and_what_a_training_said(world: World) -> None:
    run = world.run(world.upload()).json()["id"]
    world.publish(c.ItemFailed(run=run, item="remarks", station="trainer", reason="the loss is\nnot a number"))
    with world.kernel.store.draft() as folder:
        (folder / "train.log").write_text("".join(f"step {n}\n" for n in range(300)))
        world.kernel.store.put(keys.training_log(run, "remarks"), folder)
    answer = world.http.get(f"/v1/runs/{run}/logs")
    assert answer.headers["content-type"].startswith("text/plain")
    told = answer.text.splitlines()
    assert told[0].endswith("the run: asked for: 2 items on seedling")
    assert told[1].endswith("remarks: failed at trainer: the loss is not a number")
    assert told[2:4] == ["", "--- the end of what the training of remarks said"]
    assert told[4:] == [f"step {n}" for n in range(100, 300)]
    base = world.http.get(f"/v1/runs/{run}/logs", params={"item": "base"}).text
    assert "asked for" in base
    assert "remarks" not in base
    assert "did you mean `remarks`" in error(world.http.get(f"/v1/runs/{run}/logs", params={"item": "remark"}), 404)
    assert "There is no run" in error(world.http.get("/v1/runs/x/logs"), 404)


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
    assert "`nothing` is not allowed here" in error(
        world.http.post("/v1/runs", json={"recipe": recipe | {"base": "nothing"}})
    )
    panels = {"p": {"prompts": source, "metrics": ["bleu"]}}
    answer = world.http.post("/v1/runs", json={"recipe": recipe | {"evaluation": {"panels": panels}}})
    assert "has no column `prompt`" in error(answer)
    assert error(world.http.post("/v1/runs", content=b"{")).startswith("The request is not JSON")
    assert "recipe: Field required" in error(world.http.post("/v1/runs", json={}))
    assert "more than" in error(world.http.post("/v1/runs", content=b" " * 600_000))


def test_nothing_is_decided_before_the_log_is_read(tmp_path: Path) -> None:
    world = World(tmp_path, reads=False)
    answers = [
        world.run(world.upload()),
        world.cancel("x"),
        world.http.delete("/v1/runs/x"),
        world.http.get("/v1/runs/x"),
    ]
    for answer in answers:
        assert "still reading the log" in error(answer, 503)
    assert world.requested() == []
    world.close()


def test_a_reader_that_stands_still_is_told_and_asking_again_does_no_harm(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "PATIENCE", 0.1)
    world.stop.set()
    world._thread.join()
    source = world.upload()
    for _ in range(2):
        assert "is on the bus, but was not read from it" in error(world.run(source), 503)
    (run, _), again = world.requested()
    assert again == (run, 1)


def test_a_plan_that_is_too_large_is_refused(world: World) -> None:
    source = world.upload()
    variants = {f"v{n}": {"train": "d"} for n in range(200)}
    recipe = {"datasets": {"d": {"source": source}}, "variants": variants, "seeds": 10}
    answer = world.http.post("/v1/runs", json={"recipe": recipe})
    assert "asks for 2,001 items, at most 2,000 are taken" in error(answer)


def test_a_document_that_is_no_text_is_refused(world: World) -> None:
    for body in (b'{"recipe": {"\\ud800": 1}}', b'{"recipe": {"datasets": {"d": {"source": "\\ud800.csv"}}}}', b"\xff"):
        error(world.http.post("/v1/runs", content=body))


ANNA = {"x-understudy-owner": "anna", "x-understudy-key": "abcd2345"}
"""As the gateway says on whose behalf it asks."""


def test_what_is_asked_for_cancelled_and_deleted_says_by_whom(world: World) -> None:
    source = world.upload()
    recipe = {"name": "r", "datasets": {"remarks": {"source": source}}}
    run = world.http.post("/v1/runs", json={"recipe": recipe}, headers=ANNA).json()
    assert run["owner"] == "anna"
    (listed,) = world.http.get("/v1/runs").json()["data"]
    assert listed["owner"] == "anna"
    world.http.post(f"/v1/runs/{run['id']}/cancel", headers={"x-understudy-owner": "ben"})
    assert "cancel was asked for by ben" in world.http.get(f"/v1/runs/{run['id']}/logs").text
    assert "asked for by anna: 2 items" in world.http.get(f"/v1/runs/{run['id']}/logs").text
    again = world.http.post("/v1/runs", json={"recipe": recipe}, headers={"x-understudy-owner": "carl"}).json()
    assert (again["generation"], again["owner"]) == (2, "carl")
    world.http.delete(f"/v1/runs/{run['id']}", headers=ANNA)
    *_, deleted = world.messages("run-control")
    assert (deleted.type, deleted.owner) == ("run.deleted.v1", "anna")


def test_nobody_is_named_where_no_key_is_asked_for(world: World) -> None:
    assert world.run(world.upload()).json()["owner"] == ""


def test_deletions_are_in_the_audit_trail(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "audit")
    source = world.upload()
    run = world.run(source).json()["id"]
    for path in (f"/v1/runs/{run}", "/v1/runs/nothing", f"/v1/files/{source}", "/v1/files/file-0"):
        world.http.delete(path, headers=ANNA)
    said = [(r.getMessage(), r.on, r.outcome, r.who, r.key) for r in caplog.records if r.name == "audit"]  # type: ignore[attr-defined]
    assert said == [
        ("run.delete", run, "done", "anna", "abcd2345"),
        ("run.delete", "nothing", "notfound", "anna", "abcd2345"),
        ("file.delete", source, "done", "anna", "abcd2345"),
        ("file.delete", "file-0", "notfound", "anna", "abcd2345"),
    ]
