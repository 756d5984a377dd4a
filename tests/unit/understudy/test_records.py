"""Rows survive the disk, a bad row is named with its line, and a torn line is forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from understudy.errors import Invalid
from understudy.records import Rejected, read_jsonl, resume_jsonl, write_jsonl

ROWS = [Rejected(row=number, reason="because", content=text) for number, text in enumerate(["a", "ü\u2028b\n", ""])]


def test_rows_survive(tmp_path: Path) -> None:
    assert write_jsonl(tmp_path / "rows.jsonl", ROWS) == 3
    assert (
        list(read_jsonl(tmp_path / "rows.jsonl", Rejected)) == ROWS == resume_jsonl(tmp_path / "rows.jsonl", Rejected)
    )


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, ROWS)
    path.write_text(path.read_text() + '{"row": "x"}\n')
    with pytest.raises(Invalid, match=r"rows\.jsonl:4"):
        list(read_jsonl(path, Rejected))


@pytest.mark.parametrize("lost", [1, 2, 10])
def test_a_torn_line_is_cut_off_and_the_next_row_stands_alone(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, ROWS)
    path.write_bytes(path.read_bytes()[:-lost])  # even a whole row without its line end would swallow the next one
    assert resume_jsonl(path, Rejected) == ROWS[:2]
    with path.open("a") as file:
        file.write(ROWS[2].model_dump_json() + "\n")
    assert resume_jsonl(path, Rejected) == ROWS


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert resume_jsonl(tmp_path / "rows.jsonl", Rejected) == []
