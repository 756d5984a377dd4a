"""Folders that an engine can read an adapter from at any time, whatever becomes of the store's copy."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.inference.shelf import GRACE, Shelf
from understudy.errors import Invalid
from understudy.store.artifacts import FsspecArtifactStore
from understudy.terms import Artifact


@pytest.fixture
def shelf(tmp_path: Path, store: FsspecArtifactStore) -> Shelf:
    return Shelf(tmp_path / "served", store)


def test_an_adapter_stays_when_the_store_has_removed_it(
    shelf: Shelf, store: FsspecArtifactStore, put: Callable[..., Artifact]
) -> None:
    adapter = put("one")
    folder = shelf.put(adapter)
    copy = store.fetch(adapter)
    assert (folder / "adapter_config").samefile(copy / "adapter_config"), "no second copy of the bytes"
    store.delete("adapters/one")
    assert not copy.exists()
    assert (folder / "adapter_config").read_text() == "one"
    assert shelf.put(adapter) == folder, "asked again, it need not be fetched"
    with pytest.raises(Invalid, match="is not in the store"):
        shelf.put(Artifact(sha256="0" * 64))


def test_where_there_are_no_links_the_bytes_are_copied(
    shelf: Shelf, put: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: str, target: str) -> None:
        raise OSError(18, "Invalid cross-device link")

    adapter = put("one")
    monkeypatch.setattr(os, "link", link)
    assert (shelf.put(adapter) / "adapter_config").read_text() == "one"


def test_many_at_once_get_one_folder(shelf: Shelf, put: Callable[..., Artifact], tmp_path: Path) -> None:
    adapter, found = put("one"), []
    threads = [threading.Thread(target=lambda: found.append(shelf.put(adapter))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert [path.name for path in (tmp_path / "served").iterdir()] == [adapter.sha256], "and nothing half made"


def test_what_nobody_wants_goes_after_a_while(shelf: Shelf, put: Callable[..., Artifact]) -> None:
    kept, old, fresh = (shelf.put(put(name)) for name in ("kept", "old", "fresh"))
    half = old.with_name(".half.1234")
    half.mkdir()
    for folder in (kept, old, half):
        os.utime(folder, (time.time() - GRACE - 5,) * 2)
    shelf.tidy({kept.name})
    assert [folder.exists() for folder in (kept, old, fresh, half)] == [True, False, True, False]
