"""What users see is a fold over the log: the same after a restart, whatever the order between topics."""

from __future__ import annotations

import itertools
from pathlib import Path

from understudy import contracts as c
from understudy.bus.embedded import EmbeddedBus
from understudy.ledger import Ledger
from understudy.recipe import parse

RECIPE = parse({"datasets": {"d": {"source": "d.csv"}}, "variants": {"v": {"train": "d"}}}, "r")
ARTIFACT = c.Artifact(uri="file:///a", sha256="0")
BELT = {"run": "r", "variant": "v", "recipe": RECIPE, "datasets": {}}
STORY: list[c.Message] = [
    c.RunRequested(run="r", recipe=RECIPE),
    c.TrainingRequested(**BELT),
    c.ModelServed(**BELT, model="ft:v", adapter=ARTIFACT),
    c.VariantScored(**BELT, scores=ARTIFACT),
    c.ReportPublished(run="r", report=ARTIFACT),
]


def ledger(path: Path, messages: list[c.Message]) -> Ledger:
    bus = EmbeddedBus(path)
    for message in messages:
        bus.publish(message)
    return Ledger(bus).load()


def test_the_stages_of_a_variant(tmp_path: Path) -> None:
    stages = []
    for count in range(1, len(STORY) + 1):
        state = ledger(tmp_path / f"{count}.sqlite", STORY[:count]).run("r")
        assert state
        stages.append((state.status, state.variants["v"].stage))
    assert stages == [
        ("queued", "waiting"),
        ("running", "training"),
        ("running", "evaluating"),
        ("running", "scored"),
        ("finished", "scored"),
    ]


def test_any_order_and_any_repetition_give_the_same_state(tmp_path: Path) -> None:
    expected = ledger(tmp_path / "0.sqlite", STORY).run("r")
    assert expected
    for number, order in enumerate(itertools.permutations(STORY), start=1):
        if number % 7:
            continue
        state = ledger(tmp_path / f"{number}.sqlite", [*order, *order[:2]]).run("r")
        assert state
        assert state.model_copy(update={"created_at": 0}) == expected.model_copy(update={"created_at": 0})


def test_failures_keep_their_reasons(tmp_path: Path) -> None:
    failed = c.VariantFailed(**BELT, station="trainer", reason="too long")
    state = ledger(
        tmp_path / "bus.sqlite", [STORY[0], failed, c.RunFailed(run="r", station="evaluator", reason="none left")]
    ).run("r")
    assert state
    assert (state.variants["v"].stage, state.variants["v"].reason) == ("failed", "too long")
    assert (state.status, state.reason) == ("failed", "none left")


def test_served_models_are_listed_once(tmp_path: Path) -> None:
    assert [m.model for m in ledger(tmp_path / "bus.sqlite", [*STORY, STORY[2]]).served()] == ["ft:v"]
