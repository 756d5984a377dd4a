"""The folder that engines read adapters from by themselves: `<folder>/<model name>` holds an adapter that passed the gate.

It is the state that engines shall have, and the same for all of them: an engine loads what it is asked for, forgets the
least used, and needs nothing after a restart. What is tried lies under `.gate/`, and gets its name by a rename. An engine
ends, with all its models, when it has to read an adapter again whose folder is gone; hence whatever nobody wants any more
is unloaded first and stays for a while. The files are second names of the store's local copies, so they outlive these.
Does not decide what is wanted (`fleet.py`), nor what is good (`gate.py`).
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path

from understudy.errors import Invalid, Transient, disk_full
from understudy.store.artifacts import ArtifactStore
from understudy.store.folder import discard, flush
from understudy.terms import Artifact

log = logging.getLogger(__name__)

GRACE = 600.0
"""Seconds that an adapter stays after it was put here or asked for, and again after it was unloaded: a request may be on its way."""
TRIALS = ".gate"
LONGEST = 72
"""Characters of each part of a name: a folder's name has at most 255 bytes."""


def model_name(base: str, run: str, item: str, adapter: Artifact) -> str:
    """`ft:<base>:<run name>:<item>:<first 8 of the digest>`, without characters that URLs or engines trip over."""
    parts = (base, run, item)
    return ":".join(["ft", *(re.sub(r"[^A-Za-z0-9._/+@-]", "-", part)[:LONGEST] for part in parts), adapter.sha256[:8]])


class Folder:
    """Safe to share between threads and processes, but for `retire`."""

    def __init__(self, path: Path, store: ArtifactStore) -> None:
        path.mkdir(parents=True, exist_ok=True)  # an engine does not start without it
        self._path, self._store = path, store
        self._unloaded: dict[str, float] = {}
        """What is about to go: when engines were told to forget it."""

    def path(self, name: str) -> Path:
        """Where the adapter called `name` lies or would. Raises `Invalid` for a name that leads elsewhere."""
        if {"", ".", ".."} & {*name.split("/")}:
            raise Invalid(f"`{name}` cannot be the name of a model")
        return self._path / name

    def put(self, name: str, adapter: Artifact) -> None:
        """Have `adapter` under `name`. Raises as `attempt`."""
        try:
            os.utime(self.path(name))
        except OSError:
            self.settle(self.attempt(adapter), name)

    def attempt(self, adapter: Artifact) -> str:
        """The adapter under a name of its own that only the caller knows.

        Raises as `store.fetch` does, `Fatal` when the disk is full, `Transient` when it cannot be written to.
        """
        name = f"{TRIALS}/{adapter.sha256[:8]}.{secrets.token_hex(4)}"
        source, target = self._store.fetch(adapter), self.path(name)
        try:
            target.mkdir(parents=True)
            for path in filter(Path.is_file, source.rglob("*")):
                copy = target / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                _link(path, copy)
        except OSError as error:
            raise disk_full(error, self._path) or Transient(f"{target} cannot be made: {error}") from error
        return name

    def settle(self, attempt: str, name: str) -> None:
        """What passed, under its name; nobody may ask for it as `attempt` any more. Raises `Transient`."""
        target = self.path(name)
        try:
            target.parent.mkdir(exist_ok=True)
            self.path(attempt).rename(target)
        except OSError as error:
            if not target.is_dir():  # else another was first, with the same bytes
                raise Transient(f"{target} cannot be made: {error}") from error

    def retire(self, wanted: Container[str], unload: Callable[[str], None]) -> None:
        """Remove adapters that are not `wanted` and what broken attempts left, some time after `unload` of their names.

        Nobody may let a request for such a name through any more. What cannot be unloaded stays for the time being.
        """
        now = time.monotonic()
        going = [name for name in self._names(self._path) if name not in wanted and _age(self.path(name)) > GRACE]
        self._unloaded = {name: at for name, at in self._unloaded.items() if name in going}
        for name in going:
            try:
                unload(name)
            except Transient as error:
                log.warning("%s cannot be removed yet: %s", name, error)
                continue
            if now - self._unloaded.setdefault(name, now) > GRACE:
                discard(self.path(name), lambda path: _age(path) <= GRACE)

    def _names(self, folder: Path) -> Iterator[str]:
        """A name may have slashes: what holds folders only is no adapter."""
        for path in folder.iterdir():
            inner = [*path.iterdir()] if path.is_dir() else []
            if path.name == TRIALS or (inner and all(each.is_dir() for each in inner)):
                yield from self._names(path)
            elif path.is_dir():
                yield path.relative_to(self._path).as_posix()


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)
        flush(target)
