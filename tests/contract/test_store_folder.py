"""The store in a folder keeps the store contract, and says what is wrong with a disk."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from store_contract import StoreContract, folder

from understudy import interrupt
from understudy.errors import Fatal, Invalid
from understudy.store import artifacts
from understudy.store import folder as store_folder
from understudy.store.artifacts import FsspecArtifactStore

Mount = Callable[..., Path]


class TestFolder(StoreContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return (tmp_path / "artifacts").as_uri()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a small disk at a folder of that name."""
    mounted: list[Path] = []

    def mount(name: str, options: str) -> Path:
        path = tmp_path / name
        path.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], capture_output=True).returncode:
            pytest.skip("mounting a small disk needs root")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_is_fatal_and_named_and_keeps_nothing_half(mount: Mount, tmp_path: Path) -> None:
    small = mount("small", "size=64k")
    store = FsspecArtifactStore(small.as_uri(), tmp_path / "cache")
    with pytest.raises(Fatal, match=rf"disk that holds {small.as_uri()} is full\. Free some space"):
        store.put("k", folder(tmp_path / "big", a="x" * 200_000))
    assert [path.name for path in small.rglob("*") if path.is_file()] == ["store.json"]
    assert store.find("k") is None


def test_a_full_cache_is_not_taken_for_a_full_store(mount: Mount, tmp_path: Path) -> None:
    cache = mount("cache", "size=64k")
    store = FsspecArtifactStore((tmp_path / "artifacts").as_uri(), cache)
    artifact = store.put("k", folder(tmp_path / "big", a="x" * 200_000))
    with pytest.raises(Fatal, match=rf"disk that holds {cache} is full"):
        store.fetch(artifact)
    assert list(cache.iterdir()) == []


def test_a_disk_that_takes_no_files_is_fatal(mount: Mount, tmp_path: Path) -> None:
    store = FsspecArtifactStore(mount("sealed", "ro").as_uri(), tmp_path / "cache")
    with pytest.raises(Fatal, match=r"cannot be used: .*Read-only file system.*Check who may write there"):
        store.put("k", folder(tmp_path / "made", a="1"))


@pytest.mark.parametrize("url", ["artifacts", "/var/artifacts", "file://artifacts", "sftp://host/artifacts", "s3:/b/p"])
def test_other_urls_are_refused_with_the_two_kinds_there_are(url: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"cannot be an artifact store\. .*file:///folder or s3://bucket/prefix"):
        FsspecArtifactStore(url, tmp_path / "cache")


