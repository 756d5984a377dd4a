"""`understudy keys`: a key is told once, alone on stdout; what is listed has nothing of it; an ended one stays ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.folds.keys import Keys
from understudy.belt.folds.reader import Reader
from understudy_cli import main


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    assert (end.value.code or 0) == code
    out = capsys.readouterr()
    return out.out, out.err


def test_keys_are_made_listed_replaced_and_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--data", str(tmp_path))

    def keys() -> Keys:
        bus, found = EmbeddedBus(tmp_path / "bus.sqlite"), Keys()
        Reader(bus, (found,)).load()
        bus.close()
        return found

    first = said(capsys, "keys", "create", "--first", *at)[0].strip()
    found = keys().find(first)
    assert found
    assert (found.name, found.made.scopes) == ("admin", ("admin",))
    assert "Somebody has a key already" in said(capsys, "keys", "create", "--first", *at, code=1)[1]

    anna = said(capsys, "keys", "create", "anna", "--scope", "inference", "--days", "2", "--rpm", "9", *at)[0].strip()
    listed = said(capsys, "keys", "list", "--json", *at)[0]
    cards = {card["name"]: card for card in json.loads(listed)}
    assert cards["anna"]["requests_per_minute"] == 9
    assert first.rpartition("-")[2] not in listed
    assert anna[-20:] not in said(capsys, "keys", "list", *at)[0]

    again = said(capsys, "keys", "rotate", cards["anna"]["id"], "--overlap", "1", *at)[0].strip()
    assert keys().find(anna)
    assert keys().find(again)
    said(capsys, "keys", "revoke", cards["anna"]["id"], *at)
    assert keys().find(anna) is None
    assert keys().find(again)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("create",), "needs a name"),
        (("create", "anna"), "needs a scope"),
        (("create", "anna", "--scope", "root"), "no scope `root`"),
        (("create", "a\nb", "--scope", "read"), "cannot name a key"),
        (("revoke", "abcdefgh"), "no key `abcdefgh`"),
    ],
)
def test_what_cannot_be_is_said(
    words: tuple[str, ...], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert problem in said(capsys, "keys", *words, "--data", str(tmp_path), code=1)[1]
