"""Artifacts are immutable, verified, complete or absent, and safe with several writers."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from understudy.artifacts import FsspecArtifactStore
from understudy.contracts import Artifact
from understudy.errors import Fatal, Invalid
from understudy.testing import local_store


def folder(path: Path, **files: str) -> Path:
    for name, content in files.items():
        (path / name.replace("__", "/")).parent.mkdir(parents=True, exist_ok=True)
        (path / name.replace("__", "/")).write_text(content)
    path.mkdir(exist_ok=True)
    return path


def contents(path: Path) -> dict[str, str]:
    return {p.relative_to(path).as_posix(): p.read_text() for p in path.rglob("*") if p.is_file()}


def test_what_was_put_is_found_and_fetched(tmp_path: Path) -> None:
    store = local_store(tmp_path)
    made = folder(tmp_path / "made", a="1", sub__b="2")
    assert store.find("runs/r/x") is None
    artifact = store.put("runs/r/x", made)
    assert store.find("runs/r/x") == artifact
    assert contents(store.fetch(artifact)) == {"a": "1", "sub/b": "2"}
    assert contents(
        FsspecArtifactStore((tmp_path / "artifacts").as_uri(), tmp_path / "elsewhere").fetch(artifact)
    ) == contents(made)


def test_the_digest_is_of_the_content_and_nothing_else(tmp_path: Path) -> None:
    one, two = local_store(tmp_path / "1"), local_store(tmp_path / "2")
    first = one.put("k", folder(tmp_path / "x", a="1", b="2"))
    second = two.put("other", folder(tmp_path / "y", b="2", a="1"))
    assert first.sha256 == second.sha256 != one.put("k2", folder(tmp_path / "z", a="1", b="3")).sha256


def test_the_first_under_a_key_stays(tmp_path: Path) -> None:
    store = local_store(tmp_path)
    first = store.put("k", folder(tmp_path / "x", a="1"))
    assert store.put("k", folder(tmp_path / "y", a="2")) == first


def test_concurrent_writers_of_one_artifact_agree(tmp_path: Path) -> None:
    made = folder(tmp_path / "made", **{f"f{i}": str(i) * 1000 for i in range(50)})
    got: list[Artifact] = []
    threads = [threading.Thread(target=lambda: got.append(local_store(tmp_path).put("k", made))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert len({artifact.sha256 for artifact in got}) == 1
    assert contents(local_store(tmp_path).fetch(got[0])) == contents(made)
    assert not list((tmp_path / "artifacts").rglob("*.partial"))


def test_damage_is_noticed(tmp_path: Path) -> None:
    store = local_store(tmp_path)
    artifact = store.put("k", folder(tmp_path / "x", a="1"))
    for blob in (tmp_path / "artifacts/blobs").iterdir():
        blob.write_text("2")
    with pytest.raises(Invalid, match="does not match its digest"):
        store.fetch(artifact)
    shutil.rmtree(tmp_path / "artifacts/manifests")
    with pytest.raises(Invalid, match="not in the store"):
        store.fetch(artifact)
    assert not (tmp_path / "cache" / artifact.sha256).exists()


def test_a_key_cannot_leave_the_store(tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        local_store(tmp_path).find("../../etc/passwd")


KILLED_WRITER = """
import sys; from pathlib import Path
from understudy.testing import local_store
store = local_store(Path(sys.argv[1])); print("go", flush=True)
store.put("k", Path(sys.argv[2]))
"""


def test_kill_9_while_putting_leaves_nothing_half_and_the_next_put_completes(tmp_path: Path) -> None:
    made = folder(tmp_path / "made", **{f"f{i}": str(i) * 20000 for i in range(300)})
    for delay in (0.0, 0.02, 0.06):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED_WRITER, str(tmp_path), str(made)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout
            process.stdout.readline()
            time.sleep(delay)
            process.kill()
        store = local_store(tmp_path)
        if found := store.find("k"):
            assert contents(store.fetch(found)) == contents(made)
    assert contents(store.fetch(store.put("k", made))) == contents(made)


def test_a_full_disk_is_fatal_and_says_so(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", small], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(Fatal, match=r"full\. Free some space"):
            local_store(small).put("k", folder(tmp_path / "big", a="x" * 200_000))
    finally:
        subprocess.run(["umount", "-l", small], check=True)
