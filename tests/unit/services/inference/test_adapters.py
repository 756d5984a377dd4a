"""Reconciling an engine with what is desired, and the names that adapters get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.inference.adapters import EngineClient, model_name, reconcile
from services.inference.settings import InferenceSettings
from understudy.bases import resolve
from understudy.belt.contracts import Artifact, ModelTrained
from understudy.embedded.ports import free_ports
from understudy.errors import Invalid, Transient
from understudy.service.child import Child
from understudy.store.artifacts import FsspecArtifactStore


@pytest.fixture
def engine(
    settings: InferenceSettings, launch: Callable[..., Child], eventually: Callable[..., None]
) -> Iterator[EngineClient]:
    (port,) = free_ports(1)
    process = launch(resolve("tiny", settings.models), settings, port, 16)
    with EngineClient(f"http://127.0.0.1:{port}") as client:
        eventually(client.healthy)
        yield client
    process.stop()


def test_only_what_is_missing_is_loaded(
    engine: EngineClient, put: Callable[..., Artifact], store: FsspecArtifactStore
) -> None:
    one, two = put("one"), put("two")
    fetched: list[Artifact] = []

    def fetch(artifact: Artifact) -> Path:
        fetched.append(artifact)
        return store.fetch(artifact)

    engine.load("ft:one", store.fetch(one))
    assert reconcile(engine, {"ft:one": one, "ft:two": two}, fetch) == {"tiny", "ft:one", "ft:two"}
    assert fetched == [two]


def test_one_bad_adapter_does_not_keep_the_others_from_being_served(
    engine: EngineClient, put: Callable[..., Artifact], store: FsspecArtifactStore
) -> None:
    gone = Artifact(uri="file:///gone", sha256="0" * 64)
    desired = {"ft:bad": put("bad-one", bad=""), "ft:gone": gone, "ft:good": put("good")}
    assert reconcile(engine, desired, store.fetch) == {"tiny", "ft:good"}


def test_loading_twice_and_unloading_twice_succeed(engine: EngineClient, tmp_path: Path) -> None:
    for _ in range(2):
        engine.load("ft:one", tmp_path)
    for _ in range(2):
        engine.unload("ft:one")
    assert engine.models() == {"tiny"}


def test_a_refusal_is_invalid_and_silence_is_transient(engine: EngineClient, tmp_path: Path) -> None:
    (tmp_path / "bad").touch()
    with pytest.raises(Invalid, match="cannot be loaded"):
        engine.load("ft:bad", tmp_path)
    with pytest.raises(Invalid, match="no such model"):
        engine.prompt_logprobs("missing", [[1, 2]])
    (port,) = free_ports(1)
    with EngineClient(f"http://127.0.0.1:{port}") as nobody, pytest.raises(Transient):
        nobody.models()


def test_logprobs_come_in_the_order_of_the_prompts(engine: EngineClient) -> None:
    assert engine.prompt_logprobs("tiny", [[1, 2], [1, 2, 3, 4]]) == [[-1.0], [-1.0, -1.0, -1.0]]


def test_a_name_is_tied_to_the_content_and_safe_in_urls(trained: Callable[[Artifact | None], ModelTrained]) -> None:
    adapter = Artifact(uri="x", sha256="0123456789abcdef" * 4)
    assert model_name("owner/ba se", trained(adapter), adapter) == "ft:owner/ba-se:films:v:01234567"
