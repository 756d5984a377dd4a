"""`understudy keys`: a key is told once, alone on stdout; what is listed has nothing of it; an ended one stays ended."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.folds.keys import Keys
from understudy.belt.folds.reader import Reader
from understudy.terms import SCOPES
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
    assert first[-43:] not in listed
    assert anna[-20:] not in said(capsys, "keys", "list", *at)[0]

    again = said(capsys, "keys", "rotate", cards["anna"]["id"], "--overlap", "1h", *at)[0].strip()
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
        (("create", "anna", "--first"), "--first makes one key"),
        (("create", "--first", "--server", "http://127.0.0.1:1"), "--first makes one key"),
        (("revoke", "abcdefgh"), "There is no bus in"),
    ],
)
def test_what_cannot_be_is_said(
    words: tuple[str, ...], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert problem in said(capsys, "keys", *words, "--data", str(tmp_path), code=1)[1]


def test_what_is_not_there_is_said_with_what_was_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--data", str(tmp_path))
    said(capsys, "keys", "create", "--first", *at)
    (card,) = json.loads(said(capsys, "keys", "list", "--json", *at)[0])
    near = card["id"][:-1] + ("a" if card["id"][-1] != "a" else "b")
    for command in ("revoke", "rotate"):
        assert f"did you mean `{card['id']}`?" in said(capsys, "keys", command, near, *at, code=1)[1]


def test_the_text_is_alone_on_stdout_and_its_secret_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that `> file` and `$(...)` give the key and nothing but the key."""
    out, err = said(capsys, "keys", "create", "anna b.", "--scope", "read", "--days", "3", "--data", str(tmp_path))
    assert out.startswith("sk-understudy-")
    assert out.count("\n") == 1
    assert out.strip()[-20:] not in err
    assert "for anna b.: read until " in err


def test_looking_at_an_empty_folder_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "keys", "list", "--data", str(tmp_path / "none"), code=1)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("text", "hours"), [("0", 0), ("30m", 0.5), ("24h", 24), ("1.5h", 1.5), ("7d", 168)])
def test_how_long_the_old_key_goes_on(
    text: str, hours: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ("--data", str(tmp_path))
    said(capsys, "keys", "create", "--first", *at)
    (before,) = json.loads(said(capsys, "keys", "list", "--json", *at)[0])
    said(capsys, "keys", "rotate", before["id"], "--overlap", text, *at)
    after = {card["id"]: card for card in json.loads(said(capsys, "keys", "list", "--json", *at)[0])}
    assert abs(after[before["id"]]["ends_at"] - time.time() - hours * 3600) < 30
    assert after[before["id"]]["status"] == ("active" if hours else "ended")


@pytest.mark.parametrize(
    "words",
    [
        ("rotate", "x", "--overlap", "-1h"),
        ("rotate", "x", "--overlap", "24"),
        ("rotate", "x", "--overlap", "999d"),
        ("rotate", "x", "--overlap", "nan"),
        ("create", "anna", "--scope", "read", "--days", "0"),
        ("create", "anna", "--scope", "read", "--days", "nan"),
        ("create", "anna", "--scope", "read", "--rpm", "0"),
    ],
)
def test_figures_that_cannot_be_are_wrong_usage(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "keys", *words, "--data", str(tmp_path), code=2)


def test_help_teaches_the_scopes_and_how_a_key_is_sent(capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, "keys", "--help")[0]
    for word in (*SCOPES, "create --first", "curl -H", "OpenAI(", "UNDERSTUDY_API_KEY", "--server", "/login"):
        assert word in told
    for command in ("create", "list", "revoke", "rotate"):
        assert (
            f"understudy keys {command}"
            in said(capsys, "keys", command, "--help")[0].split("Usage:")[1].split("\n", 1)[1]
        )
