"""The folder that engines read adapters from: whole or absent under a model's name, whatever becomes of the store's copy."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.inference import folder as module
from services.inference.folder import GRACE, Folder, model_name
from understudy.errors import Fatal, Invalid, Transient
from understudy.store.artifacts import FsspecArtifactStore
from understudy.terms import Artifact

Put = Callable[..., Artifact]
NAME = "ft:tiny:films:v:01234567"


@pytest.fixture
def folder(tmp_path: Path, store: FsspecArtifactStore) -> Folder:
    return Folder(tmp_path / "served", store)


@pytest.fixture
def served(tmp_path: Path) -> Callable[[], set[str]]:
    """What an engine would find."""
    return lambda: {
        str(path.parent.relative_to(tmp_path / "served")) for path in tmp_path.glob("served/**/adapter_config.json")
    }


def test_an_adapter_stays_when_the_store_has_removed_it(folder: Folder, store: FsspecArtifactStore, put: Put) -> None:
    adapter = put("one")
    folder.put(NAME, adapter)
    copy = store.fetch(adapter)
    assert (folder.path(NAME) / "adapter_config.json").samefile(copy / "adapter_config.json"), (
        "no second copy of the bytes"
    )
    store.delete("adapters/one")
    assert not copy.exists()
    assert (folder.path(NAME) / "adapter_config.json").read_text() == "one"
    folder.put(NAME, adapter)  # asked for again, it need not be fetched
    with pytest.raises(Invalid, match="is not in the store"):
        folder.put("ft:other", Artifact(sha256="0" * 64))


def test_where_there_are_no_links_the_bytes_are_copied(
    folder: Folder, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    adapter = put("one")
    monkeypatch.setattr(Path, "hardlink_to", link)
    folder.put(NAME, adapter)
    assert (folder.path(NAME) / "adapter_config.json").read_text() == "one"


def test_a_full_disk_is_said_so(folder: Folder, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    adapter = put("one")
    monkeypatch.setattr(Path, "hardlink_to", full)
    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(Fatal, match="is full"):
        folder.attempt(adapter)


def test_what_is_tried_has_its_name_only_when_it_has_passed(
    folder: Folder, put: Put, served: Callable[[], set[str]]
) -> None:
    adapter = put("one")
    first, second = folder.attempt(adapter), folder.attempt(adapter)
    assert served() == {first, second}
    folder.settle(first, NAME)
    folder.settle(second, NAME)  # tried twice, by two replicas: the second one goes with time
    assert served() == {NAME, second}
    with pytest.raises(Transient, match="cannot be made"):
        folder.settle("nothing", "ft:other")


def test_many_at_once_get_one_folder(folder: Folder, put: Put, served: Callable[[], set[str]]) -> None:
    adapter, name = put("one"), "ft:owner/tiny:films:v:01234567"
    threads = [threading.Thread(target=folder.put, args=(name, adapter)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert name in served()
    assert all(each == name or each.startswith(".gate/") for each in served())


@pytest.mark.parametrize("name", ["../outside", "a/../../b", "", "a//b", "/etc", "."])
def test_no_name_leads_out_of_the_folder(folder: Folder, put: Put, name: str) -> None:
    with pytest.raises(Invalid, match="cannot be the name"):
        folder.put(name, put("one"))


def test_what_nobody_wants_is_unloaded_and_goes_after_a_while(
    folder: Folder, put: Put, served: Callable[[], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, old, deep, fresh = "ft:kept", "ft:old", "ft:owner/deep", "ft:fresh"
    for name in (kept, old, deep, fresh):
        folder.put(name, put(name.replace("/", "-")))
    broken = folder.attempt(put("broken"))
    for name in (kept, old, deep, broken):
        os.utime(folder.path(name), (time.time() - GRACE - 5,) * 2)
    unloaded: list[str] = []
    folder.retire({kept}, unloaded.append)
    assert sorted(unloaded) == sorted([old, deep, broken])
    assert served() == {kept, old, deep, fresh, broken}, "a request for it may be on its way"
    clock = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: clock + GRACE + 1)
    folder.put(old, put("again"))
    folder.retire({kept}, unloaded.append)
    assert served() == {kept, old, fresh}, "what was asked for meanwhile stays"


def test_what_an_engine_cannot_forget_stays(folder: Folder, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    def unload(name: str) -> None:
        raise Transient("The engine did not answer")

    monkeypatch.setattr(module, "GRACE", -1.0)
    folder.put(NAME, put("one"))
    for _ in range(2):
        folder.retire((), unload)
    assert folder.path(NAME).is_dir()
    folder.retire((), lambda name: None)
    assert not folder.path(NAME).exists()


def test_a_name_is_tied_to_the_content_safe_in_urls_and_short_enough_for_a_folder() -> None:
    adapter = Artifact(sha256="0123456789abcdef" * 4)
    assert model_name("owner/ba se", "films", "v.seed17@ba", adapter) == "ft:owner/ba-se:films:v.seed17@ba:01234567"
    assert len(model_name("b" * 255, "r" * 64, "i" * 200, adapter)) < 255


@pytest.fixture
def long_after(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Retire what was put here long ago and is not among these; what was unloaded."""

    def long_after(*wanted: str) -> list[str]:
        unloaded: list[str] = []
        for path in folder.path("x").parent.rglob("*"):
            if os.access(path, os.R_OK):
                os.utime(path, (0, 0))
        folder.retire(wanted, unloaded.append)
        clock = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: clock() + GRACE + 1)
        folder.retire(wanted, unloaded.append)
        return unloaded

    return long_after


