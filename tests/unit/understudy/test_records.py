"""Rows survive the disk, a bad row is named with its line, a torn line is forgotten, and additions are ignored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from understudy.errors import Invalid, Unsupported
from understudy.records import (
    Answered,
    DatasetCard,
    Rejected,
    pick_jsonl,
    read_json,
    read_jsonl,
    resume_jsonl,
    write_json,
    write_jsonl,
)

ROWS = [Rejected(row=number, reason="because", content=text) for number, text in enumerate(["a", "ü\u2028b\n", ""])]


def test_rows_survive(tmp_path: Path) -> None:
    assert write_jsonl(tmp_path / "rows.jsonl", ROWS) == 3
    assert (
        list(read_jsonl(tmp_path / "rows.jsonl", Rejected)) == ROWS == resume_jsonl(tmp_path / "rows.jsonl", Rejected)
    )


def test_rows_are_picked_by_number(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    assert pick_jsonl(tmp_path / "rows.jsonl", Rejected, {0, 2}) == {0: ROWS[0], 2: ROWS[2]}


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


def test_what_a_newer_version_added_to_rows_and_documents_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"row": 1, "reason": "because", "content": "a", "colour": {"of": "late"}}\n')
    assert list(read_jsonl(tmp_path / "rows.jsonl", Rejected)) == [Rejected(row=1, reason="because", content="a")]
    answers = Answered(item="v", model="m", decoding={"temperature": 0.0})
    write_json(tmp_path / "answers.json", answers)
    written = json.loads((tmp_path / "answers.json").read_bytes())
    assert written["format"] == "understudy.answers.v1"
    (tmp_path / "answers.json").write_text(json.dumps({**written, "colour": "late"}))
    assert read_json(tmp_path / "answers.json", Answered) == answers


def test_a_document_of_another_format_waits_for_who_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    card = DatasetCard(name="d", source="d.csv", task="classify", rows={}, rejected=0, seed=17)
    path.write_text(card.model_dump_json().replace("dataset.v1", "dataset.v2"))
    with pytest.raises(Unsupported, match=r"card\.json cannot be read here: format: .*understudy\.dataset\.v1"):
        read_json(path, DatasetCard)
