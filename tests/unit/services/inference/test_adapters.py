"""The adapters of one engine against those it shall have, and the names that adapters get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.inference.adapters import Adapters, model_name
from services.inference.client import EngineClient
from services.inference.settings import InferenceSettings
from understudy.bases import Base
from understudy.embedded.ports import free_ports
from understudy.errors import Invalid, Transient
from understudy.service.child import Child
from understudy.store.artifacts import FsspecArtifactStore
from understudy.terms import Artifact

Put = Callable[..., Artifact]


@pytest.fixture
def engine(
    base: Base, settings: InferenceSettings, launch: Callable[..., Child], eventually: Callable[..., None]
) -> Iterator[EngineClient]:
    (port,) = free_ports(1)
    process = launch(base, settings, port, 16)
    with EngineClient(f"http://127.0.0.1:{port}") as client:
        eventually(client.healthy)
        yield client
    process.stop()


class Wanted(dict[str, Artifact]):
    """Name -> adapter that is wanted; `gone`: names of deleted runs."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: set[str] = set()


@pytest.fixture
def wanted() -> Wanted:
    return Wanted()


@pytest.fixture
def adapters(wanted: Wanted, store: FsspecArtifactStore) -> Adapters:
    return Adapters("tiny", lambda: dict(wanted), lambda name: name in wanted.gone, store.fetch)


def test_only_what_is_missing_is_loaded(
    engine: EngineClient, wanted: Wanted, put: Put, store: FsspecArtifactStore
) -> None:
    fetched: list[Artifact] = []

    def fetch(artifact: Artifact) -> Path:
        fetched.append(artifact)
        return store.fetch(artifact)

    adapters = Adapters("tiny", lambda: dict(wanted), lambda name: False, fetch)
    wanted |= {"ft:one": put("one"), "ft:two": put("two")}
    engine.load("ft:one", store.fetch(wanted["ft:one"]))
    adapters.reconcile(engine)
    assert adapters.serving == {"tiny", "ft:one", "ft:two"}
    assert fetched == [wanted["ft:two"]]


def test_one_bad_adapter_does_not_keep_the_others_from_being_served(
    engine: EngineClient, adapters: Adapters, wanted: Wanted, put: Put
) -> None:
    wanted |= {"ft:bad": put("bad-one", bad=""), "ft:lost": Artifact(sha256="0" * 64), "ft:good": put("good")}
    adapters.reconcile(engine)
    assert adapters.serving == {"tiny", "ft:good"}
    assert "cannot be loaded" in adapters.left_out["ft:bad"].reason
    assert "is not in the store" in adapters.left_out["ft:lost"].reason
    del wanted["ft:bad"]
    adapters.reconcile(engine)
    assert adapters.left_out.keys() == {"ft:lost"}


def test_a_store_that_is_away_ends_no_engine(engine: EngineClient, wanted: Wanted, put: Put) -> None:
    def away(_: Artifact) -> Path:
        raise Transient("The store did not answer")

    adapters = Adapters("tiny", lambda: dict(wanted), lambda name: False, away)
    wanted["ft:one"] = put("one")
    adapters.reconcile(engine)
    assert adapters.left_out["ft:one"].reason == "The store did not answer"
    assert adapters.unsettled, "it is looked at again although nobody says that anything changed"


def test_what_is_gone_is_unloaded_and_what_nobody_knows_is_not(
    engine: EngineClient, adapters: Adapters, wanted: Wanted, put: Put, store: FsspecArtifactStore
) -> None:
    """Of an engine that several replicas share, another may be trying an adapter that we have not heard of."""
    folder = store.fetch(put("one"))
    for name in ("ft:gone", "ft:another-replica", "ft:mine"):
        engine.load(name, folder)
    wanted["ft:mine"] = put("mine")
    wanted.gone = {"ft:gone", "tiny"}
    adapters.reconcile(engine)
    assert adapters.serving == engine.models() == {"tiny", "ft:another-replica", "ft:mine"}


def test_a_trial_that_is_broken_off_leaves_nothing_and_one_that_is_passed_stays(
    engine: EngineClient, adapters: Adapters, put: Put, store: FsspecArtifactStore
) -> None:
    adapter = put("one")
    folder = store.fetch(adapter)

    def broken_off() -> None:
        with adapters.trying(engine, "ft:one", adapter, folder):
            adapters.reconcile(engine)
            assert "ft:one" in adapters.serving, "not dropped under the one who tries it"
            raise Invalid("the gate")

    with pytest.raises(Invalid, match="the gate"):
        broken_off()
    adapters.reconcile(engine)
    assert engine.models() == {"tiny"}
    with adapters.trying(engine, "ft:one", adapter, folder):
        pass
    adapters.reconcile(engine)
    assert adapters.serving == {"tiny", "ft:one"}, "before anybody has read that it is served"
    engine.unload("ft:one")
    adapters.forget()
    adapters.reconcile(engine)
    assert adapters.serving == {"tiny", "ft:one"}, "an engine that restarted gets it again"


def test_of_two_who_try_the_same_one_may_break_off(
    engine: EngineClient, adapters: Adapters, put: Put, store: FsspecArtifactStore
) -> None:
    adapter = put("one")
    folder = store.fetch(adapter)
    with adapters.trying(engine, "ft:one", adapter, folder):
        with pytest.raises(Invalid), adapters.trying(engine, "ft:one", adapter, folder):
            raise Invalid("cancelled")
        adapters.reconcile(engine)
        assert "ft:one" in engine.models()
    adapters.reconcile(engine)
    assert "ft:one" in engine.models(), "the other one passed"


def test_a_trial_of_what_is_served_already_takes_nothing_away(
    engine: EngineClient, adapters: Adapters, wanted: Wanted, put: Put, store: FsspecArtifactStore
) -> None:
    wanted["ft:one"] = put("one")
    adapters.reconcile(engine)
    with pytest.raises(Invalid), adapters.trying(engine, "ft:one", wanted["ft:one"], store.fetch(wanted["ft:one"])):
        raise Invalid("cancelled")
    adapters.reconcile(engine)
    assert adapters.serving == {"tiny", "ft:one"}


def test_a_name_is_tied_to_the_content_and_safe_in_urls() -> None:
    adapter = Artifact(sha256="0123456789abcdef" * 4)
    assert model_name("owner/ba se", "films", "v.seed17@ba", adapter) == "ft:owner/ba-se:films:v.seed17@ba:01234567"
