"""Uploaded files: the same file is there once, names are safe, bounds hold."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from services.datagen import files as module
from services.datagen.files import Files, safe_name
from understudy.errors import Invalid
from understudy.service.web import NotFound
from understudy.testing import local_store


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(local_store(tmp_path), max_bytes=100)


def test_the_same_file_twice_is_one_file_with_its_first_date(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "time", lambda: 1000.9)
    first = files.add("a.csv", io.BytesIO(b"x"), "fine-tune")
    monkeypatch.setattr(module.time, "time", lambda: 2000.0)
    assert files.add("a.csv", io.BytesIO(b"x"), "fine-tune") == first
    assert (first.created_at, first.bytes, first.filename) == (1000, 1, "a.csv")
    other = files.add("b.csv", io.BytesIO(b"x"), "evals")
    assert other.id != first.id
    assert files.all() == [other, first], "newest first"


def test_a_deleted_file_is_gone_and_can_come_back(files: Files) -> None:
    card = files.add("a.csv", io.BytesIO(b"x"), "fine-tune")
    files.delete(card.id)
    for gone in (files.get, files.path, files.delete):
        with pytest.raises(NotFound, match=card.id):
            gone(card.id)
    assert files.all() == []
    assert files.path(files.add("a.csv", io.BytesIO(b"x"), "fine-tune").id).read_bytes() == b"x"


def test_empty_and_large_files_are_refused(files: Files) -> None:
    with pytest.raises(Invalid, match=r"a\.csv is empty"):
        files.add("a.csv", io.BytesIO(), "fine-tune")
    with pytest.raises(Invalid, match="more than the 100 bytes"):
        files.add("a.csv", io.BytesIO(b"x" * 101), "fine-tune")


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("../../etc/passwd.csv", "passwd.csv"),
        ("C:\\data\\my table.csv", "my table.csv"),
        ("..", "upload"),
        ("", "upload"),
        ("a\x00b\n.csv", "ab.csv"),
        ("größe.jsonl", "größe.jsonl"),
        ("x" * 500 + ".parquet", "x" * 192 + ".parquet"),
    ],
)
def test_names_cannot_leave_the_folder(given: str, safe: str) -> None:
    assert safe_name(given) == safe
