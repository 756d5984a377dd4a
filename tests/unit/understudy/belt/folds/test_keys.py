"""Keys: the right secret opens what its scopes say, until it ends; in any order of reading."""

from __future__ import annotations

import itertools
import time

import pytest

from understudy.belt.apikeys import mint, presented
from understudy.belt.bus import Record
from understudy.belt.contracts import KeyEnded, KeyMade, Message, encode
from understudy.belt.folds.keys import Keys
from understudy.errors import Invalid
from understudy.terms import SCOPES


def read(*messages: Message) -> Keys:
    keys = Keys()
    for offset, message in enumerate(messages):
        keys.read(message, Record("keys", 0, offset, 1_000.0, encode(message)))
    return keys


def test_a_key_is_found_by_its_text_and_the_bus_has_only_a_digest_of_it() -> None:
    text, made = mint("anna", ("inference",))
    assert text.startswith("sk-understudy-")
    assert text[-43:] not in encode(made).decode()
    key = read(made).find(text)
    assert key
    assert (key.name, key.id, key.created) == ("anna", made.key_id, 1000)
    other, _ = mint("anna", ("inference",))
    for wrong in (
        "",
        "EMPTY",
        text[:-1],
        text[:-1] + ("a" if text[-1] != "a" else "b"),
        text.upper(),
        f"{text} ",
        other,
    ):
        assert read(made).find(wrong) is None
    assert presented("sk-proj-of-somebody-else") is None


@pytest.mark.parametrize(
    ("scope", "opens"),
    [("inference", {"inference"}), ("read", {"read"}), ("jobs", {"jobs", "read"}), ("admin", set(SCOPES))],
)
def test_scopes(scope: str, opens: set[str]) -> None:
    text, made = mint("anna", (scope,))  # type: ignore[arg-type]
    key = read(made).find(text)
    assert key
    assert {each for each in SCOPES if key.may(each)} == opens


def test_a_key_ends_at_the_earliest_of_its_expiry_and_its_ends_in_any_order() -> None:
    now = time.time()
    text, made = mint("anna", ("read",), expires=now + 60)
    late, early = KeyEnded(key_id=made.key_id, at=now + 30), KeyEnded(key_id=made.key_id, at=now - 1)
    for several in itertools.permutations((made, late)):
        keys = read(*several, *several)
        found = keys.find(text)
        assert found
        assert found.ends == now + 30
        assert keys.any_alive()
    for several in itertools.permutations((made, late, early)):
        keys = read(*several)
        assert keys.find(text) is None
        assert not keys.any_alive()
        assert [key.id for key in keys.all()] == [made.key_id]
    expired, made = mint("anna", ("read",), expires=now - 1)
    assert read(made).find(expired) is None


def test_who_writes_on_the_bus_cannot_take_over_the_id_of_a_key() -> None:
    text, made = mint("anna", ("read",))
    _, thief = mint("anna", ("admin",))
    stolen = KeyMade(**{**thief.model_dump(), "key_id": made.key_id})
    found = read(made, stolen).find(text)
    assert found
    assert not found.may("admin")


def test_names_and_scopes_are_checked() -> None:
    for name in ("", "a\nb", "x" * 65, "<b>"):
        with pytest.raises(Invalid, match="cannot name a key"):
            mint(name, ("read",))
    with pytest.raises(Invalid, match="Give it a scope"):
        mint("anna", ())
