"""Which bytes of a store have a name, and the removal of those that have none, while others put.

Names and bytes change one after the other. So whoever removes bytes first says so in `deleting/<random>.json`, then
looks which of them have a name, and removes the others; whoever puts creates the name first, then waits until no such
notice is about what it names, and writes again what is missing. Either the one sees the name, or the other sees the
notice: when both are done, a name has its bytes.

Not covered: a client that stands still in the middle of a removal for minutes, and then goes on; clocks (S3's and ours)
that differ by minutes; a network file system that shows files late.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from understudy.errors import Invalid
from understudy.interrupt import check
from understudy.store.place import Entry, Place
from understudy.terms import Artifact

NOTICES = "deleting"
NOTICE_SECONDS = 300.0
"""For so long a notice counts; a removal ends in half of that."""
REMOVED_AT_ONCE = 100
WAIT_STEP = 0.2


def blob(sha: str) -> str:
    """Path of one file's bytes."""
    return f"blobs/{sha}"


def manifest(artifact: Artifact) -> str:
    """Path of the list of an artifact's files."""
    return f"manifests/{artifact.sha256}.json"


def ref(key: str) -> str:
    """Path of what a key names."""
    if not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise Invalid(f"`{key}` cannot name an artifact")
    return f"refs/{key}.json"


def named_by(path: str, content: bytes) -> Artifact:
    """The artifact in a ref."""
    try:
        return Artifact.model_validate_json(content)
    except ValidationError:
        raise Invalid(f"{path} in the artifact store is damaged", "Remove it there.") from None


class Names:
    """The names of the store at a place, and the bytes that they name."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._blobs: dict[str, list[str]] = {}
        """Manifest -> its blobs; what was read once stays true."""

    def refs(self, folder: str = "refs") -> list[Entry]:
        """Every name at or below `folder`."""
        return [entry for entry in self._place.below(folder) if entry.path.endswith(".json")]

    def reached(self, refs: Collection[str]) -> set[str]:
        """Paths of every manifest and blob that these refs name. A manifest that is missing reaches nothing."""
        manifests = {manifest(named_by(path, content)) for path, content in self._place.read_all(refs).items()}
        for path, content in self._place.read_all(manifests - self._blobs.keys()).items():
            if hashlib.sha256(content).hexdigest() == Path(path).stem:
                self._blobs[path] = [blob(entry["sha256"]) for entry in json.loads(content).values()]
        return manifests.union(*(self._blobs.get(path, ()) for path in manifests))

    def free(self, paths: Collection[str], grace_seconds: float | None = None) -> list[Entry]:
        """Remove those of the manifests and blobs at `paths` that no name names, and say which.

        With a grace, none that a `put` wrote or found within it.
        """
        freed: list[Entry] = []
        if not paths:
            return freed
        with self._notice(paths) as holds:
            unnamed = sorted(set(paths) - self.reached([entry.path for entry in self.refs()]), reverse=True)
            for first in range(0, len(unnamed), REMOVED_AT_ONCE):  # manifests first
                found = self._place.entries(unnamed[first : first + REMOVED_AT_ONCE]).values()
                old = [each for each in found if grace_seconds is None or time.time() - each.changed > grace_seconds]
                if not holds():  # the sweep will find what is left
                    break
                self._place.remove([entry.path for entry in old])
                freed += old
        return freed

    def let_removals_end(self, paths: Collection[str]) -> None:
        """Wait until the removals that are under way now, of any of `paths`, are done or given up."""
        until = time.monotonic() + NOTICE_SECONDS
        recent = [each.path for each in self.refs(NOTICES) if time.time() - each.changed < NOTICE_SECONDS]
        notices = self._place.read_all(recent)
        waiting = {path for path, content in notices.items() if not set(paths).isdisjoint(json.loads(content))}
        while waiting and time.monotonic() < until:
            check()
            time.sleep(WAIT_STEP)
            waiting &= {f"{NOTICES}/{name}" for name in self._place.children(NOTICES)}

    @contextmanager
    def _notice(self, paths: Collection[str]) -> Iterator[Callable[[], bool]]:
        """Inside, who puts knows that `paths` may go. Yields how to ask whether that can still be relied on."""
        notice, began = f"{NOTICES}/{secrets.token_hex(8)}.json", time.monotonic()
        self._place.write(notice, json.dumps(sorted(paths)).encode())
        try:
            yield lambda: time.monotonic() - began < NOTICE_SECONDS / 2
        finally:
            self._place.remove([notice])
