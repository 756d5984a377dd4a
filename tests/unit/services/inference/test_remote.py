"""An engine that somebody else runs, watched: a stub that is a real process and reads the same folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from pydantic import SecretStr

from services.inference.fleet import Fleet
from services.inference.keeper import Keeper
from services.inference.remote import Remote
from services.inference.settings import InferenceSettings
from understudy.bases import Base
from understudy.belt.contracts import ModelServed
from understudy.service.child import Child
from understudy.service.ports import free_ports
from understudy.store.artifacts import FsspecArtifactStore
from understudy.store.plans import Plans
from understudy.terms import Artifact

Eventually = Callable[..., None]


@pytest.fixture
def elsewhere(settings: InferenceSettings) -> InferenceSettings:
    (port,) = free_ports(1)
    where = {"engine_url": f"http://127.0.0.1:{port}", "engine_timeout": 1.0}
    return settings.model_copy(update={**where, "internal_token": SecretStr("what-both-were-told")})


@pytest.fixture
def start(elsewhere: InferenceSettings, launch: Callable[..., Child]) -> Callable[[Base], Child]:
    """Starts the engine that is not ours."""
    return lambda base: launch(base, elsewhere, int(elsewhere.engine_url.rpartition(":")[2]), 16)


@pytest.fixture
def engine(base: Base, elsewhere: InferenceSettings) -> Iterator[Remote]:
    engine = Remote(base, elsewhere)
    engine.start()
    yield engine
    engine.close()


@pytest.fixture
def far(elsewhere: InferenceSettings, log: object, store: FsspecArtifactStore, plans: Plans) -> Iterator[Fleet]:
    """A fleet whose engine is elsewhere, with its keeper at work."""
    fleet = Fleet(elsewhere, log.models, lambda: True, store, Remote)  # type: ignore[attr-defined]
    keeper = Keeper(fleet, log.runs, plans, lambda: True)  # type: ignore[attr-defined]
    keeper.start()
    yield fleet
    keeper.close()
    fleet.close()


def test_one_that_restarts_serves_what_it_served(
    far: Fleet,
    base: Base,
    start: Callable[[Base], Child],
    served: Callable[..., ModelServed],
    put: Callable[..., Artifact],
    eventually: Eventually,
) -> None:
    first = start(base)
    served("ft:one", put("one"))
    far.want("ft:one")
    eventually(lambda: far.route("ft:one"))
    engine = far.ensure(base, 8)
    first.stop()
    eventually(lambda: far.route("ft:one") is None)
    start(base)
    assert engine.wait_ready(10)
    with engine.client() as client:
        assert client.prompt_logprobs("ft:one", [[1, 2]]) == [[-2.0]]


def test_one_with_another_model_is_refused_until_it_has_the_right_one(
    engine: Remote, base: Base, start: Callable[[Base], Child], eventually: Eventually
) -> None:
    other = start(replace(base, name="other"))
    eventually(lambda: engine.failure)
    assert "serves other, not `tiny`" in str(engine.failure)
    other.stop()
    start(base)
    assert engine.wait_ready(10)
    assert engine.failure is None


def test_one_that_is_away_for_long_is_a_failure_and_one_that_comes_back_is_none(
    engine: Remote, base: Base, start: Callable[[Base], Child], eventually: Eventually
) -> None:
    eventually(lambda: engine.failure)
    assert "has not answered for 1 s" in str(engine.failure)
    start(base)
    assert engine.wait_ready(10)
    assert engine.failure is None
