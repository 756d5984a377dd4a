"""The folders that engines read adapters from: second names of the store's local copies, by digest.

An engine reads an adapter again whenever another one had its place meanwhile, and ends, with all its models, when the
folder is gone. The store's copies go when a run is deleted or room is needed; what lies here goes only some time after
nobody wants it any more. Replicas that share a data folder share the shelf, and so does an engine that mounts it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Container
from pathlib import Path

from understudy.errors import Transient, disk_full
from understudy.store.artifacts import ArtifactStore
from understudy.store.folder import discard
from understudy.terms import Artifact

GRACE = 600.0
"""Seconds that an adapter stays after it was last put here: another replica may have wanted it, a request may be on its way."""


class Shelf:
    """Safe to share between threads and processes."""

    def __init__(self, folder: Path, store: ArtifactStore) -> None:
        self._folder, self._store = folder, store

    def put(self, adapter: Artifact) -> Path:
        """The folder of `adapter`, made if need be. Raises as `store.fetch` does, `Transient` when it cannot be made."""
        target = self._folder / adapter.sha256
        try:
            os.utime(target)
            return target
        except FileNotFoundError:
            source = self._store.fetch(adapter)
        partial = target.with_name(f".{adapter.sha256}.{secrets.token_hex(4)}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, partial, copy_function=_link)
            try:
                partial.rename(target)
            except OSError:
                if not target.is_dir():  # else another was first, with the same bytes
                    raise
        except OSError as error:
            raise disk_full(error, self._folder) or Transient(f"{target} cannot be made: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return target

    def tidy(self, wanted: Container[str]) -> None:
        """Remove adapters that are not `wanted` (digests), and what kills left half made."""
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if path.name not in wanted and _age(path) > GRACE:
                    discard(path, lambda path: _age(path) <= GRACE)


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)
