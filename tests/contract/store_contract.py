"""What every artifact store must do. One suite; each backend's test module inherits it and brings `url`."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from understudy.errors import Fatal, Invalid, Transient
from understudy.interrupt import Interrupted, interruptible
from understudy.store import artifacts, sweep
from understudy.store import names as naming
from understudy.store.artifacts import FsspecArtifactStore
from understudy.store.place import Entry
from understudy.terms import Artifact

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


def found(url: str, kind: str) -> dict[str, int]:
    """Path and size of everything stored under blobs, manifests or refs, or under all together."""
    fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    return {path: info["size"] for path, info in fs.find(f"{root}/{kind}".rstrip("/"), detail=True).items()}


def names(url: str, kind: str) -> list[str]:
    """The names of everything stored under blobs, manifests or refs."""
    return sorted(path.rsplit("/", 1)[-1] for path in found(url, kind))


def everything(url: str) -> list[str]:
    """The names of all files of a store."""
    return names(url, "")


def size_of(url: str, kind: str) -> int:
    return sum(found(url, kind).values())


class StoreContract:
    """Inherit, and provide the fixture `url`: where an empty store may be."""

    @pytest.fixture
    def connect(self, url: str, tmp_path: Path) -> Connect:
        """Opens one more client of the same store, with a cache of that name."""
        return lambda cache: FsspecArtifactStore(url, tmp_path / "caches" / cache)

    @pytest.fixture
    def seconds(self) -> float:
        """How long threads are let loose."""
        return 3

    @pytest.fixture
    def store(self, connect: Connect) -> FsspecArtifactStore:
        return connect("cache")

    def test_the_files_of_an_artifact_are_told_without_a_copy(self, store: FsspecArtifactStore, tmp_path: Path) -> None:
        artifact = store.put("k", folder(tmp_path / "f", a="one", sub__b=""))
        listed = {path: (file.bytes, file.sha256) for path, file in store.files(artifact).items()}
        assert listed == {
            "a": (3, hashlib.sha256(b"one").hexdigest()),
            "sub/b": (0, hashlib.sha256(b"").hexdigest()),
        }
        assert not (tmp_path / "caches" / "cache" / artifact.sha256).exists()
        store.delete("k")
        with pytest.raises(Invalid, match="is not in the store"):
            store.files(artifact)

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

    def test_a_folder_that_is_gone_is_no_empty_artifact(self, store: FsspecArtifactStore, tmp_path: Path) -> None:
        """It would be found under its name for ever."""
        with pytest.raises(Transient, match="nothing to store"):
            store.put("runs/r/adapters/a", tmp_path / "removed meanwhile")
        assert store.find("runs/r/adapters/a") is None

    def test_the_digest_is_of_the_content_and_nothing_else(self, url: str, tmp_path: Path) -> None:
        one, two = (FsspecArtifactStore(f"{url}/{name}", tmp_path / "cache") for name in ("one", "two"))
        first = one.put("k", folder(tmp_path / "x", a="1", b="2"))
        second = two.put("other", folder(tmp_path / "y", b="2", a="1"))
        assert first.sha256 == second.sha256 != one.put("k2", folder(tmp_path / "z", a="1", b="3")).sha256

    def test_the_first_under_a_key_stays(self, store: FsspecArtifactStore, tmp_path: Path) -> None:
        first = store.put("k", folder(tmp_path / "x", a="1"))
        assert store.put("k", folder(tmp_path / "y", a="2")) == first
        assert contents(store.fetch(first)) == {"a": "1"}

    def test_a_deleted_key_is_free_and_its_bytes_and_local_copy_are_gone(
        self, url: str, store: FsspecArtifactStore, connect: Connect, tmp_path: Path
    ) -> None:
        first = store.put("k", folder(tmp_path / "x", a="one", b="two"))
        copy = store.fetch(first)
        size = len("one") + len("two") + size_of(url, "manifests")
        assert store.delete("k") == size
        assert store.find("k") is None
        assert not copy.exists()
        assert everything(url) == ["store.json"]
        with pytest.raises(Invalid, match=rf"{first.sha256} is not in the store {url}"):
            connect("another").fetch(first)
        assert store.put("k", folder(tmp_path / "y", a="2")) != first

    def test_deleting_what_is_not_there_is_success(self, store: FsspecArtifactStore, tmp_path: Path) -> None:
        assert store.delete() == store.delete("k", "l") == store.delete_all("runs/r") == 0
        store.put("k", folder(tmp_path / "x", a="1"))
        assert store.delete("nothing") == 0
        assert store.delete("nothing", "k") > 0
        assert store.delete("k") == 0

    def test_bytes_are_freed_with_their_last_name(self, url: str, connect: Connect, tmp_path: Path) -> None:
        store, other = connect("one"), connect("other")
        same = folder(tmp_path / "same", a="shared")
        more = folder(tmp_path / "more", a="shared", b="own")
        first, second = store.put("same/1", same), other.put("more", more)
        store.put("same/2", same)
        copy = store.fetch(first)
        assert store.delete("same/1") == 0
        assert contents(copy) == {"a": "shared"}, "it has a name, so the copy stays"
        assert store.delete("same/2") > 0, "the manifest"
        assert contents(connect("elsewhere").fetch(second)) == {"a": "shared", "b": "own"}
        assert len(names(url, "blobs")) == 2
        size = size_of(url, "blobs") + size_of(url, "manifests")
        assert store.delete("more") == size
        assert everything(url) == ["store.json"]

    def test_everything_below_a_prefix_goes_and_nothing_beside_it(
        self, url: str, store: FsspecArtifactStore, tmp_path: Path
    ) -> None:
        for key in ("runs/r/plan", "runs/r/scores/a/deeper", "runs/r/scores/a", "runs/r2/plan", "runs/r", "files/r"):
            store.put(key, folder(tmp_path / key.replace("/", "-"), a=key))
        assert store.delete_all("runs/r") > 0
        assert names(url, "refs") == ["plan.json", "r.json", "r.json"]
        assert store.keys("runs/r2") == ["runs/r2/plan"]
        assert len(names(url, "blobs")) == len(names(url, "manifests")) == 3
        assert store.delete_all("runs/r") == 0

    def test_a_delete_just_before_the_name_is_made_good(
        self, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writer, deleter = connect("writer"), connect("deleter")
        made = folder(tmp_path / "made", a="1", b="2")
        deleter.put("old", made)
        create = writer.place.create

        def late(path: str, content: bytes) -> None:
            assert deleter.delete("old") > 0, "the bytes that were found a moment ago"
            create(path, content)

        monkeypatch.setattr(writer.place, "create", late)
        assert contents(connect("reader").fetch(writer.put("new", made))) == contents(made)

    def test_a_name_made_while_its_bytes_are_removed_gets_them_again(
        self, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writer, deleter = connect("writer"), connect("deleter")
        made = folder(tmp_path / "made", a="1", b="2")
        deleter.put("old", made)
        entries = deleter.place.entries
        with ThreadPoolExecutor(1) as putting:
            put = []

            def slow(paths: Iterable[str]) -> dict[str, Entry]:
                """Called when it is known that nothing names the bytes, and just before they go."""
                paths = list(paths)
                if any(path.startswith("blobs/") for path in paths):
                    put.append(putting.submit(writer.put, "new", made))
                    while not writer.find("new"):
                        time.sleep(0.02)
                    time.sleep(0.5)  # so that the writer looks whether all is there, and it still is
                return entries(paths)

            monkeypatch.setattr(deleter.place, "entries", slow)
            assert deleter.delete("old") > 0
            artifact = put[0].result(30)
        assert contents(connect("reader").fetch(artifact)) == contents(made)

    def test_a_removal_that_was_killed_holds_up_no_one_for_long(
        self, store: FsspecArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = folder(tmp_path / "made", a="1")
        blob = f"blobs/{hashlib.sha256(b'1').hexdigest()}"
        monkeypatch.setattr(naming, "NOTICE_SECONDS", 1.5)
        store.put("before", folder(tmp_path / "other", a="2"))
        store.place.write("deleting/0.json", json.dumps([blob]).encode())
        began = time.monotonic()
        store.put("unrelated", folder(tmp_path / "unrelated", a="3"))
        unrelated = time.monotonic() - began
        store.put("k", made)
        assert 1 < time.monotonic() - began < 10
        assert unrelated < 1

    def test_threads_that_put_delete_and_fetch_leave_no_name_without_its_bytes(
        self, url: str, connect: Connect, tmp_path: Path, seconds: float
    ) -> None:
        made = [folder(tmp_path / str(n), same="shared", own=str(n % 2), third=str(n % 3)) for n in range(4)]
        stores, until = [connect(name) for name in "abcd"], time.monotonic() + seconds

        def life(number: int) -> None:
            choose, store, turns = random.Random(number), stores[number % len(stores)], 0
            while turns < 2 or time.monotonic() < until:  # a busy machine gets its turns too
                turns += 1
                key = f"runs/{choose.randrange(2)}/{choose.randrange(3)}"
                match choose.randrange(5):
                    case 0 | 1:
                        store.put(key, choose.choice(made))
                    case 2:
                        store.delete(key)
                    case 3:
                        store.delete_all(f"runs/{choose.randrange(2)}")
                    case _:
                        if found := store.find(key):
                            try:
                                store.fetch(found)
                            except Invalid:
                                pass  # deleted meanwhile

        with ThreadPoolExecutor(6) as lives:
            list(lives.map(life, range(6)))
        fresh = connect("fresh")
        kept = [key for run in "01" for key in fresh.keys(f"runs/{run}")]
        for key in kept:
            found = fresh.find(key)
            assert found
            assert contents(fresh.fetch(found))["same"] == "shared"
        named = fresh.names.reached([entry.path for entry in fresh.names.refs()])
        sweep.remove_unnamed(fresh, sweep.find_unnamed(fresh, 0), 0)
        assert {f"{kind}/{name}" for kind in ("blobs", "manifests") for name in names(url, kind)} == named
        assert not names(url, "deleting")

    def test_a_blob_cut_short_is_noticed_and_written_again(
        self, url: str, store: FsspecArtifactStore, connect: Connect, tmp_path: Path
    ) -> None:
        made = folder(tmp_path / "made", a="a long text")
        artifact = store.put("k", made)
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        (blob,) = fs.find(f"{root}/blobs")
        fs.pipe_file(blob, b"a long")
        with pytest.raises(Invalid, match=rf"Blob .* in {url} does not match"):
            connect("one").fetch(artifact)
        assert store.put("k", made) == artifact
        assert contents(connect("two").fetch(artifact)) == contents(made)

    def test_a_store_is_marked_with_the_first_put_and_never_before(
        self, url: str, store: FsspecArtifactStore, tmp_path: Path
    ) -> None:
        assert (store.find("k"), store.keys("runs")) == (None, [])
        store.check()
        assert everything(url) == []
        store.put("k", folder(tmp_path / "made", a="1"))
        assert json.loads(store.place.read("store.json")) == {"format": "understudy.store.v2"}

    def test_a_store_without_a_marker_is_from_before_and_refused(
        self, url: str, connect: Connect, tmp_path: Path
    ) -> None:
        connect("old").place.write("refs/files/x.json", b'{"uri": "x", "sha256": "y"}')
        store = connect("new")
        for call in (
            store.check,
            lambda: store.find("k"),
            lambda: store.keys("files"),
            lambda: store.delete("files/x"),
            lambda: store.delete_all("files"),
            lambda: store.put("k", folder(tmp_path / "made", a="1")),
            lambda: store.fetch(artifact()),
            lambda: sweep.find_unnamed(store),
        ):
            with pytest.raises(Fatal, match=rf"{url} was written by .* before version 0\.2\. Choose another one with"):
                call()
        assert everything(url) == ["x.json"]

    @pytest.mark.parametrize(
        ("marker", "says"),
        [
            ('{"format": "understudy.store.v3"}', "was written by a newer Understudy: it is understudy.store.v3"),
            ('{"format": "understudy.store.v1"}', "was written by an older Understudy"),
            ('{"format": "something.v2"}', "does not say in which form"),
            ("", "does not say in which form"),
        ],
    )
    def test_a_store_of_another_form_is_refused(self, marker: str, says: str, connect: Connect, tmp_path: Path) -> None:
        connect("other").place.write("store.json", marker.encode())
        with pytest.raises(Fatal, match=says):
            connect("find").find("k")
        with pytest.raises(Fatal, match=says):
            connect("put").put("k", folder(tmp_path / "made", a="1"))

    def test_a_newer_client_that_marks_the_store_first_is_noticed(
        self, connect: Connect, store: FsspecArtifactStore, tmp_path: Path
    ) -> None:
        store.check()
        connect("newer").place.write("store.json", b'{"format": "understudy.store.v3"}')
        with pytest.raises(Fatal, match="newer"):
            store.put("k", folder(tmp_path / "made", a="1"))

    def test_a_put_that_shall_stop_names_nothing(self, url: str, store: FsspecArtifactStore, tmp_path: Path) -> None:
        made, stop = folder(tmp_path / "made", **{str(number): str(number) for number in range(3)}), threading.Event()
        stop.set()
        with interruptible(stop), pytest.raises(Interrupted):
            store.put("k", made)
        assert names(url, "refs") == []
        assert store.find("k") is None
        assert contents(store.fetch(store.put("k", made))) == contents(made)

    def test_a_fetch_that_shall_stop_leaves_no_copy(self, store: FsspecArtifactStore, tmp_path: Path) -> None:
        one, stop = store.put("k", folder(tmp_path / "made", a="1", b="2")), threading.Event()
        stop.set()
        with interruptible(stop), pytest.raises(Interrupted):
            store.fetch(one)
        assert list((tmp_path / "caches" / "cache").glob("*")) == []
        assert contents(store.fetch(one)) == {"a": "1", "b": "2"}

    def test_a_draft_becomes_an_artifact_that_outlives_it(self, store: FsspecArtifactStore, tmp_path: Path) -> None:
        with store.draft() as draft:
            one = store.put("k", folder(draft / "file", a="1"), linked=True)
        assert not draft.exists()
        assert contents(store.fetch(one)) == {"a": "1"}

    def test_what_is_found_again_is_young_again(
        self, store: FsspecArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(artifacts, "GRACE_SECONDS", 2.0)
        one = store.put("k", folder(tmp_path / "made", a="1"))
        time.sleep(2.2)  # S3 tells whole seconds
        assert len(sweep.find_unnamed(store, 1, ["k"])) == 0
        store.put("again", folder(tmp_path / "made", a="1"))
        assert [entry.path for entry in store.place.below("blobs") if time.time() - entry.changed > 2] == []
        assert contents(store.fetch(one)) == {"a": "1"}

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
