"""Messages survive the wire, stay small, are read by older and newer replicas; the table of topics is complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from understudy.belt import contracts as c
from understudy.belt import topics
from understudy.errors import Invalid, Unsupported
from understudy.plan import Plan
from understudy.recipe import Recipe

GOLDEN = Path(__file__).with_name("golden")
ARTIFACT = c.Artifact(sha256="ab" * 32)
BELT = {"run": "r", "item": "v", "index": 1, "plan": ARTIFACT, "datasets": ARTIFACT}
EXAMPLES: list[c.Message] = [
    c.RunRequested(run="r", plan=ARTIFACT, name="r", bases=("seedling",), items=2, owner="anna"),
    c.ItemPlanned(run="r", item="v", index=1, base="seedling", what="remarks 2 + general 1"),
    c.CancelRequested(run="r", item="v", owner="anna"),
    c.RunDeleted(run="r", owner="anna"),
    c.TrainingRequested(**BELT, needs=("nf4",)),
    c.ServingRequested(**BELT, adapter=ARTIFACT),
    c.ScoringRequested(**BELT, model="ft:base:r:v:00", adapter=ARTIFACT),
    c.DatasetsMade(run="r", plan=ARTIFACT, datasets=ARTIFACT),
    c.ModelServed(run="r", item="v", model="ft:base:r:v:00", base="seedling", parent="seedling", adapter=ARTIFACT),
    c.ItemServed(run="r", item="v", model="ft:base:r:v:00"),
    c.ItemScored(run="r", item="v", answers=ARTIFACT, measures=ARTIFACT),
    c.ItemFailed(run="r", item="v", generation=2, attempt=3, station="trainer", reason="because"),
    c.ReportRequested(run="r", outcome="0" * 16, status="finished", plan=ARTIFACT, datasets=ARTIFACT),
    c.RunClosed(run="r", status="finished", outcome="0" * 16, report=ARTIFACT),
    c.Progress(run="r", station="trainer", item="v", step="training", done=1, total=2, figures={"loss": 0.5}, mark=1),
    c.KeyMade(
        key_id="abcdefgh",
        name="anna",
        secret_sha256="ab" * 32,
        scopes=("inference", "read"),
        expires=2e9,
        requests_per_minute=60,
        at_once=4,
        by="admin",
    ),
    c.KeyEnded(key_id="abcdefgh", at=1.9e9, by="admin"),
    c.DeadLetter(run="r", topic="training-requested", station="trainer", reason="because", attempts=5, value="{}"),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: m.type)
def test_a_message_survives_the_wire(message: c.Message) -> None:
    assert c.decode(c.encode(message)) == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: m.type)
def test_golden_examples_still_decode_also_with_fields_of_a_newer_version(message: c.Message) -> None:
    """A golden file is what an older process wrote; if this fails, the change needs a new message type."""
    golden = json.loads((GOLDEN / f"{message.type}.json").read_bytes())
    for written in (golden, strewn(golden)):
        kept = json.loads(c.encode(c.decode(json.dumps(written).encode())))
        assert {key: kept[key] for key in golden} == golden


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.v?.*.json")), ids=lambda path: path.stem)
def test_golden_examples_with_the_fields_that_came_later_are_read_whole(path: Path) -> None:
    golden = json.loads(path.read_bytes())
    for written in (golden, strewn(golden)):
        assert json.loads(c.encode(c.decode(json.dumps(written).encode()))) == golden


def test_the_golden_plan_is_read_also_with_fields_of_a_newer_version() -> None:
    golden = json.loads((GOLDEN / "understudy.plan.v1.json").read_bytes())
    plan = Plan.model_validate(golden)
    assert plan == Plan.model_validate(strewn(golden))
    assert [item.name for item in plan.items] == ["base", "remarks-only", "remarks+general"]


def strewn(value: object) -> object:
    """`value` with an unknown field in every object that is one of ours; maps by name only get one in their values."""
    if isinstance(value, list):
        return [strewn(each) for each in value]
    if not isinstance(value, dict):
        return value
    by_name = {"datasets", "panels", "labels", "needs", "figures"}
    grown = {
        key: {name: strewn(each) for name, each in inner.items()}
        if key in by_name and "sha256" not in inner
        else strewn(inner)
        for key, inner in value.items()
        if isinstance(inner, dict)
    }
    rest = {key: strewn(inner) for key, inner in value.items() if not isinstance(inner, dict)}
    weights = value and all(isinstance(inner, float) for inner in value.values())
    return value if weights else {**rest, **grown, "colour": {"of": ["a", "newer", "version"]}}


def test_every_message_has_a_topic_an_example_and_a_version() -> None:
    union = c.kinds()
    assert {type(e) for e in EXAMPLES} == set(union) == set(topics.BY_MESSAGE)
    assert all(e.type.rsplit(".v", 1)[1].isdigit() for e in EXAMPLES)
    assert {path.stem for path in GOLDEN.glob("*.v?.json")} == {e.type for e in EXAMPLES} | {"understudy.plan.v1"}


def test_topics_are_named_in_kebab_case_and_produced_by_somebody() -> None:
    for topic in topics.TABLE:
        assert topic.name.replace("-", "").isalpha()
        assert topic.name.islower()
        assert topic.producers
        assert topic.group is None or topic.group in topics.STATION_OF


def test_nonsense_is_invalid_and_a_newer_version_of_a_known_message_is_left_for_a_newer_replica() -> None:
    for value in (b"", b"{}", b"null", b'{"type": "unheard.of.v1", "run": "r"}', b"\xff", b"[" * 100_000):
        with pytest.raises(Invalid, match="Not a message"):
            c.decode(value)
    newer = json.loads(c.encode(EXAMPLES[4])) | {"type": "training.requested.v3"}
    with pytest.raises(Unsupported, match="newer than this replica"):
        c.decode(json.dumps(newer).encode())


def test_failures_name_the_item_when_there_is_one_and_carry_its_generation_and_attempt() -> None:
    request = c.TrainingRequested(**BELT, generation=3, attempt=2)
    failed = c.failure(request, "trainer", "because")
    assert isinstance(failed, c.ItemFailed)
    assert (failed.item, failed.station, failed.generation, failed.attempt) == ("v", "trainer", 3, 2)
    whole = c.failure(EXAMPLES[0], "datagen", "because")
    assert isinstance(whole, c.RunClosed)
    assert (whole.status, whole.outcome) == ("failed", None)
    scored = c.failure(c.ItemScored(run="r", item="v", answers=ARTIFACT, measures=ARTIFACT), "evaluator", "because")
    assert isinstance(scored, c.RunClosed), "an item that was scored has not failed because the closer did"


@pytest.mark.parametrize("text", ["x" * 9000, "\U0001f331" * 9000, "\0\1\2" * 9000, '"\\' * 9000, "表" * 9000])
def test_no_reason_makes_a_message_too_large(text: str) -> None:
    message = c.ItemFailed(run="r" * 80, item="i" * 200, station="trainer", reason=text)
    assert len(c.encode(message)) < 4096
    assert message.reason.endswith("…")
    assert c.ItemFailed(run="r", item="i", station="trainer", reason="short").reason == "short"


@pytest.mark.parametrize("value", [b"\0", b"\xff", b'"', "\N{SEEDLING}".encode(), b"\\"])
def test_what_fills_a_topic_to_its_limit_can_be_buried_whole(value: bytes) -> None:
    most = max(topic.max_bytes for topic in topics.TABLE if topic.name != "dead-letters")
    text = (value * most)[:most].decode(errors="replace")
    letter = c.DeadLetter(run="r" * 80, topic="t" * 40, station="trainer", reason="\0" * 9000, attempts=1, value=text)
    assert len(c.encode(letter)) < topics.BY_NAME["dead-letters"].max_bytes
    assert letter.value == text


def test_a_reason_that_is_no_text_is_made_one() -> None:
    """An error may quote a file name that is not UTF-8; it must not end the loop that buries a message with it."""
    message = c.DeadLetter(run="r", topic="t", station="trainer", reason="no file \udcff", attempts=1, value="{}")
    assert c.decode(c.encode(message)).reason == "no file ?"


def test_items_of_a_run_go_to_partitions_in_turn_and_its_control_messages_to_one() -> None:
    requests = [c.TrainingRequested(**{**BELT, "item": f"i{n}", "index": n}) for n in range(12)]
    assert sorted(request.place(12) for request in requests) == list(range(12))
    ends = [c.ItemFailed(run="r", item=f"i{n}", station="trainer", reason="x") for n in range(12)]
    assert len({message.place(6) for message in (*ends, EXAMPLES[2], EXAMPLES[3], EXAMPLES[7])}) == 1


def test_what_rides_on_takes_everything_along_but_what_the_last_station_needed() -> None:
    before = c.TrainingRequested(**BELT, generation=2, attempt=4, needs=("nf4",), base=1)
    after = c.ServingRequested.following(before, adapter=ARTIFACT)
    assert (after.generation, after.attempt, after.item, after.index, after.base) == (2, 4, "v", 1, 1)
    assert (after.plan, after.datasets, after.needs) == (ARTIFACT, ARTIFACT, ())


def test_recipes_and_everything_on_the_wire_are_immutable() -> None:
    kinds: list[type[BaseModel]] = [Recipe, Plan, *(type(example) for example in EXAMPLES)]
    assert all(kind.model_config.get("frozen") for kind in kinds)
