"""The calls on an engine's own API: what is success, what is whose fault, and that nobody has to wait for an answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.inference.client import EngineClient, EngineRefused
from services.inference.settings import InferenceSettings
from understudy.bases import Base
from understudy.errors import Transient
from understudy.interrupt import Interrupted, interruptible
from understudy.service.child import Child
from understudy.service.ports import free_ports
from understudy.service.token import internal_token


@pytest.fixture
def engine(
    base: Base, settings: InferenceSettings, launch: Callable[..., Child], eventually: Callable[..., None]
) -> Iterator[EngineClient]:
    (port,) = free_ports(1)
    process = launch(base, settings, port, 16)
    with EngineClient(f"http://127.0.0.1:{port}", internal_token(settings)) as client:
        eventually(client.healthy)
        yield client
    process.stop()


def test_an_adapter_is_taken_up_from_its_folder_and_forgotten(
    engine: EngineClient, settings: InferenceSettings
) -> None:
    folder = settings.adapters() / "ft:one"
    folder.mkdir(parents=True)
    engine.answers("ft:one")
    assert engine.models() == {"tiny", "ft:one"}
    for _ in range(2):
        engine.unload("ft:one")
    assert engine.models() == {"tiny"}


def test_one_that_cannot_be_loaded_says_why_and_one_that_is_not_found_what_to_do(
    engine: EngineClient, settings: InferenceSettings, tmp_path: Path
) -> None:
    """Of what it finds by itself and cannot load, vLLM says no more than that."""
    bad = settings.adapters() / "ft:bad"
    bad.mkdir(parents=True)
    (bad / "bad").touch()
    with pytest.raises(EngineRefused, match=r"could not be loaded$"):
        engine.answers("ft:bad")
    assert "cannot be loaded: rank 32 is too much" in str(engine.explain("ft:bad", bad))
    elsewhere = tmp_path / "elsewhere" / "ft:one"
    elsewhere.mkdir(parents=True)
    with pytest.raises(EngineRefused, match="does not exist"):
        engine.answers("ft:one")
    assert "VLLM_LORA_RESOLVER_CACHE_DIR" in str(engine.explain("ft:one", elsewhere))
    assert engine.models() == {"tiny"}


def test_a_refusal_is_invalid_and_silence_is_transient(engine: EngineClient) -> None:
    with pytest.raises(EngineRefused, match="does not exist"):
        engine.prompt_logprobs("missing", [[1, 2]])
    (port,) = free_ports(1)
    with EngineClient(f"http://127.0.0.1:{port}") as nobody, pytest.raises(Transient):
        nobody.models()


def test_logprobs_come_in_the_order_of_the_prompts(engine: EngineClient) -> None:
    assert engine.prompt_logprobs("tiny", [[1, 2], [1, 2, 3, 4]]) == [[-1.0], [-1.0, -1.0, -1.0]]


def test_an_interruption_does_not_wait_for_the_engine(engine: EngineClient, settings: InferenceSettings) -> None:
    (settings.adapters() / "ft:slow").mkdir(parents=True)
    (settings.adapters() / "ft:slow" / "slow").write_text("30")
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    started = time.monotonic()
    with interruptible(stop), pytest.raises(Interrupted):
        engine.prompt_logprobs("ft:slow", [[1, 2]])
    assert time.monotonic() - started < 1.5
