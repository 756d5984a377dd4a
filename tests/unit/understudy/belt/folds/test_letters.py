"""Dead letters: what is open is read from the bus alone, and the commands neither lose nor double a message."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from understudy.belt import contracts as c
from understudy.belt.bus import Record
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.delivery import Lane
from understudy.belt.folds.letters import Letters
from understudy.belt.loop import Loop
from understudy.belt.topics import BY_MESSAGE
from understudy.errors import Invalid
from understudy_cli import main

PLAN = c.Artifact(sha256="0" * 64)
GARBAGE = b'\xff\x1b[31m{"type": "run.requested.v2", not json'

Cli = Callable[..., tuple[int, str, str]]


def requested(run: str, attempt: int = 1, generation: int = 1) -> c.RunRequested:
    return c.RunRequested(run=run, name=run, plan=PLAN, items=1, attempt=attempt, generation=generation)


def training(item: str) -> c.TrainingRequested:
    return c.TrainingRequested(run="r", item=item, index=1, plan=PLAN)


REQUEST = requested("r")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`cli("topics")` -> (exit code, stdout, stderr), on the data folder of this test."""
    monkeypatch.setenv("UNDERSTUDY_DATA", str(tmp_path / "data"))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def bus(tmp_path: Path) -> EmbeddedBus:
    return EmbeddedBus(tmp_path / "data" / "bus.sqlite")


def dies(_: c.Message) -> Iterator[c.Message]:
    raise Invalid("The table is gone\nfrom the disk", "Bring it back.")
    yield


def lives(_: c.Message) -> Iterator[c.Message]:
    yield from ()


def work(bus: EmbeddedBus, group: Any, handler: Callable[[Any], Iterator[c.Message]]) -> None:
    """The group handles what is there, and stops."""
    kind = {"datagen": c.RunRequested, "trainer": c.TrainingRequested}[group]
    loop = Loop(bus, Lane(group, {kind: handler}))
    bus.subscribe(group, [BY_MESSAGE[kind].name], f"{group}-{loop.member}").close()
    thread = threading.Thread(target=loop.run)
    thread.start()
    while any(bus.lag(group).values()):
        loop.stop.wait(0.01)
    loop.stop.set()
    thread.join(10)


def put_garbage(bus: EmbeddedBus, topic: str, value: bytes = GARBAGE) -> None:
    """What no client of ours would do."""
    bus.publish(requested("garbage"))
    with bus._transaction() as db:
        db.execute("UPDATE messages SET value = ?, topic = ? WHERE id = (SELECT max(id) FROM messages)", (value, topic))


def listed(cli: Cli) -> list[dict[str, Any]]:
    return list(json.loads(cli("deadletters", "list", "--json")[1]))


def on(bus: EmbeddedBus, topic: str) -> int:
    return sum(1 for record in bus.replay([topic]) if record)


def test_where_nothing_is_nothing_is_made(cli: Cli, tmp_path: Path) -> None:
    assert "There is no bus" in cli("topics")[2]
    assert cli("topics", "--json")[1] == "[]\n"
    assert "No dead letters" in cli("deadletters", "list")[2]
    assert cli("deadletters", "replay", "--all")[0] == 0
    code, _, err = cli("deadletters", "show", "0-0")
    assert code == 1
    assert "There is no dead letter `0-0`" in err
    assert not (tmp_path / "data").exists()


def test_a_letter_is_open_until_it_is_replayed_and_a_second_replay_publishes_nothing(
    cli: Cli, bus: EmbeddedBus
) -> None:
    bus.publish(REQUEST)
    work(bus, "datagen", dies)
    code, out, _ = cli("deadletters", "list")
    assert code == 0
    [row] = out.splitlines()[1:]
    assert "The table is gone" in row
    assert "from the disk" not in row, "a row is one line"
    assert "from the disk" in cli("deadletters", "show", row.split()[0])[1]
    code, out, err = cli("deadletters", "replay", row.split()[0])
    assert (code, out) == (0, f"{row.split()[0]} is on run-requested again: r\n")
    assert "No stack is up" in err
    assert "1 replayed before" in cli("deadletters", "replay", "--all")[2]
    code, _, err = cli("deadletters", "replay", row.split()[0])
    assert code == 1
    assert "was replayed before" in err
    assert on(bus, "run-requested") == 2
    published = [c.decode(record.value) for record in bus.replay(["run-requested"]) if record]
    assert published == [REQUEST, requested("r", attempt=2)]
    work(bus, "datagen", lives)
    assert [letter["status"] for letter in listed(cli)] == ["replayed"]


