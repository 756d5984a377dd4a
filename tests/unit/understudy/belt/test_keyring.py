"""Keys on a real bus: what is made lets somebody in, what is ended nobody, and what is told of a key has no secret in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from understudy.belt import keyring
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.folds.keys import Key, Keys
from understudy.belt.folds.reader import Reader
from understudy.errors import Invalid


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[EmbeddedBus]:
    bus = EmbeddedBus(tmp_path / "bus.sqlite")
    yield bus
    bus.close()


def known(bus: EmbeddedBus) -> Keys:
    keys = Keys()
    Reader(bus, (keys,)).load()
    return keys


def found(bus: EmbeddedBus, key_id: str) -> Key:
    key = known(bus).get(key_id)
    assert key
    return key


def test_a_key_that_is_made_lets_in_for_as_long_as_it_says(bus: EmbeddedBus) -> None:
    made = keyring.make(bus, "anna", ("read", "inference"), days=1, requests_per_minute=60, at_once=4, by="root")
    key = known(bus).find(made.key)
    assert key
    assert keyring.card(key) == keyring.KeyCard(**{name: getattr(made, name) for name in keyring.KeyCard.model_fields})
    assert (made.name, made.scopes, made.status, made.made_by) == ("anna", ("inference", "read"), "active", "root")
    assert (made.requests_per_minute, made.at_once) == (60, 4)
    assert made.ends_at
    assert abs(made.ends_at - time.time() - 24 * 3600) < 5
    assert keyring.make(bus, "ben", ("jobs",)).ends_at is None


def test_what_is_told_of_a_key_has_nothing_of_its_secret(bus: EmbeddedBus) -> None:
    made = keyring.make(bus, "anna", ("read",))
    key = found(bus, made.id)
    said = keyring.card(key).model_dump_json()
    assert made.key[-43:] not in said
    assert key.made.secret_sha256 not in said
    assert key.made.secret_sha256 not in made.model_dump_json()


def test_an_ended_key_lets_nobody_in_and_ends_once(bus: EmbeddedBus) -> None:
    made = keyring.make(bus, "anna", ("read",))
    ended = keyring.end(bus, found(bus, made.id), by="root")
    assert ended.status == "ended"
    assert known(bus).find(made.key) is None
    assert keyring.end(bus, found(bus, made.id)) == keyring.card(found(bus, made.id))
    assert sum(1 for record in bus.replay(["keys"]) if record) == 2, "nothing was published for the second end"


def test_after_a_rotation_both_let_in_until_the_overlap_is_over(
    bus: EmbeddedBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = keyring.make(bus, "anna", ("jobs",), days=30, requests_per_minute=60, at_once=4)
    new = keyring.rotate(bus, found(bus, old.id), overlap=3600, by="root")
    same = ("name", "scopes", "requests_per_minute", "at_once")
    assert [getattr(new, name) for name in same] == [getattr(old, name) for name in same]
    assert new.id != old.id
    assert abs((new.ends_at or 0) - (old.ends_at or 0)) < 5, "as long a life"
    keys = known(bus)
    assert keys.find(old.key)
    assert keys.find(new.key)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    assert keys.find(old.key) is None
    assert keys.find(new.key)


def test_a_rotation_lengthens_no_life_and_needs_a_living_key(bus: EmbeddedBus) -> None:
    old = keyring.make(bus, "anna", ("jobs",), days=1)
    keyring.rotate(bus, found(bus, old.id), overlap=90 * 24 * 3600)
    assert found(bus, old.id).ends == found(bus, old.id).made.expires
    keyring.end(bus, found(bus, old.id))
    with pytest.raises(Invalid, match="has ended"):
        keyring.rotate(bus, found(bus, old.id), overlap=0)
