"""A store's files in a folder of this machine, or of a network file system with hard links.

A file is written under another name beside its own, flushed, renamed, and then its folder is flushed; a file that must
not replace another gets its name by a hard link. What a kill leaves behind are `*.partial` files that nobody reads.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from understudy.interrupt import check
from understudy.store.place import Entry

PIECE = 1 << 20
"""Bytes read at once; between two pieces an interruption is heard."""
FLUSH_EVERY = 64 << 20
"""Bytes. A flush cannot be interrupted, so there must never be much to flush."""
ATTEMPTS = 5


class Folder:
    """The place at `root`, which need not exist yet. See `Place` for what its methods promise."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()

    def read_all(self, paths: Iterable[str]) -> dict[str, bytes]:
        content = {}
        for path in paths:
            check()
            try:
                content[path] = self.read(path)
            except FileNotFoundError:
                pass
        return content

    def entries(self, paths: Iterable[str]) -> dict[str, Entry]:
        found = {}
        for path in paths:
            check()
            try:
                status = (self._root / path).stat()
            except FileNotFoundError:
                continue
            found[path] = Entry(path, status.st_size, status.st_mtime)
        return found

    def below(self, folder: str) -> list[Entry]:
        paths = (
            (Path(parent) / name).relative_to(self._root).as_posix()
            for parent, _, names in os.walk(self._root / folder)
            for name in names
        )
        return list(self.entries(paths).values())

    def children(self, folder: str) -> list[str]:
        try:
            return [path.name for path in (self._root / folder).iterdir() if path.is_file()]
        except FileNotFoundError:
            return []

    def write(self, path: str, content: bytes) -> None:
        self._make(self._root / path, lambda partial: _write(partial, content), Path.replace)

    def create(self, path: str, content: bytes) -> None:
        try:
            self._make(
                self._root / path,
                lambda partial: _write(partial, content),
                lambda partial, target: target.hardlink_to(partial),
            )
        except FileExistsError:
            pass

    def upload(self, file: Path, path: str, *, linked: bool) -> None:
        def write(partial: Path) -> None:
            if not (linked and _link(file, partial)):
                copy(file, partial)

        self._make(self._root / path, write, Path.replace)
        if linked:
            self.renew(path)

    def download(self, path: str, file: Path) -> None:
        copy(self._root / path, file)

    def renew(self, path: str) -> bool:
        try:
            os.utime(self._root / path)
        except OSError:  # it is somebody else's
            return False
        return True

    def remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            check()
            file = self._root / path
            file.unlink(missing_ok=True)
            try:
                for parent in list(file.relative_to(self._root).parents)[:-2]:  # below `refs`, empty folders go too
                    (self._root / parent).rmdir()
            except OSError:
                pass

    def _make(self, path: Path, write: Callable[[Path], object], name: Callable[[Path, Path], object]) -> None:
        """Let `write` make a file beside `path`, and `name` give it that name."""
        partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _make_folder(path.parent)
                write(partial)
                flush(partial)
                name(partial, path)
                flush(path.parent)
                return
            except FileNotFoundError:  # the folder was empty, and `remove` took it just now
                if attempt == ATTEMPTS:
                    raise
            finally:
                partial.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Copy the bytes of a file in pieces, flushed to the disk."""
    written = 0
    with source.open("rb") as reader, target.open("wb") as writer:
        while piece := reader.read(PIECE):
            check()
            written += writer.write(piece)
            if written % FLUSH_EVERY == 0:
                os.fsync(writer.fileno())
    flush(target)


def digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            check()
            sha.update(piece)
    return sha.hexdigest()


def flush(path: Path) -> None:
    """Have the bytes of a file, or the names in a folder, on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(folder: Path, used: Callable[[Path], bool] = lambda path: False) -> bool:
    """Remove a folder, its name first, so that nobody finds it half removed; whether it was there and is gone.

    It comes back when it turns out, after nobody can find it any more, that somebody had `used` it.
    """
    gone = folder.with_name(f".{folder.name.removeprefix('.')[:100]}.{secrets.token_hex(4)}")
    try:
        folder.rename(gone)
    except OSError:  # somebody else was first
        return False
    if used(gone):
        try:
            gone.rename(folder)
            return False
        except OSError:  # whoever used it has made another
            pass
    shutil.rmtree(gone, ignore_errors=True)
    return True


def _make_folder(path: Path) -> None:
    """Make a folder and those above it, each flushed into the one that names it."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(exist_ok=True)
        flush(path.parent)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _link(file: Path, path: Path) -> bool:
    """Whether `path` is now a second name of `file`: not across disks, nor where the file system has no links."""
    try:
        path.hardlink_to(file)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True