def test_a_message_that_dies_again_is_a_new_letter_and_its_replay_a_third_attempt(cli: Cli, bus: EmbeddedBus) -> None:
    bus.publish(training("mine"))
    for attempt in (1, 2):
        work(bus, "trainer", dies)
        letters = listed(cli)
        assert [letter["status"] for letter in letters] == ["replayed"] * (attempt - 1) + ["open"]
        assert {letter["item"] for letter in letters} == {"mine"}
        assert cli("deadletters", "replay", "--all")[1].endswith("is on training-requested again: r mine\n")
    assert [c.decode(record.value).attempt for record in bus.replay(["training-requested"]) if record] == [1, 2, 3]
    work(bus, "trainer", lives)
    assert [letter["status"] for letter in listed(cli)] == ["replayed", "replayed"]


def test_a_letter_of_a_deleted_run_says_so_and_is_not_replayed(cli: Cli, bus: EmbeddedBus) -> None:
    """Nobody would handle it; a run of the same id that was asked for again is another matter."""
    bus.publish(REQUEST)
    work(bus, "datagen", dies)
    bus.publish(c.RunDeleted(run="r", generation=1), requested("r", generation=2))
    work(bus, "datagen", dies)
    first, second = listed(cli)
    assert (first["status"], second["status"]) == ("deleted", "open")
    code, _, err = cli("deadletters", "replay", first["id"])
    assert code == 1
    assert "run r, which was deleted" in err
    code, out, err = cli("deadletters", "replay", "--all")
    assert out.startswith(second["id"])
    assert "1 of deleted runs" in err
    assert on(bus, "run-requested") == 3


def test_a_letter_of_what_was_cancelled_says_so_and_names_the_way_back(cli: Cli, bus: EmbeddedBus) -> None:
    """No station would touch it. What comes of the run when it is asked for again, and what closes a cancelled run, is open."""
    bus.publish(REQUEST, training("mine"), training("other"))
    work(bus, "datagen", dies)
    work(bus, "trainer", dies)
    bus.publish(c.CancelRequested(run="r", generation=1, item="mine"))
    assert {letter["item"]: letter["status"] for letter in listed(cli)} == {
        "": "open",
        "mine": "cancelled",
        "other": "open",
    }
    bus.publish(c.CancelRequested(run="r", generation=1))
    assert {letter["status"] for letter in listed(cli)} == {"cancelled"}
    bus.publish(requested("r", generation=2))
    work(bus, "datagen", dies)
    by_item = {(letter["item"], letter["status"]): letter["id"] for letter in listed(cli)}
    assert set(by_item) == {("", "cancelled"), ("mine", "cancelled"), ("other", "cancelled"), ("", "open")}
    code, _, err = cli("deadletters", "replay", by_item["mine", "cancelled"])
    assert code == 1
    assert "item mine of run r, which was cancelled" in err
    assert "Ask for the run again: `understudy run` takes it up" in err
    code, out, err = cli("deadletters", "replay", "--all")
    assert out.startswith(by_item["", "open"])
    assert len(out.splitlines()) == 1
    assert "3 of cancelled work" in err


def test_what_ends_a_cancelled_run_is_not_cancelled(cli: Cli, bus: EmbeddedBus) -> None:
    """The closer heeds no wish: a score that died on its way still has to get into the report."""
    scored = c.ItemScored(run="r", item="mine", answers=PLAN, measures=PLAN)
    bus.publish(scored, c.CancelRequested(run="r", generation=1))
    value = c.encode(scored).decode()
    bus.publish(c.DeadLetter(run="r", topic="run-control", station="evaluator", reason="x", attempts=1, value=value))
    assert [letter["status"] for letter in listed(cli)] == ["open"]


def test_garbage_is_listed_shown_harmlessly_and_refused(cli: Cli, bus: EmbeddedBus) -> None:
    put_garbage(bus, "run-requested")
    bus.publish(REQUEST)
    work(bus, "datagen", dies)
    put_garbage(bus, "dead-letters")
    letters = {letter["run"]: letter for letter in listed(cli) if letter["topic"] == "run-requested"}
    assert {run: letter["status"] for run, letter in letters.items()} == {"unknown": "unreadable", "r": "open"}
    assert {letter["status"] for letter in listed(cli) if letter["topic"] == "dead-letters"} == {"unreadable"}
    name = letters["unknown"]["id"]
    code, out, _ = cli("deadletters", "show", name)
    assert code == 0
    assert "\x1b" not in out, "garbage must not steer the terminal"
    assert "\\x1b[31m" in out
    assert '"type": "run.requested.v2", not json' in out
    code, _, err = cli("deadletters", "replay", letters["r"]["id"], name)
    assert code == 1
    assert "what lay on run-requested is no message of the belt" in err
    assert on(bus, "run-requested") == 2, "either all that were named or none"
    code, out, err = cli("deadletters", "replay", "--all")
    assert code == 0
    assert "2 unreadable" in err
    assert on(bus, "run-requested") == 3


