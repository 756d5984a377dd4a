"""Messages survive the wire, the table of topics is complete, and published versions never change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from understudy.belt import contracts as c
from understudy.belt import topics
from understudy.errors import Invalid
from understudy.recipe import parse

GOLDEN = Path(__file__).with_name("golden")
RECIPE = parse({"datasets": {"d": {"source": "d.csv"}}}, "r")
ARTIFACT = c.Artifact(uri="file:///a/manifests/00.json", sha256="00")
BELT = {"run": "r", "variant": "v", "recipe": RECIPE, "datasets": {"d": ARTIFACT}}
EXAMPLES: list[c.Message] = [
    c.RunRequested(run="r", recipe=RECIPE),
    c.TrainingRequested(**BELT),
    c.ModelTrained(**BELT, adapter=ARTIFACT),
    c.ModelServed(**BELT, model="ft:base:r:v:00", adapter=None),
    c.VariantScored(**BELT, scores=ARTIFACT),
    c.VariantFailed(**BELT, station="trainer", reason="because"),
    c.ReportPublished(run="r", report=ARTIFACT, failed={"v": "because"}),
    c.RunFailed(run="r", station="datagen", reason="because"),
    c.Progress(run="r", station="trainer", variant="v", step="training", done=1, total=2, figures={"loss": 0.5}),
    c.DeadLetter(run="r", topic="model-trained", station="inference", reason="because", attempts=5, value="{}"),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: m.type)
def test_a_message_survives_the_wire(message: c.Message) -> None:
    assert c.decode(c.encode(message)) == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: m.type)
def test_golden_examples_still_decode(message: c.Message) -> None:
    """A golden file is what an older process wrote; if this fails, the change needs a new message type."""
    path = GOLDEN / f"{message.type}.json"
    golden = c.decode(path.read_bytes())
    assert golden.type == message.type
    kept = json.loads(c.encode(golden))
    for key, value in json.loads(path.read_bytes()).items():
        if key not in ("recipe",):  # a recipe may gain keys
            assert kept[key] == value


def test_every_message_has_a_topic_an_example_and_a_version() -> None:
    union = get_args(get_args(c.AnyMessage)[0])
    assert {type(e) for e in EXAMPLES} == set(union) == set(topics.BY_MESSAGE)
    assert all(e.type.rsplit(".v", 1)[1].isdigit() for e in EXAMPLES)


def test_topics_are_named_in_kebab_case_and_produced_by_somebody() -> None:
    for topic in topics.TABLE:
        assert topic.name.replace("-", "").isalpha()
        assert topic.name.islower()
        assert topic.producers


def test_additive_changes_are_accepted_and_nonsense_is_not() -> None:
    newer = json.loads(c.encode(EXAMPLES[0])) | {"colour": "blue"}
    assert c.decode(json.dumps(newer).encode()) == EXAMPLES[0]
    for value in (b"", b"{}", b"null", b'{"type": "unheard.of.v1", "run": "r"}', b"\xff"):
        with pytest.raises(Invalid, match="Not a message"):
            c.decode(value)


def test_failures_name_the_variant_when_there_is_one() -> None:
    failed = c.failure(EXAMPLES[1], "trainer", "because")
    assert isinstance(failed, c.VariantFailed)
    assert (failed.variant, failed.station) == ("v", "trainer")
    assert isinstance(c.failure(EXAMPLES[0], "datagen", "because"), c.RunFailed)
