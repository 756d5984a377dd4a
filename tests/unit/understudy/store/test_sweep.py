"""What nobody needs is found and goes, and what somebody uses stays, also when that changes between finding and removing."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from understudy.store.artifacts import FsspecArtifactStore
from understudy.store.sweep import (
    Found,
    find_cached,
    find_unnamed,
    old_work,
    remove_unnamed,
    remove_work,
    shrink_cache,
)
from understudy.testing import local_store

HOUR = 3600.0


@pytest.fixture
def store(tmp_path: Path) -> FsspecArtifactStore:
    return local_store(tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


def folder(path: Path, **files: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).write_text(content)
    return path


def age(path: Path, seconds: float) -> None:
    """Make every file below `path` so old."""
    for each in [path, *path.rglob("*")]:
        os.utime(each, (time.time() - seconds,) * 2)


def below(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def orphan(store: FsspecArtifactStore, root: Path, made: Path) -> None:
    """Bytes without a name, as a kill between the two leaves them."""
    store.put("runs/killed/plan", made)
    (root / "refs/runs/killed/plan.json").unlink()


def test_bytes_without_a_name_go_once_they_are_old(store: FsspecArtifactStore, root: Path, tmp_path: Path) -> None:
    kept = store.put("runs/r/plan", folder(tmp_path / "kept", a="1", b="both"))
    orphan(store, root, folder(tmp_path / "lost", a="lost", b="both"))
    assert find_unnamed(store, HOUR) == []
    age(root, 2 * HOUR)
    found = find_unnamed(store, HOUR)
    assert [each.path.split("/")[0] for each in found] == ["blobs", "manifests"]
    assert (found[0].bytes, round(found[0].age / HOUR)) == (len("lost"), 2)
    assert remove_unnamed(store, found, HOUR) == sum(each.bytes for each in found)
    assert find_unnamed(store, 0) == []
    assert sorted(path.name for path in store.fetch(kept).iterdir()) == ["a", "b"]


def test_what_is_put_between_finding_and_removing_stays(store: FsspecArtifactStore, root: Path, tmp_path: Path) -> None:
    made = folder(tmp_path / "made", a="1")
    orphan(store, root, made)
    age(root, 2 * HOUR)
    found = find_unnamed(store, HOUR)
    one = store.put("runs/r/plan", made)
    age(root, 2 * HOUR)  # old again: only its name protects it
    assert remove_unnamed(store, found, HOUR) == 0
    assert (store.fetch(one) / "a").read_text() == "1"


def test_what_a_put_that_is_under_way_has_found_stays(store: FsspecArtifactStore, root: Path, tmp_path: Path) -> None:
    made = folder(tmp_path / "made", a="1")
    orphan(store, root, made)
    age(root, 2 * HOUR)
    found = find_unnamed(store, HOUR)
    orphan(store, root, made)  # put again, and its name not there yet
    assert remove_unnamed(store, found, HOUR) == 0
    assert len(below(root / "blobs")) == 1


def test_names_of_deleted_runs_go_with_their_bytes(store: FsspecArtifactStore, root: Path, tmp_path: Path) -> None:
    store.put("runs/gone/scores/a", folder(tmp_path / "one", a="only here"))
    store.put("runs/gone/plan", folder(tmp_path / "two", a="there too"))
    store.put("runs/gone2/plan", folder(tmp_path / "two", a="there too"))
    age(root, 2 * HOUR)
    store.put("runs/gone/late", folder(tmp_path / "late", a="young"))
    found = find_unnamed(store, HOUR, deleted_runs=["gone"])
    assert {each.path for each in found if each.path.startswith("refs/")} == {
        "refs/runs/gone/scores/a.json",
        "refs/runs/gone/plan.json",
    }
    assert find_unnamed(store, HOUR) == []
    remove_unnamed(store, found, HOUR)
    assert below(root / "refs") == ["runs/gone/late.json", "runs/gone2/plan.json"]
    assert sorted(path.read_text() for path in (root / "blobs").iterdir()) == ["there too", "young"]


def test_halves_and_notices_that_kills_left_go_once_they_are_old(
    store: FsspecArtifactStore, root: Path, tmp_path: Path
) -> None:
    store.put("k", folder(tmp_path / "made", a="1"))
    before = below(root)
    for name in ("blobs/x.1.partial", "refs/runs/r/y.json.2.partial", "manifests/z.json.3.partial", "deleting/4.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("[]")
    remove_unnamed(store, find_unnamed(store, HOUR), HOUR)
    assert len(below(root)) == len(before) + 4
    age(root, 2 * HOUR)
    assert remove_unnamed(store, find_unnamed(store, HOUR), HOUR) == 8
    assert below(root) == before


def copies(cache: Path, **ages: float) -> None:
    """Local copies of ten bytes, each used so many seconds ago."""
    for name, seconds in ages.items():
        folder(cache / name, a="x" * 10)
        os.utime(cache / name, (time.time() - seconds,) * 2)


def test_local_copies_go_in_the_order_of_their_last_use(tmp_path: Path) -> None:
    copies(tmp_path, oldest=5 * HOUR, older=4 * HOUR, old=3 * HOUR, used=60)
    assert [Path(each.path).name for each in find_cached(tmp_path, 25)] == ["oldest", "older"]
    assert shrink_cache(tmp_path, 25) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "used"]
    assert shrink_cache(tmp_path, 25) == 0
    assert shrink_cache(tmp_path, 0) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["used"], "it may be in use, whatever the bound"
    assert shrink_cache(tmp_path / "none", 0) == 0


def test_a_fetch_counts_as_use(store: FsspecArtifactStore, tmp_path: Path) -> None:
    one = store.put("k", folder(tmp_path / "made", a="1"))
    copy = store.fetch(one)
    os.utime(copy, (0, 0))
    assert len(find_cached(tmp_path / "cache", 0)) == 1
    store.fetch(one)
    assert find_cached(tmp_path / "cache", 0) == []


def test_a_copy_that_is_fetched_while_it_is_removed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies(tmp_path, one=5 * HOUR)
    rename = Path.rename

    def just_before(self: Path, target: Path) -> Path:
        os.utime(self)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", just_before)
    assert shrink_cache(tmp_path, 0) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_drafts_and_halves_in_the_cache_go_when_nobody_writes_them_any_more(tmp_path: Path) -> None:
    copies(tmp_path, kept=5 * HOUR)
    (tmp_path / "kept").rename(tmp_path / "0")
    folder(tmp_path / ".draft.1", a="x")
    os.utime(tmp_path / ".draft.1", (0, 0))
    assert find_cached(tmp_path, 100, idle_seconds=0.5) == [], "its file is young"
    time.sleep(0.6)
    assert shrink_cache(tmp_path, 100, idle_seconds=0.5) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def unit(work: Path, name: str) -> Path:
    return folder(work / "trainer" / "a" / "run" / name / "checkpoints", rows="12345").parent


def test_work_that_nothing_touched_for_long_goes_and_other_work_stays(tmp_path: Path) -> None:
    left, going_on = unit(tmp_path, "left"), unit(tmp_path, "going-on")
    assert old_work(tmp_path, 0.5) == []
    time.sleep(0.6)
    (going_on / "checkpoints" / "rows").write_text("more")
    (found,) = old_work(tmp_path, 0.5)
    assert (found.path, found.bytes) == (str(left), 5)
    assert remove_work([found], 0.5) == 5
    assert [path.name for path in left.parent.iterdir()] == ["going-on"]


def test_work_that_is_taken_up_between_finding_and_removing_stays(tmp_path: Path) -> None:
    left = unit(tmp_path, "left")
    found = [Found(str(left), 5, 100.0)]
    time.sleep(0.6)
    (left / "log").write_text("on")
    assert remove_work(found, 0.5) == 0
    assert (left / "log").exists()


def test_a_copy_of_old_work_is_not_old(tmp_path: Path) -> None:
    unit(tmp_path, "left")
    age(tmp_path, HOUR)
    assert old_work(tmp_path, 0.5) == [], "the file system knows when it came here"


def test_the_folder_of_a_run_without_units_goes_too(tmp_path: Path) -> None:
    run = tmp_path / "datagen" / "a" / "run"
    run.mkdir(parents=True)
    os.utime(run, (0, 0))
    assert remove_work(old_work(tmp_path, 60), 60) == 0
    assert list(run.parent.iterdir()) == []
    assert old_work(tmp_path / "none", 0) == []
