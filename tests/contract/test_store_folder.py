"""The store in a folder keeps the store contract, and says what is wrong with a disk."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from store_contract import StoreContract, folder

from understudy.errors import Fatal, Invalid
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
        "import sys; from pathlib import Path; import understudy.service.host; from understudy.testing import local_store\n"
        "store = local_store(Path(sys.argv[1])); store.put('k', Path(sys.argv[2])); store.keys('k')\n"
        "print([name for name in ('s3fs', 'aiobotocore', 'botocore') if name in sys.modules])"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(folder(tmp_path / "made", a="1"))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