def test_bytes_that_became_a_message_by_being_made_text_are_not_replayed(cli: Cli, bus: EmbeddedBus) -> None:
    """Invalid UTF-8 inside a string: as text with replacement characters it would be read, but it is not what was sent."""
    put_garbage(bus, "run-requested", c.encode(requested("rX")).replace(b"rX", b"r\xff"))
    work(bus, "datagen", dies)
    assert [letter["status"] for letter in listed(cli)] == ["unreadable"]


def test_a_message_of_an_older_version_counts_as_the_same_once_published_anew(cli: Cli, bus: EmbeddedBus) -> None:
    """Publishing writes keys that were added since; it is still the message that died."""
    short = b'{"type":"run.requested.v2","run":"r","name":"r","items":1,"plan":{"sha256":"%s"}}' % (b"0" * 64)
    put_garbage(bus, "run-requested", short)
    work(bus, "datagen", dies)
    assert cli("deadletters", "replay", "--all")[0] == 0
    assert [letter["status"] for letter in listed(cli)] == ["replayed"]
    assert "No open" in cli("deadletters", "replay", "--all")[2]


def test_wrong_usage_is_exit_code_2(cli: Cli, bus: EmbeddedBus) -> None:
    assert cli("deadletters", "replay", "0-0", "--all")[0] == 2
    assert "--all" in "".join(cli("deadletters", "replay")[1:])


def test_topics_count_messages_lag_and_dead_letters(cli: Cli, bus: EmbeddedBus) -> None:
    for run in ("a", "b", "c"):
        bus.publish(requested(run))
    work(bus, "datagen", dies)
    bus.publish(training("mine"))
    assert cli("deadletters", "replay", listed(cli)[0]["id"])[0] == 0
    rows = {row["topic"]: row for row in json.loads(cli("topics", "--json")[1])}
    assert rows["run-requested"] == {
        "topic": "run-requested",
        "partitions": 6,
        "kept_seconds": None,
        "messages": 4,
        "group": "datagen",
        "lag": 1,
        "dead_letters": 3,
        "open": 2,
    }
    assert rows["run-closed"] | {"messages": 3, "group": None, "lag": None} == rows["run-closed"]
    assert rows["training-requested"]["lag"] is None, "the trainer never came up"
    out = cli("topics")[1]
    row = next(line for line in out.splitlines() if line.split()[:1] == ["run-requested"])
    assert "datagen 1" in row
    assert "trainer -" in next(line for line in out.splitlines() if line.split()[:1] == ["training-requested"])
    assert "3 (2 open)" in row
    assert "7 days" in next(line for line in out.splitlines() if line.split()[:1] == ["progress"])


@pytest.mark.parametrize("seed", range(20))
def test_the_order_between_topics_does_not_matter(seed: int) -> None:
    """Random deaths and replays, read in order within a topic and in any order between: open is the last death of a message
    that was not published again since."""
    dice, offset = Random(seed), 0
    copies: list[Record] = []
    dead: list[Record] = []
    open_: set[str] = set()
    for number in range(4):
        attempt, waiting = 1, True
        while waiting:
            message = requested(f"r{number}", attempt)
            copies.append(Record("run-requested", number, len(copies), 0, c.encode(message)))
            waiting = False
            if dice.random() < 0.7:
                letter = c.DeadLetter(
                    run=message.run,
                    topic="run-requested",
                    station="datagen",
                    reason="x",
                    attempts=1,
                    value=c.encode(message).decode(),
                )
                dead.append(Record("dead-letters", number, offset, dice.random(), c.encode(letter)))
                waiting = dice.random() < 0.7
                open_ |= set() if waiting else {f"{number}-{offset}"}
                offset, attempt = offset + 1, attempt + 1
    records = copies + dead
    dice.shuffle(records)
    letters = Letters()
    for record in records:
        letters.read(record)
    assert {letter.id for letter in letters.all() if letter.status == "open"} == open_
    assert len(letters.all()) == len(dead)