def test_a_store_in_a_folder_does_not_load_what_s3_needs(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from understudy.testing import local_store\n"
        "store = local_store(Path(sys.argv[1])); store.put('k', Path(sys.argv[2])); store.keys('k')\n"
        "print([name for name in ('s3fs', 'aiobotocore', 'botocore') if name in sys.modules])"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(folder(tmp_path / "made", a="1"))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_copy_stops_between_two_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FsspecArtifactStore((tmp_path / "artifacts").as_uri(), tmp_path / "cache")
    made, stop, read = folder(tmp_path / "made"), threading.Event(), []
    (made / "large").write_bytes(b"x" * (5 * store_folder.PIECE))
    one = store.put("before", made)

    def slow_disk() -> None:
        read.append(1)
        if len(read) == 3:
            stop.set()
        interrupt.check()

    for begin in (lambda: store.put("k", made), lambda: store.fetch(one)):
        read.clear()
        stop.clear()
        with monkeypatch.context() as patched, interrupt.interruptible(stop):
            patched.setattr(store_folder, "check", slow_disk)
            with pytest.raises(interrupt.Interrupted):
                begin()
        assert len(read) == 3
    assert store.find("k") is None
    assert list((tmp_path / "cache").iterdir()) == []
    assert list((tmp_path / "artifacts").rglob("*.partial")) == []


def test_bytes_are_on_the_disk_before_they_have_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a loss of power can undo is what happened since the last flush of a file or folder."""
    root = tmp_path / "artifacts"
    store, done, flush = FsspecArtifactStore(root.as_uri(), tmp_path / "cache"), [], store_folder.flush

    def note(what: str, path: Path) -> None:
        done.append((what, path.relative_to(tmp_path).as_posix().split(".")[0]))

    def flushing(path: Path) -> None:
        note("flush", path)
        flush(path)

    def naming(how: str) -> Callable[[Path, Path], object]:
        original = getattr(Path, how)

        def name(self: Path, other: Path) -> object:
            note("name", self if how == "hardlink_to" else other)
            return original(self, other)

        return name

    for module in (store_folder, artifacts):
        monkeypatch.setattr(module, "flush", flushing)
    for how in ("replace", "rename", "hardlink_to"):
        monkeypatch.setattr(Path, how, naming(how))
    one = store.put("runs/r/plan", folder(tmp_path / "made", a="1"))
    store.fetch(one)
    for path in (f"artifacts/blobs/{hashlib.sha256(b'1').hexdigest()}", f"artifacts/manifests/{one.sha256}"):
        named = done.index(("name", path))
        assert ("flush", path) in done[:named]
        assert ("flush", path.rsplit("/", 1)[0]) in done[named : done.index(("name", "artifacts/refs/runs/r/plan"))]
    ref = done.index(("name", "artifacts/refs/runs/r/plan"))
    assert done[ref - 1] == ("flush", "artifacts/refs/runs/r/plan")
    assert done[ref + 1] == ("flush", "artifacts/refs/runs/r")
    for parent in ("", "/refs", "/refs/runs"):
        assert ("flush", f"artifacts{parent}") in done[:ref], "each new folder is in its parent for good"
    copy = done.index(("name", f"cache/{one.sha256}"))
    assert done[copy + 1] == ("flush", "cache")
    assert [what for what in done[ref + 2 : copy] if what == ("flush", "cache/")] != [], "files and folder of the copy"


def test_a_linked_draft_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FsspecArtifactStore((tmp_path / "artifacts").as_uri(), tmp_path / "cache")
    monkeypatch.setattr(store_folder, "copy", lambda *_: pytest.fail("copied"))
    with store.draft() as draft:
        store.put("k", folder(draft / "file", a="1"), linked=True)
    (blob,) = (tmp_path / "artifacts" / "blobs").iterdir()
    assert (blob.read_text(), blob.stat().st_nlink) == ("1", 1)


def test_a_draft_on_another_disk_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FsspecArtifactStore((tmp_path / "artifacts").as_uri(), tmp_path / "cache")
    with store.draft() as draft:
        made = folder(draft / "file", a="1")
        link = Path.hardlink_to

        def refused(self: Path, target: Path) -> None:
            if target == made / "a":
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            link(self, target)

        monkeypatch.setattr(Path, "hardlink_to", refused)
        one = store.put("k", made, linked=True)
    assert (store.fetch(one) / "a").read_text() == "1"


def test_a_folder_with_a_space_in_its_name_is_that_folder(tmp_path: Path) -> None:
    store = FsspecArtifactStore((tmp_path / "my data").as_uri(), tmp_path / "cache")
    store.put("k", folder(tmp_path / "made", a="1"))
    assert (tmp_path / "my data" / "refs" / "k.json").is_file()


def test_no_folder_of_a_deleted_run_stays(tmp_path: Path) -> None:
    store = FsspecArtifactStore((tmp_path / "artifacts").as_uri(), tmp_path / "cache")
    for key in ("runs/r/scores/a", "runs/r/plan", "runs/other/plan"):
        store.put(key, folder(tmp_path / "made", a="1"))
    store.delete_all("runs/r")
    assert [path.name for path in (tmp_path / "artifacts" / "refs" / "runs").iterdir()] == ["other"]
