"""What nobody needs any more, found and removed while services run: bytes of the store that no name names, local copies
of artifacts, unfinished work of units that nobody works on.

Each has a step that finds, for a person to look at, and one that removes and looks again at each thing first: what was
used meanwhile stays. Does not know which runs were deleted; the caller says. Parts of an unfinished multipart upload to
S3 are left to a lifecycle rule of the bucket.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from understudy.store import keys
from understudy.store.artifacts import GRACE_SECONDS, FsspecArtifactStore
from understudy.store.folder import discard
from understudy.store.names import NOTICES
from understudy.store.place import Entry

IDLE_SECONDS = 3600.0
"""A local copy that was fetched within this time may be in use."""


class Found(NamedTuple):
    """Something that can go."""

    path: str
    """Below the store's root; of a local copy or unfinished work the whole path."""
    bytes: int
    age: float
    """Seconds since it was last written or used."""


def find_unnamed(
    store: FsspecArtifactStore, grace_seconds: float = GRACE_SECONDS, deleted_runs: Collection[str] = ()
) -> list[Found]:
    """Blobs and manifests that no name names, the names of `deleted_runs`, and what kills left half written.

    All of it older than the grace, which must be longer than any `put` takes.
    """
    with store.trouble():
        store.check()
        # Bytes before names: what is put meanwhile is not even seen.
        stored = [*store.place.below("blobs"), *store.place.below("manifests")]
        refs = store.names.refs()
        gone = tuple(f"refs/{keys.run(run)}/" for run in deleted_runs)
        dead = [entry for entry in refs if entry.path.startswith(gone) and _age(entry) > grace_seconds]
        named = store.names.reached({entry.path for entry in refs} - {entry.path for entry in dead})
        unnamed = [entry for entry in stored if entry.path not in named and not _partial(entry.path)]
        halves = [entry for entry in [*stored, *store.place.below("refs")] if _partial(entry.path)]
        left = [*halves, *store.place.below(NOTICES)]
    found = [*dead, *unnamed, *left]
    return [Found(entry.path, entry.bytes, _age(entry)) for entry in found if _age(entry) > grace_seconds]


def remove_unnamed(store: FsspecArtifactStore, found: Iterable[Found], grace_seconds: float = GRACE_SECONDS) -> int:
    """Remove what `find_unnamed` found, unless it has a name now or is not that old any more; bytes freed.

    Names first; they are removed as found, so `found` must be of runs that are deleted still.
    """
    found = list(found)
    stored = {each.path for each in found if each.path.startswith(("blobs/", "manifests/")) and not _partial(each.path)}
    with store.trouble():
        others = store.place.entries(each.path for each in found if each.path not in stored)
        old = [entry for entry in others.values() if _age(entry) > grace_seconds]
        store.place.remove([entry.path for entry in old])
    return sum(entry.bytes for entry in old) + store.free(stored, grace_seconds)


def find_cached(cache: Path, max_bytes: int, idle_seconds: float = IDLE_SECONDS) -> list[Found]:
    """Local copies to remove so that no more than `max_bytes` stay, those first that were not used for longest.

    None that was used within `idle_seconds`, so more may stay. Drafts and halves that kills left go in any case.
    """
    copies = []
    for path in _folders(cache):
        copies.append(Found(str(path), _bytes(path), time.time() - _clock(path)(path)))
    kept, going = sum(each.bytes for each in copies), []
    for each in sorted(copies, key=lambda each: each.age, reverse=True):
        if each.age > idle_seconds and (_hidden(Path(each.path)) or kept > max_bytes):
            going.append(each)
            kept -= each.bytes
    return going


def shrink_cache(cache: Path, max_bytes: int, idle_seconds: float = IDLE_SECONDS) -> int:
    """Remove what `find_cached` finds; bytes freed. A copy that is asked for again is fetched again."""
    freed = 0
    for each in find_cached(cache, max_bytes, idle_seconds):
        path = Path(each.path)
        if _remove(path, _clock(path), idle_seconds):
            freed += each.bytes
    return freed


def old_work(work: Path, age_seconds: float) -> list[Found]:
    """Folders below `work` (`<station>/<member>/<run>/<unit>`) in which nothing was touched for that long."""
    runs = [run for station in _folders(work) for member in _folders(station) for run in _folders(member)]
    units = [unit for run in runs for unit in (_folders(run) or [run])]  # of a run without any unit its own folder
    found = [Found(str(unit), _bytes(unit), time.time() - _last_touched(unit)) for unit in units]
    return [each for each in found if each.age > age_seconds]


def remove_work(found: Iterable[Found], age_seconds: float) -> int:
    """Remove what `old_work` found, unless somebody has worked there since; bytes freed."""
    return sum(each.bytes for each in found if _remove(Path(each.path), _last_touched, age_seconds))


def _remove(folder: Path, last: Callable[[Path], float], age_seconds: float) -> bool:
    def used(path: Path) -> bool:
        return time.time() - last(path) <= age_seconds

    return not used(folder) and discard(folder, used)


def _clock(path: Path) -> Callable[[Path], float]:
    """How to tell the age of what lies in the cache: drafts and halves are used as long as something is written there."""
    return _last_touched if _hidden(path) else _last_used


def _last_used(copy: Path) -> float:
    """When `fetch` last returned a copy, which it notes on the folder."""
    return _status(copy)[1]


def _last_touched(folder: Path) -> float:
    """When anything in a folder was last written, made or copied there; copies keep their time of change."""
    return max([_status(folder)[1], *(max(_status(path)[1:]) for path in folder.rglob("*"))])


def _bytes(folder: Path) -> int:
    return sum(_status(path)[0] for path in folder.rglob("*") if path.is_file())


def _status(path: Path) -> tuple[int, float, float]:
    """Bytes, time of change, and when the file system last changed anything about it; zeros when it has gone."""
    try:
        status = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return 0, 0.0, 0.0
    return status.st_size, status.st_mtime, status.st_ctime


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []


def _hidden(folder: Path) -> bool:
    return folder.name.startswith(".")


def _partial(path: str) -> bool:
    return path.endswith(".partial")


def _age(entry: Entry) -> float:
    return time.time() - entry.changed
