"""Uploaded files: the same file is there once, names are safe, bounds hold."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from services.datagen import files as module
from services.datagen.files import FileCard, Files, safe_name
from understudy.errors import Fatal, Invalid, NotFound
from understudy.store import keys
from understudy.store.artifacts import FsspecArtifactStore
from understudy.terms import Artifact
from understudy.testing import local_store


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(local_store(tmp_path), max_bytes=100)


def add(files: Files, name: str, content: bytes, purpose: str) -> FileCard:
    with files.arriving() as arriving:
        arriving.begin(name)
        arriving.write([content[:3], content[3:]])
        return arriving.keep(purpose)


def test_the_same_file_twice_is_one_file_with_its_first_date(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "time", lambda: 1000.9)
    first = add(files, "a.csv", b"x", "fine-tune")
    monkeypatch.setattr(module.time, "time", lambda: 2000.0)
    assert add(files, "a.csv", b"x", "fine-tune") == first
    assert (first.created_at, first.bytes, first.filename) == (1000, 1, "a.csv")
    other = add(files, "b.csv", b"x", "evals")
    assert other.id != first.id
    assert files.all() == [other, first], "newest first"


def test_a_deleted_file_is_gone_and_can_come_back(files: Files) -> None:
    card = add(files, "a.csv", b"x", "fine-tune")
    files.delete(card.id)
    for gone in (files.get, files.path, files.delete):
        with pytest.raises(NotFound, match=card.id):
            gone(card.id)
    assert files.all() == []
    assert files.path(add(files, "a.csv", b"x", "fine-tune").id).read_bytes() == b"x"


def blobs(tmp_path: Path) -> list[bytes]:
    """All bytes that lie in the store, cards apart."""
    stored = [path.read_bytes() for path in (tmp_path / "artifacts" / "blobs").iterdir()]
    return [content for content in stored if b"created_at" not in content]


def test_a_file_lies_in_the_store_once_and_nowhere_else(files: Files, tmp_path: Path) -> None:
    add(files, "a.csv", b"some rows", "fine-tune")
    add(files, "a.csv", b"some rows", "fine-tune")
    places = [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"some rows"]
    assert [path.parent.name for path in places] == ["blobs"]
    assert places[0].stat().st_nlink == 1


def test_an_upload_that_fails_leaves_nothing(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module.Path, "open", full)
        with pytest.raises(Fatal, match=rf"disk that holds {tmp_path / 'cache'} is full"):
            add(files, "a.csv", b"x", "fine-tune")
    with pytest.raises(Invalid):
        add(files, "a.csv", b"x" * 101, "fine-tune")
    assert list(tmp_path.rglob("*.csv")) == []


def test_bytes_are_freed_when_no_file_and_no_dataset_names_them(files: Files, tmp_path: Path) -> None:
    rows = b"the same rows"
    one = add(files, "a.csv", rows, "fine-tune")
    two = add(files, "b.csv", rows, "fine-tune")
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    (dataset / "train.csv").write_bytes(rows)
    files.store.put(keys.dataset("run", "train"), dataset)
    assert 0 < files.delete(one.id) < 1000, "its card, and the list that has its name"
    assert files.path(two.id).read_bytes() == rows
    files.delete(two.id)
    assert blobs(tmp_path) == [rows], "the dataset is made of them"
    assert files.store.delete_all(keys.run("run")) > len(rows)
    assert blobs(tmp_path) == []
    assert files.path(add(files, "a.csv", rows, "fine-tune").id).read_bytes() == rows


def test_a_stored_card_says_its_form_and_the_api_does_not(files: Files, tmp_path: Path) -> None:
    card = add(files, "a.csv", b"x", "fine-tune")
    artifact = files.store.find(keys.file_card(card.id))
    assert artifact
    stored = json.loads((files.store.fetch(artifact) / "card.json").read_text())
    assert stored == {"format": "understudy.file.v1", **card.model_dump()}
    assert not hasattr(card, "format")


@pytest.mark.parametrize("more", [{}, {"format": "understudy.file.v2", "shelf": 7}])
def test_cards_of_other_versions_are_read(more: dict[str, object], files: Files, tmp_path: Path) -> None:
    about = tmp_path / "about"
    about.mkdir()
    card = {"id": "file-1", "bytes": 1, "created_at": 2, "filename": "a.csv", "purpose": "something-new", **more}
    (about / "card.json").write_text(json.dumps(card))
    files.store.put(keys.file_card("file-1"), about)
    assert [read.purpose for read in files.all()] == ["something-new"]


def test_a_card_that_cannot_be_read_is_named(files: Files, tmp_path: Path) -> None:
    about = tmp_path / "about"
    about.mkdir()
    (about / "card.json").write_text("{}")
    files.store.put(keys.file_card("file-1"), about)
    with pytest.raises(Invalid, match="card of the file `file-1` cannot be read: Field required"):
        files.get("file-1")


def test_a_file_that_is_deleted_while_they_are_listed_is_left_out(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = add(files, "a.csv", b"x", "fine-tune")
    listed = [keys.file_card("file-gone"), keys.file_card(kept.id)]
    monkeypatch.setattr(type(files.store), "keys", lambda self, prefix: listed)
    assert files.all() == [kept]


def test_a_list_reads_every_card_once(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [add(files, f"{n}.csv", b"x", "fine-tune") for n in range(20)]
    read: list[object] = []
    fetch = type(files.store).fetch

    def counted(store: FsspecArtifactStore, artifact: Artifact) -> Path:
        read.append(artifact)
        return fetch(store, artifact)

    monkeypatch.setattr(type(files.store), "fetch", counted)
    assert len(files.all()) == 20
    assert len(files.all()) == len(read) == 20
    files.delete(cards[3].id)
    assert len(files.all()) == 19


@pytest.mark.parametrize("name", ["../../secret", "file-" + "x" * 5000, "file-\0", "file-a\nb", "", "file-a/b", "."])
def test_what_is_no_id_is_no_file(files: Files, name: str) -> None:
    for asked in (files.get, files.path, files.delete):
        with pytest.raises(NotFound):
            asked(name)


def test_empty_and_large_files_are_refused(files: Files) -> None:
    with pytest.raises(Invalid, match=r"a\.csv is empty"):
        add(files, "a.csv", b"", "fine-tune")
    with pytest.raises(Invalid, match="more than the 100 bytes"):
        add(files, "a.csv", b"x" * 101, "fine-tune")


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