def test_a_stray_file_beside_adapters_makes_no_adapter_of_their_folder(
    folder: Folder, put: Put, served: Callable[[], set[str]], long_after: Callable[..., list[str]]
) -> None:
    kept, old = "ft:owner/tiny:films:v:01234567", "ft:owner/tiny:films:w:01234567"
    for name in (kept, old):
        folder.put(name, put(name.replace("/", "-")))
    (folder.path("ft:owner") / ".DS_Store").touch()
    assert set(long_after(kept)) == {old}
    assert served() == {kept}


def test_what_was_not_put_here_is_left_alone(
    folder: Folder, put: Put, tmp_path: Path, long_after: Callable[..., list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    folder.put("ft:old", put("old"))
    others = [tmp_path / "served" / name for name in ("lost+found", "mine", "empty")]
    for other in others:
        other.mkdir()
    (others[1] / "adapter_config.json").write_text("somebody's own")
    assert set(long_after()) == {"ft:old"}
    assert all(other.is_dir() for other in others)
    assert (others[1] / "adapter_config.json").exists()
    assert not folder.path("ft:old").exists()


def test_what_cannot_be_read_is_skipped_with_one_warning(
    folder: Folder, put: Put, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder.put("ft:one", put("one"))
    folder.put("ft:owner/two", put("two"))
    scan = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "ft:owner":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [*folder._names()] == [*folder._names()] == ["ft:one"]
    (said,) = caplog.messages
    assert said.endswith("ft:owner is skipped: Permission denied")


def test_what_a_killed_removal_left_goes(folder: Folder, long_after: Callable[..., list[str]]) -> None:
    left = [folder.path(name) for name in (".ft:tiny:v.0123abcd", "ft:owner/.tiny:v.0123abcd", ".gate/0123.4567")]
    for each in left:
        each.mkdir(parents=True)
    long_after()
    assert not [each for each in left if each.exists()]


def test_one_that_passes_again_is_as_new(
    folder: Folder, put: Put, long_after: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its second announcement is read nobody wants it: the run that served it first was deleted."""
    adapter = put("one")
    folder.put(NAME, adapter)
    os.utime(folder.path(NAME), (0, 0))
    folder.retire((), lambda name: None)
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + GRACE + 1)
    slow = folder.attempt(adapter)
    os.utime(folder.path(slow), (0, 0))
    folder.settle(slow, NAME)
    folder.retire((), lambda name: None)
    assert folder.has(NAME)
    folder.settle(folder.attempt(adapter), "ft:other")
    os.utime(folder.path(slow := folder.attempt(adapter)), (0, 0))
    folder.settle(slow, "ft:new")
    assert time.time() - folder.path("ft:new").stat().st_mtime < GRACE, "however long it was tried"


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_a_local_copy_that_is_removed_meanwhile_makes_no_adapter(
    folder: Folder, store: FsspecArtifactStore, put: Put, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    adapter, fetch = put("one"), store.fetch

    def removed(artifact: Artifact) -> Path:
        copy = fetch(artifact)
        if damage == "gone":
            shutil.rmtree(copy)
        else:
            (copy / "adapter_config.json").unlink()
            (copy / "adapter_config.json").write_text("")
        return copy

    with monkeypatch.context() as patch:
        patch.setattr(store, "fetch", removed)
        with pytest.raises(Transient):
            folder.put(NAME, adapter)
    assert not folder.path(NAME).exists()
    shutil.rmtree(store.fetch(adapter))
    folder.put(NAME, adapter)
    assert (folder.path(NAME) / "adapter_config.json").read_text() == "one"
