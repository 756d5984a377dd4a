"""The artifact store: finished folders, immutable, content-addressed, in a folder (file://) or in S3 (s3://).

    <root>/blobs/<sha256>            one file's bytes
    <root>/manifests/<sha256>.json   {path: {sha256, bytes}} of a folder; its own digest is the artifact's
    <root>/refs/<key>.json           the artifact that a key names, written last: present = complete, never changed
    <root>/deleting/<random>.json    blobs and manifests that somebody is about to remove
    <root>/store.json                in which form all this is

So an interrupted `put` leaves only blobs that the next one finds, two writers of the same folder write the same
bytes, and of two writers of one key with different bytes the first wins and both get the winner. Nothing is ever seen
half written, whatever is killed or loses power (`place.py`).

Deleting forgets names, and removes at once the bytes that no other name names. Names and bytes change one after the
other, so whoever removes bytes says so first under `deleting`, then looks which of them have a name, and removes the
others; whoever puts creates the name first, then waits until nobody is removing what it names, and writes again what is
missing. Either the one sees the name, or the other sees the notice: when both have returned, a name has its bytes. What
remains: until a `put` has returned, another client may find its name and yet miss bytes, and looks once more after a
second; and a client that stops in the middle of a removal, for more than `DELETING_SECONDS`, and then goes on, is not
waited for. What a kill leaves without a name, `sweep.py` finds.

Region, endpoint and credentials of S3 come from where AWS's own tools take them: the `AWS_*` variables, `~/.aws`, the
machine's role."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from pydantic import ValidationError

from understudy.belt.contracts import Artifact
from understudy.errors import Fatal, Invalid
from understudy.interrupt import check
from understudy.store.folder import Folder, digest, flush
from understudy.store.place import Place
from understudy.store.trouble import meaning

FORMAT = "understudy.store.v2"
MARKER = "store.json"
GRACE_SECONDS = 24 * 3600.0
"""So old must be what has no name before it is swept: a `put` may be about to name it."""
DELETING_SECONDS = 300.0
"""For so long a notice of removal holds."""
REMOVED_AT_ONCE = 100
SECOND_LOOK = 1.0
"""Seconds."""
WAIT_STEP = 0.2


class ArtifactStore(Protocol):
    """What stations need of a store.

    if artifact := store.find(f"runs/{run}/adapters/{variant}"):
        ...                                     # done before: emit again, do no work
    artifact = store.put(f"runs/{run}/adapters/{variant}", folder)
    folder = store.fetch(artifact)              # a local, read-only folder
    """

    def find(self, key: str) -> Artifact | None:
        """The artifact that `key` names, or None when it is not complete."""

    def put(self, key: str, folder: Path, *, linked: bool = False) -> Artifact:
        """Store `folder` under `key` and return the artifact; the first complete one stays until it is deleted.

        `linked`: nobody writes into the files of `folder` afterwards, so the store may share their bytes.
        """

    def fetch(self, artifact: Artifact) -> Path:
        """A local folder with the artifact's files, verified. Treat it as read-only: it is shared.

        Fetch again before using it after a pause: it may have been removed to make room.
        """

    def keys(self, prefix: str) -> list[str]:
        """All complete keys of the form `<prefix>/<name>`, sorted."""

    def delete(self, *keys: str) -> int:
        """Forget the keys that are there, and free what no other key names; how many bytes of the store that were."""

    def delete_all(self, prefix: str) -> int:
        """`delete` every key below `prefix`, at any depth."""

    def draft(self) -> Iterator[Path]:
        """A context: an empty folder to make an artifact in, on the disk of the local copies; gone at the end."""


class FsspecArtifactStore:
    """The store at a `file://` or `s3://` URL, with a local cache; safe to share between threads.

    Raises `Transient` when the store does not answer, `Fatal` when a disk is full or the store refuses us (no bucket,
    no right, no credentials, another version's), `Invalid` when bytes are not what was promised or the URL is of another
    kind. Stops within seconds when `interrupt.check` says so.
    """

    def __init__(self, url: str, cache: Path) -> None:
        if not url.startswith(("file:///", "s3://")):
            raise Invalid(
                f"`{url}` cannot be an artifact store", "UNDERSTUDY_ARTIFACTS is file:///folder or s3://bucket/prefix."
            )
        self.url = url.rstrip("/")
        with self._trouble(cache):
            self.place = _place(self.url)
        self._cache = cache
        self._known = self._marked = False
        self._fetching: dict[str, threading.Lock] = {}
        self._blobs: dict[str, list[str]] = {}
        """Manifest -> paths of its blobs; what was read once stays true."""

    def open(self) -> None:
        """Look whether this version can use the store; every other call does it by itself, once."""
        with self._trouble():
            self._open(write=False)

    def find(self, key: str) -> Artifact | None:
        path = _ref(key)
        with self._trouble():
            self._open(write=False)
            content = self.place.read_all([path])
        return self._named_by(path, content[path]) if content else None

    def put(self, key: str, folder: Path, *, linked: bool = False) -> Artifact:
        ref = _ref(key)
        with self._trouble():
            self._open(write=True)
            files = {
                path.relative_to(folder).as_posix(): (path, digest(path), path.stat().st_size)
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            manifest = json.dumps(
                {name: {"sha256": sha, "bytes": size} for name, (_, sha, size) in files.items()},
                sort_keys=True,
                indent=1,
            ).encode()
            artifact = Artifact(sha256=hashlib.sha256(manifest).hexdigest())

            parts = {_blob(sha): _Part(size, self._uploading(path, sha, linked)) for path, sha, size in files.values()}
            parts[_manifest(artifact)] = _Part(len(manifest), lambda: self.place.write(_manifest(artifact), manifest))
            for path, part in parts.items():
                check()
                if not self._lasts(path, part.bytes):
                    part.write()
            self.place.create(ref, artifact.model_dump_json().encode())
            there = self.find(key)
            if there in (None, artifact):  # None: somebody deleted the key at once
                self._complete(parts)
        return there or artifact

    def fetch(self, artifact: Artifact) -> Path:
        target = self._cache / artifact.sha256
        with self._trouble():
            self._open(write=False)
        with _held(self._fetching.setdefault(artifact.sha256, threading.Lock())):
            if not _touch(target):
                try:
                    self._download(artifact, target)
                except FileNotFoundError:
                    time.sleep(SECOND_LOOK)
                    try:
                        self._download(artifact, target)
                    except FileNotFoundError:
                        raise Invalid(
                            f"Artifact {artifact.sha256} is not in the store {self.url}, or not all of it",
                            "Was its run or file deleted, or the store moved or emptied?",
                        ) from None
        return target

    def keys(self, prefix: str) -> list[str]:
        folder = _ref(prefix).removesuffix(".json")
        with self._trouble():
            self._open(write=False)
            names = self.place.children(folder)
        return sorted(f"{prefix}/{name.removesuffix('.json')}" for name in names if name.endswith(".json"))

    def delete(self, *keys: str) -> int:
        return self._delete([_ref(key) for key in keys])

    def delete_all(self, prefix: str) -> int:
        folder = _ref(prefix).removesuffix(".json")
        with self._trouble():
            self._open(write=False)
            refs = [entry.path for entry in self.place.below(folder) if entry.path.endswith(".json")]
        return self._delete(refs)

    @contextmanager
    def draft(self) -> Iterator[Path]:
        folder = self._cache / f".draft.{secrets.token_hex(8)}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def named(self, without: Collection[str] = ()) -> set[str]:
        """Paths of every blob and manifest that a name names; the refs in `without` do not count."""
        with self._trouble():
            refs = [entry.path for entry in self.place.below("refs") if entry.path.endswith(".json")]
            content = self.place.read_all(path for path in refs if path not in without)
            return self._reached({_manifest(self._named_by(path, ref)) for path, ref in content.items()})

    def free(self, paths: Collection[str], grace_seconds: float = 0) -> int:
        """Remove those of the blobs and manifests at `paths` that no name names; how many bytes that were.

        None that was written or found by a `put` within the last `grace_seconds`, when that is not 0.
        """
        if not paths:
            return 0
        freed = 0
        with self._trouble(), self._noticed(paths) as holds:
            unnamed = sorted(set(paths) - self.named())
            for first in range(0, len(unnamed), REMOVED_AT_ONCE):
                found = [self.place.entry(path) for path in unnamed[first : first + REMOVED_AT_ONCE]]
                old = [
                    each for each in found if each and (not grace_seconds or time.time() - each.changed > grace_seconds)
                ]
                if not holds():  # what is left is for the sweep
                    break
                self.place.remove([entry.path for entry in old])
                freed += sum(entry.bytes for entry in old)
                for entry in old:
                    discard(self._cache / Path(entry.path).stem)  # of a manifest; nothing there has a blob's name
        return freed

    def _delete(self, refs: list[str]) -> int:
        with self._trouble():
            self._open(write=False)
            content = self.place.read_all(refs)
            manifests = {_manifest(self._named_by(path, ref)) for path, ref in content.items()}
            paths = self._reached(manifests)
            self.place.remove(content)
        return self.free(paths)

    def _reached(self, manifests: set[str]) -> set[str]:
        """These manifests and their blobs, as far as the manifests are there."""
        for path, content in self.place.read_all(manifests - self._blobs.keys()).items():
            if hashlib.sha256(content).hexdigest() == Path(path).stem:
                self._blobs[path] = [_blob(entry["sha256"]) for entry in json.loads(content).values()]
        return manifests.union(*(self._blobs.get(path, ()) for path in manifests))

    def _uploading(self, file: Path, sha: str, linked: bool) -> Callable[[], None]:
        return lambda: self.place.upload(file, _blob(sha), linked=linked)

    def _lasts(self, path: str, size: int) -> bool:
        """Whether a blob or manifest is there whole and, now that it was found, is not swept for a good while."""
        entry = self.place.entry(path)
        if entry is None or entry.bytes != size:
            return False
        return self.place.renew(path) or time.time() - entry.changed < GRACE_SECONDS / 2

    def _complete(self, parts: dict[str, _Part]) -> None:
        """Write again what was removed since it was found; `parts` have a name now, so this comes to an end."""
        missing = True
        while missing:
            self._let_removals_end(parts)
            missing = False
            for path, part in parts.items():
                check()
                entry = self.place.entry(path)
                if entry is None or entry.bytes != part.bytes:
                    missing = True
                    part.write()

    @contextmanager
    def _noticed(self, paths: Collection[str]) -> Iterator[Callable[[], bool]]:
        """Inside, who puts knows that `paths` may go. Yields how to ask whether that can still be relied on."""
        notice, began = f"deleting/{secrets.token_hex(8)}.json", time.monotonic()
        self.place.write(notice, json.dumps(sorted(paths)).encode())
        try:
            yield lambda: time.monotonic() - began < DELETING_SECONDS / 2
        finally:
            self.place.remove([notice])

    def _let_removals_end(self, parts: Collection[str]) -> None:
        """Wait until the removals that are under way now, of any of `parts`, are done or given up."""
        now, until = time.time(), time.monotonic() + DELETING_SECONDS
        recent = [each.path for each in self.place.below("deleting") if now - each.changed < DELETING_SECONDS]
        notices = self.place.read_all(path for path in recent if path.endswith(".json"))
        waiting = {path for path, content in notices.items() if not set(parts).isdisjoint(json.loads(content))}
        while waiting and time.monotonic() < until:
            check()
            time.sleep(WAIT_STEP)
            waiting &= {f"deleting/{name}" for name in self.place.children("deleting")}

    def _download(self, artifact: Artifact, target: Path) -> None:
        """Make `target`; raises FileNotFoundError when the store lacks something."""
        partial = self._cache / f".{artifact.sha256}.{os.getpid()}-{secrets.token_hex(4)}"
        try:
            with self._trouble():
                manifest = self.place.read(_manifest(artifact))
            if hashlib.sha256(manifest).hexdigest() != artifact.sha256:
                raise Invalid(
                    f"Artifact {artifact.sha256} in {self.url} does not match its digest", "The store is damaged."
                )
            with self._trouble(self._cache):
                partial.mkdir(parents=True)
                for name, expected in json.loads(manifest).items():
                    check()
                    copy = partial / name
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    self.place.download(_blob(expected["sha256"]), copy)
                    if copy.stat().st_size != expected["bytes"] or digest(copy) != expected["sha256"]:
                        raise Invalid(
                            f"Blob {expected['sha256']} in {self.url} does not match its digest",
                            "The store is damaged.",
                        )
                for folder, _, _ in os.walk(partial):
                    flush(Path(folder))
                try:
                    partial.rename(target)
                except OSError:
                    if not target.is_dir():  # else another process was first, with the same bytes
                        raise
                flush(self._cache)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _open(self, write: bool) -> None:
        """Refuse a store that is not of this version; mark a new one, when something is about to be written."""
        if not self._known:
            marker = self.place.read_all([MARKER])
            if marker:
                self._check_format(marker[MARKER])
            elif self.place.below("refs"):
                raise Fatal(
                    f"The artifact store {self.url} was written by an Understudy before version 0.2",
                    "Choose another one with UNDERSTUDY_ARTIFACTS (or another data folder), or remove this one.",
                )
            self._known, self._marked = True, bool(marker)
        if write and not self._marked:
            self.place.create(MARKER, json.dumps({"format": FORMAT}).encode())
            self._check_format(self.place.read(MARKER))  # another client may have been first
            self._marked = True

    def _check_format(self, content: bytes) -> None:
        try:
            found = str(json.loads(content)["format"])
        except (ValueError, KeyError, TypeError):
            found = ""
        if found == FORMAT:
            return
        stem, version = FORMAT.rsplit(".v", 1)
        number = re.fullmatch(rf"{re.escape(stem)}\.v(\d{{1,6}})", found)
        if number and int(number[1]) > int(version):
            raise Fatal(
                f"The artifact store {self.url} was written by a newer Understudy ({found}, this one knows {FORMAT})",
                "Upgrade this one, or choose another store with UNDERSTUDY_ARTIFACTS.",
            )
        raise Fatal(
            f"{MARKER} of the artifact store {self.url} does not say that it is one",
            "Correct UNDERSTUDY_ARTIFACTS, or remove what is there.",
        )

    def _named_by(self, ref: str, content: bytes) -> Artifact:
        try:
            return Artifact.model_validate_json(content)
        except ValidationError:
            raise Invalid(f"{ref} in the artifact store {self.url} is damaged", "Remove it.") from None

    @contextmanager
    def _trouble(self, disk: Path | None = None) -> Iterator[None]:
        """Raise what goes wrong inside as what it means; what is absent stays a FileNotFoundError.

        `disk` is the local folder that is written to, when that is not the store.
        """
        try:
            yield
        except Exception as error:
            if known := meaning(error, self.url, disk or self.url):
                raise known from error
            raise


class _Part:
    """A blob or manifest of an artifact that is being put."""

    def __init__(self, bytes: int, write: Callable[[], None]) -> None:
        self.bytes = bytes
        self.write = write


def discard(folder: Path) -> None:
    """Remove a local copy, or unfinished work: first its name, so that nobody finds it half removed."""
    gone = folder.with_name(f".{folder.name.removeprefix('.')[:100]}.{secrets.token_hex(4)}")
    try:
        folder.rename(gone)
    except OSError:  # it is not there
        return
    shutil.rmtree(gone, ignore_errors=True)


def _place(url: str) -> Place:
    if url.startswith("file:"):
        return Folder(Path(unquote(url.removeprefix("file://"))))
    from understudy.store.s3 import S3  # a store in a folder needs neither s3fs nor fsspec

    return S3(url)


def _blob(sha: str) -> str:
    return f"blobs/{sha}"


def _manifest(artifact: Artifact) -> str:
    return f"manifests/{artifact.sha256}.json"


def _ref(key: str) -> str:
    if not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise Invalid(f"`{key}` cannot name an artifact")
    return f"refs/{key}.json"


def _touch(folder: Path) -> bool:
    """Whether the folder is there; if so it counts as used just now."""
    try:
        os.utime(folder)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _held(lock: threading.Lock) -> Iterator[None]:
    """Hold the lock; an interruption is heard while waiting for it."""
    while not lock.acquire(timeout=WAIT_STEP):
        check()
    try:
        yield
    finally:
        lock.release()
