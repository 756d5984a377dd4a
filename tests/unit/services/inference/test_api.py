"""The models of the endpoint in OpenAI's shape, at any number, and the files of their adapters."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from services.inference.api import router
from services.inference.fleet import Fleet
from services.inference.usage import Usage
from understudy.belt.contracts import ModelServed
from understudy.service.web import add_errors
from understudy.store.artifacts import FsspecArtifactStore
from understudy.terms import Artifact

Served = Callable[..., ModelServed]
Put = Callable[..., Artifact]


@pytest.fixture
def client(fleet: Fleet, store: FsspecArtifactStore) -> TestClient:
    app = FastAPI()
    add_errors(app)
    app.include_router(router(fleet, store, Usage()))
    return TestClient(app)


def test_models_are_listed_in_openais_shape(client: TestClient, served: Served, put: Put) -> None:
    served("ft:owner/tiny:x:v@tiny:1", put("one"), parent="owner/tiny", base="owner/tiny@abc")
    served("tiny")
    served("owner/files", base="owner/files@abc")
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    cards = [(card["id"], card["parent"], card["root"]) for card in listed["data"]]
    assert sorted(cards[:2]) == [("owner/files", None, "owner/files"), ("tiny", None, "tiny")], "bases first"
    assert cards[2:] == [("ft:owner/tiny:x:v@tiny:1", "owner/tiny", "owner/tiny")]
    fields = {"id", "object", "created", "owned_by", "root", "parent"}
    assert all(type(card["created"]) is int and card.keys() == fields for card in listed["data"])
    for path in ("ft:owner/tiny:x:v@tiny:1", "ft%3Aowner%2Ftiny%3Ax%3Av%40tiny%3A1", "owner/files", "tiny"):
        card = client.get(f"/v1/models/{path}").json()
        assert card in listed["data"]
    missing = client.get("/v1/models/nobody")
    assert missing.status_code == 404
    assert missing.json()["error"]["type"] == "invalid_request_error"


def test_three_thousand_models_are_listed_in_milliseconds(client: TestClient, fleet: Fleet, served: Served) -> None:
    for number in range(3000):
        served(f"ft:tiny:films:v.seed{number}:{number:08x}", Artifact(sha256=f"{number:064x}"))
    endpoint = next(route.endpoint for route in router(fleet, None, Usage()).routes if route.path == "/v1/models")  # type: ignore
    took = []
    for _ in range(20):
        started = time.perf_counter()
        endpoint()
        took.append(time.perf_counter() - started)
    assert len(client.get("/v1/models").json()["data"]) == 3001
    assert min(took) < 0.010, f"{min(took) * 1e3:.1f} ms"


@pytest.fixture
def adapter(served: Served, put: Put) -> tuple[str, Artifact]:
    name = "ft:owner/tiny:run+1:v.seed17@tiny:01234567"
    artifact = put("one", weights__safetensors="0123456789", README__md="# it")
    served(name, artifact, parent="owner/tiny", base="owner/tiny@abc")
    return name, artifact


def test_the_files_of_an_adapter_are_listed_and_fetched(client: TestClient, adapter: tuple[str, Artifact]) -> None:
    name, artifact = adapter
    for spelt in (quote(name, safe=""), name):
        listing = client.get(f"/v1/models/{spelt}/files").json()
        about = {key: listing[key] for key in ("object", "model", "base", "digest")}
        assert about == {"object": "list", "model": name, "base": "owner/tiny", "digest": artifact.sha256}
        sizes = {file["path"]: file["bytes"] for file in listing["data"]}
        assert sizes == {"README.md": 4, "adapter_config.json": 3, "weights.safetensors": 10}
        for file in listing["data"]:
            answer = client.get(f"/v1/models/{spelt}/files/{file['path']}")
            assert answer.status_code == 200
            assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
            assert len(answer.content) == file["bytes"]


def test_a_download_that_broke_off_goes_on_where_it_was(client: TestClient, adapter: tuple[str, Artifact]) -> None:
    path = f"/v1/models/{quote(adapter[0], safe='')}/files/weights.safetensors"
    whole = client.get(path)
    rest = client.get(path, headers={"range": "bytes=4-", "if-range": whole.headers["etag"]})
    assert (rest.status_code, rest.text, rest.headers["content-range"]) == (206, "456789", "bytes 4-9/10")


@pytest.mark.parametrize("path", ["nothing", "../probe.json", "..%2F..%2Fstore.json", "%2Fetc%2Fpasswd", "README.md/"])
def test_only_what_the_manifest_names_can_be_had(client: TestClient, adapter: tuple[str, Artifact], path: str) -> None:
    answer = client.get(f"/v1/models/{quote(adapter[0], safe='')}/files/{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_bases_and_unknown_models_have_no_files(client: TestClient, served: Served) -> None:
    served("owner/base", base="owner/base@abc")
    for name in ("tiny", "owner/base", "owner%2Fbase", "nobody"):
        for path in ("files", "files/config.json"):
            assert client.get(f"/v1/models/{name}/{path}").status_code == 404
    assert "only adapters" in client.get("/v1/models/tiny/files").json()["error"]["message"]
