"""The folder that engines read adapters from by themselves: `<folder>/<model name>` holds an adapter that passed the gate.

It is the state that engines shall have, and the same for all of them: an engine loads what it is asked for, forgets the
least used, and needs nothing after a restart. What is tried lies under `.gate/`, and gets its name by a rename. An engine
ends, with all its models, when it has to read an adapter again whose folder is gone; hence whatever nobody wants any more
is unloaded first and stays for a while. The files are second names of the store's local copies, so they outlive these.
What else lies in the folder is left alone.
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

from understudy.errors import Invalid, Transient, UnderstudyError, disk_full
from understudy.store.artifacts import ArtifactStore
from understudy.store.folder import discard, flush
from understudy.terms import Artifact

log = logging.getLogger(__name__)

GRACE = 600.0
"""Seconds that an adapter stays after it was put here or asked for, and again after it was unloaded: a request may be on its way."""
TRIALS = ".gate"
CONFIG = "adapter_config.json"
"""Every adapter has it; an engine takes no folder for one that does not."""
OURS = re.compile(r"\.?ft:")
"""How the name of a folder in ours begins that holds adapters, or what is left of one."""
REST = re.compile(r"\..+\.[0-9a-f]{8}")
"""What a folder is called while it is removed (`discard`)."""
LONGEST = 72
"""Characters of each part of a name: a folder's name has at most 255 bytes."""


def model_name(base: str, run: str, item: str, adapter: Artifact) -> str:
    """`ft:<base>:<run name>:<item>:<first 8 of the digest>`, without characters that URLs or engines trip over."""
    return ":".join(["ft", *(_part(part) for part in (base, run, item)), adapter.sha256[:8]])


def may_be_on(name: str, base: str) -> bool:
    """Whether an engine of `base` may know an adapter of that name; what is tried may be on any."""
    return name.startswith((f"{TRIALS}/", f"ft:{_part(base)}:"))


def _part(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._/+@-]", "-", text)[:LONGEST]


class Folder:
    """Safe to share between threads and processes; `retire` is for one thread of each."""

    def __init__(self, path: Path, store: ArtifactStore) -> None:
        path.mkdir(parents=True, exist_ok=True)  # an engine does not start without it
        self._path, self._store = path, store
        self._unloaded: dict[str, float] = {}
        """What is about to go: when engines were told to forget it."""
        self._unreadable: set[str] = set()
        """What was warned of."""

    def path(self, name: str) -> Path:
        """Where the adapter called `name` lies or would. Raises `Invalid` for a name that leads elsewhere."""
        if {"", ".", ".."} & {*name.split("/")}:
            raise Invalid(f"`{name}` cannot be the name of a model")
        return self._path / name

    def has(self, name: str) -> bool:
        """Whether an engine would find an adapter called `name`. Raises as `path`."""
        return (self.path(name) / CONFIG).is_file()

    def put(self, name: str, adapter: Artifact) -> None:
        """Have `adapter` under `name`. Raises as `attempt`."""
        if not self._renew(name):
            self.settle(self.attempt(adapter), name)

    def attempt(self, adapter: Artifact) -> str:
        """The adapter under a name of its own that only the caller knows.

        Raises as `store.fetch` does, `Fatal` when the disk is full, `Transient` when it cannot be written to or the local copy
        was removed meanwhile.
        """
        name = f"{TRIALS}/{adapter.sha256[:8]}.{secrets.token_hex(4)}"
        source, target = self._store.fetch(adapter), self.path(name)
        try:
            for path, listed in self._store.files(adapter).items():
                copy = target / path
                copy.parent.mkdir(parents=True, exist_ok=True)
                _link(source / path, copy)
                if (size := copy.stat().st_size) != listed.bytes:
                    raise Transient(f"{source / path} has {size} bytes instead of {listed.bytes}")
        except OSError as error:
            raise disk_full(error, self._path) or Transient(f"{target} cannot be made: {error}") from error
        return name

    def settle(self, attempt: str, name: str) -> None:
        """What passed, under its name; nobody may ask for it as `attempt` any more. Raises `Transient`."""
        target = self.path(name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.utime(self.path(attempt))  # before it has its name, or `retire` might find it old
            self.path(attempt).rename(target)
        except OSError as error:
            if not self._renew(name):  # else another was first, with the same bytes
                raise Transient(f"{target} cannot be made: {error}") from error

    def retire(self, wanted: Container[str], unload: Callable[[str], None]) -> None:
        """Remove adapters that are not `wanted` and what broken attempts left, some time after `unload` of their names.

        Nobody may let a request for such a name through any more. What cannot be unloaded stays for the time being. Other
        processes may do the same on the same folder at once: each has its own engines forget a name, no engine reads an
        adapter before it is asked for it, and of two that remove a folder the rename lets one be first.
        """
        now = time.monotonic()
        going = [name for name in self._names() if name not in wanted and _age(self.path(name)) > GRACE]
        self._unloaded = {name: at for name, at in self._unloaded.items() if name in going}
        for name in going:
            try:
                unload(name)
            except UnderstudyError as error:
                log.warning("%s cannot be removed yet: %s", name, error)
                continue
            if now - self._unloaded.setdefault(name, now) > GRACE:
                discard(self.path(name), lambda path: _age(path) <= GRACE)

    def _renew(self, name: str) -> bool:
        """Whether the adapter is there; if so it counts as put here just now."""
        try:
            os.utime(self.path(name))
        except OSError:
            return False
        return self.has(name)

    def _names(self) -> Iterator[str]:
        """Of adapters, which may have slashes, and of what broken attempts and removals left."""
        for place, folders, files in os.walk(self._path, onerror=self._skip):
            path = Path(place)
            if path == self._path:
                folders[:] = [name for name in folders if OURS.match(name) or name == TRIALS]
            elif path.parent == self._path / TRIALS or CONFIG in files or REST.fullmatch(path.name):
                folders.clear()
                yield path.relative_to(self._path).as_posix()

    def _skip(self, error: OSError) -> None:
        if error.filename not in self._unreadable:
            self._unreadable.add(error.filename)
            log.warning("%s is skipped: %s", error.filename, error.strerror)


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
