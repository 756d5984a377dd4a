"""The gate lets an adapter through only if the engine computes with it what the trainer computed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.inference import gate
from understudy.errors import Invalid

IDS = [5, 6, 7, 8]
BASE, ADAPTER = [-1.0, -2.0, -3.0], [-0.5, -1.0, -3.0]


class Engine:
    """Answers with these log-probabilities for every prompt."""

    def __init__(self, base: list[float], adapter: list[float]) -> None:
        self.answers = {"base": base, "ft": adapter}
        self.prompts: list[Sequence[int] | str] = []

    def prompt_logprobs(self, model: str, prompts: Sequence[Sequence[int] | str]) -> list[list[float]]:
        self.prompts = list(prompts)
        return [self.answers[model][: len(prompt) - 1] for prompt in prompts]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    probe = {"token_ids": IDS, "base_logprobs": BASE, "adapter_logprobs": ADAPTER}
    (tmp_path / "probe.json").write_text(json.dumps({"probes": [probe, probe]}))
    return tmp_path


def check(engine: Engine, folder: Path, max_len: int = 512) -> None:
    gate.check(engine, "base", "ft", folder, tolerance=0.05, max_len=max_len)


def shifted(values: list[float], by: float) -> list[float]:
    return [value + by for value in values]


def test_agreement_within_the_tolerance_passes(folder: Path) -> None:
    check(Engine(shifted(BASE, 0.04), shifted(ADAPTER, -0.04)), folder)


def test_an_adapter_that_the_engine_ignores_is_refused(folder: Path) -> None:
    with pytest.raises(Invalid, match="exactly like its base"):
        check(Engine(BASE, shifted(BASE, 1e-5)), folder)


def test_another_adapter_than_was_trained_is_refused(folder: Path) -> None:
    with pytest.raises(Invalid, match=r"by 0\.060 nats"):
        check(Engine(BASE, shifted(ADAPTER, 0.06)), folder)


def test_another_base_than_was_trained_on_is_refused(folder: Path) -> None:
    with pytest.raises(Invalid, match="trained on another base"):
        check(Engine(shifted(BASE, 0.2), shifted(ADAPTER, 0.2)), folder)


def test_not_a_number_is_no_agreement(folder: Path) -> None:
    with pytest.raises(Invalid):
        check(Engine(BASE, [float("nan")] * 3), folder)


def test_a_probe_longer_than_the_engine_takes_is_cut(folder: Path) -> None:
    engine = Engine(BASE, ADAPTER)
    check(engine, folder, max_len=3)
    assert engine.prompts == [IDS[:2], IDS[:2]]


def test_without_probes_the_adapter_must_still_change_something(tmp_path: Path) -> None:
    check(Engine(BASE, ADAPTER), tmp_path)
    with pytest.raises(Invalid, match="exactly like its base"):
        check(Engine(BASE, BASE), tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "{}",
        '{"probes": []}',
        '{"probes": [{"token_ids": [1, 2, 3], "base_logprobs": [-1], "adapter_logprobs": [-1, -1]}]}',
    ],
)
def test_malformed_probes_are_invalid(tmp_path: Path, content: str) -> None:
    (tmp_path / "probe.json").write_text(content)
    with pytest.raises(Invalid, match=r"probe\.json"):
        check(Engine(BASE, ADAPTER), tmp_path)
