"""What every artifact store must do. One suite; each backend's test module inherits it and brings `url`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from understudy.belt.contracts import Artifact
from understudy.errors import Invalid
from understudy.store.artifacts import FsspecArtifactStore

Connect = Callable[[str], FsspecArtifactStore]

WRITER = """
import sys; from pathlib import Path
from understudy.store.artifacts import FsspecArtifactStore
url, cache, folder = sys.argv[1:]
store = FsspecArtifactStore(url, Path(cache)); store.find("k"); print("ready", flush=True)
store.put("k", Path(folder))
"""
"""Puts a folder under the key `k`, to be killed meanwhile."""

RACER = """
import sys, time; from pathlib import Path
from understudy.store.artifacts import FsspecArtifactStore
url, cache, folder, rounds = sys.argv[1:]
store = FsspecArtifactStore(url, Path(cache)); store.find("k"); print("ready", flush=True)
start = float(sys.stdin.readline())
for number in range(int(rounds)):
    time.sleep(max(0, start + number * 0.02 - time.time()))  # all racers at the same moment
    print(store.put(f"race/{number}", Path(folder)).sha256, flush=True)
"""
"""Puts its folder under one key after the other and says which artifact it was told is there."""


def folder(path: Path, **files: str) -> Path:
    for name, content in files.items():
        (path / name.replace("__", "/")).parent.mkdir(parents=True, exist_ok=True)
        (path / name.replace("__", "/")).write_text(content)
    path.mkdir(exist_ok=True)
    return path


def contents(path: Path) -> dict[str, str]:
    return {p.relative_to(path).as_posix(): p.read_text() for p in path.rglob("*") if p.is_file()}


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs `script`, once it says that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def names(url: str, kind: str) -> list[str]:
    """The names of everything stored under blobs, manifests or refs."""
    fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    return sorted(path.rsplit("/", 1)[-1] for path in fs.find(f"{root}/{kind}"))


class StoreContract:
    """Inherit, and provide the fixture `url`: where an empty store may be."""

    @pytest.fixture
    def connect(self, url: str, tmp_path: Path) -> Connect:
        """Opens one more client of the same store, with a cache of that name."""
        return lambda cache: FsspecArtifactStore(url, tmp_path / "caches" / cache)

    @pytest.fixture
    def store(self, connect: Connect) -> FsspecArtifactStore:
        return connect("cache")

    def test_what_was_put_is_found_and_fetched(
        self, store: FsspecArtifactStore, connect: Connect, tmp_path: Path
    ) -> None:
        made = folder(tmp_path / "made", a="1", sub__b="2", empty="")
        assert store.find("runs/r/x") is None
        artifact = store.put("runs/r/x", made)
        assert store.find("runs/r/x") == artifact
        assert contents(store.fetch(artifact)) == {"a": "1", "sub/b": "2", "empty": ""}
        assert contents(connect("elsewhere").fetch(artifact)) == contents(made)

    def test_an_empty_folder_is_an_artifact_too(self, store: FsspecArtifactStore, tmp_path: Path) -> None:
        assert contents(store.fetch(store.put("nothing", folder(tmp_path / "made")))) == {}

    def test_the_digest_is_of_the_content_and_nothing_else(self, url: str, tmp_path: Path) -> None:
        one, two = (FsspecArtifactStore(f"{url}/{name}", tmp_path / "cache") for name in ("one", "two"))
        first = one.put("k", folder(tmp_path / "x", a="1", b="2"))
        second = two.put("other", folder(tmp_path / "y", b="2", a="1"))
        assert first.sha256 == second.sha256 != one.put("k2", folder(tmp_path / "z", a="1", b="3")).sha256

    def test_the_first_under_a_key_stays(self, store: FsspecArtifactStore, tmp_path: Path) -> None:
        first = store.put("k", folder(tmp_path / "x", a="1"))
        assert store.put("k", folder(tmp_path / "y", a="2")) == first
        assert contents(store.fetch(first)) == {"a": "1"}

    def test_a_dropped_key_is_free_and_its_bytes_stay(self, store: FsspecArtifactStore, tmp_path: Path) -> None:
        first = store.put("k", folder(tmp_path / "x", a="1"))
        store.drop("k")
        store.drop("k")
        assert store.find("k") is None
        assert store.put("k", folder(tmp_path / "y", a="2")) != first
        assert contents(store.fetch(first)) == {"a": "1"}

    def test_keys_are_the_names_directly_under_a_prefix(self, store: FsspecArtifactStore, tmp_path: Path) -> None:
        made = folder(tmp_path / "made", a="1")
        assert store.keys("runs/r/scores") == []
        for key in ("runs/r/scores/b", "runs/r/scores/a.1", "runs/r/scores/a/deeper", "runs/r/report"):
            store.put(key, made)
        assert store.keys("runs/r/scores") == ["runs/r/scores/a.1", "runs/r/scores/b"]

    def test_what_one_client_does_another_sees_at_once(self, connect: Connect, tmp_path: Path) -> None:
        writer, reader = connect("writer"), connect("reader")
        made = folder(tmp_path / "made", a="1")
        writer.put("files/one", made)
        assert (reader.keys("files"), reader.find("files/two")) == (["files/one"], None)
        two = writer.put("files/two", made)
        assert (reader.keys("files"), reader.find("files/two")) == (["files/one", "files/two"], two)
        writer.delete("files/one")
        assert (reader.keys("files"), reader.find("files/one")) == (["files/two"], None)

    def test_concurrent_writers_of_one_artifact_agree(self, url: str, connect: Connect, tmp_path: Path) -> None:
        made = folder(tmp_path / "made", **{f"f{i}": str(i) * 1000 for i in range(6)})
        with ThreadPoolExecutor(4) as writers:
            got = list(writers.map(lambda number: connect(str(number)).put("k", made), range(4)))
        assert len({artifact.sha256 for artifact in got}) == 1
        assert contents(connect("cache").fetch(got[0])) == contents(made)
        assert not [name for name in names(url, "blobs") + names(url, "refs") if name.endswith("partial")]

    def test_of_several_processes_that_claim_one_key_the_first_wins_and_all_get_the_winner(
        self, url: str, store: FsspecArtifactStore, tmp_path: Path
    ) -> None:
        rounds, racers = 15, []
        for name in "abcd":
            made = folder(tmp_path / name, who=name)
            racers.append(start(RACER, url, tmp_path / "caches" / name, made, rounds))
        begin = time.time() + 0.2
        for racer in racers:
            assert racer.stdin
            racer.stdin.write(f"{begin}\n")
            racer.stdin.flush()
        told = [racer.communicate(timeout=60)[0].split() for racer in racers]
        for number in range(rounds):
            stays = store.find(f"race/{number}")
            assert stays
            assert {answers[number] for answers in told} == {stays.sha256}, f"round {number}"

    def test_eight_threads_that_fetch_one_artifact_share_one_copy(self, connect: Connect, tmp_path: Path) -> None:
        made = folder(tmp_path / "made", **{f"f{i}": str(i) * 1000 for i in range(10)})
        artifact = connect("writer").put("k", made)
        store, together = connect("shared"), threading.Barrier(8)

        def fetch(_: int) -> Path:
            together.wait(10)
            return store.fetch(artifact)

        with ThreadPoolExecutor(8) as readers:
            (copy,) = set(readers.map(fetch, range(8)))
        assert contents(copy) == contents(made)
        assert list((tmp_path / "caches" / "shared").iterdir()) == [copy]

    def test_damage_and_loss_are_noticed_and_leave_no_copy(
        self, url: str, store: FsspecArtifactStore, tmp_path: Path
    ) -> None:
        artifact = store.put("k", folder(tmp_path / "x", a="1", b="2"))
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        for blob in fs.find(f"{root}/blobs"):
            fs.pipe_file(blob, b"3")
        with pytest.raises(Invalid, match="does not match its digest"):
            store.fetch(artifact)
        for kind in ("blobs", "manifests"):
            fs.rm(f"{root}/{kind}", recursive=True)
            with pytest.raises(Invalid, match="is not in the store"):
                store.fetch(artifact)
        assert not list((tmp_path / "caches" / "cache").glob("*"))

    def test_a_key_cannot_leave_the_store(self, store: FsspecArtifactStore) -> None:
        with pytest.raises(Invalid, match="cannot name an artifact"):
            store.find("../../etc/passwd")

    def test_kill_9_while_putting_leaves_nothing_half_and_the_next_put_completes(
        self, url: str, store: FsspecArtifactStore, tmp_path: Path
    ) -> None:
        made = folder(tmp_path / "made", **{f"f{i}": str(i) * 20000 for i in range(40)})
        for delay in (0.0, 0.02, 0.06):
            writer = start(WRITER, url, tmp_path / "caches" / "killed", made)
            time.sleep(delay)
            os.kill(writer.pid, signal.SIGKILL)
            writer.communicate()
            if found := store.find("k"):
                assert contents(store.fetch(found)) == contents(made)
        assert contents(store.fetch(store.put("k", made))) == contents(made)


def artifact(digest: str = "0" * 64) -> Artifact:
    """One that no store has."""
    return Artifact(sha256=digest)
