"""docs/security.md says what the code does: its doors are those of the table, and every test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

from understudy.service.doors import DOORS, Door

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/security.md").read_text(encoding="utf-8")


def row(door: Door) -> str:
    def needed(scope: str | None) -> str:
        return "nothing" if door.anybody else f"`{scope}`" if scope else "-"

    name = f"`{door.family}`" + (f" with `/{door.part}`" if door.part else "")
    return f"| {name} | {door.station} | {needed(door.change)} | {needed(door.read)} |"


def test_the_doors_are_those_of_the_table() -> None:
    said = [line for line in PAGE.splitlines() if re.match(r"\| `/", line)]
    assert said == [row(door) for door in DOORS if door.public]


def test_every_test_that_is_named_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 15
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named <= there
