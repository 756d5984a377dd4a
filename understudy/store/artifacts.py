"""The artifact store: finished folders, immutable, content-addressed, in a folder (file://) or in S3 (s3://).

    <root>/blobs/<sha256>            one file's bytes
    <root>/manifests/<sha256>.json   {path: {sha256, bytes}} of a folder; its own digest is the artifact's
    <root>/refs/<key>.json           the artifact that a key names, written last: present = complete, never changed
    <root>/deleting/<random>.json    what somebody is about to remove, see `names.py`
    <root>/store.json                in which form all this is, see `version.py`

So an interrupted `put` leaves only blobs that the next one finds, two writers of the same folder write the same
bytes, and of two writers of one key with different bytes the first wins and both get the winner. Nothing is ever seen
half written, whatever is killed or loses power (`place.py`).

Deleting forgets names, and removes at once the bytes that no other name names; to know that, it reads every name of the
store. `put` and `delete` of the same bytes may meet: when both have returned, a name has its bytes. What remains
(besides what `names.py` excludes): before a `put` has returned, another client may find its name and yet miss bytes; it
looks once more after a second. What a kill leaves without a name, `sweep.py` finds.

Region, endpoint and credentials of S3 come from where AWS's own tools take them: the `AWS_*` variables, `~/.aws`, the
machine's role."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from understudy.errors import Invalid, Transient, UnderstudyError
from understudy.interrupt import check, held
from understudy.store.folder import Folder, digest, discard, flush
from understudy.store.names import Names, blob, manifest, named_by, ref
from understudy.store.place import Place
from understudy.store.trouble import meaning
from understudy.store.version import Version
from understudy.terms import Artifact

GRACE_SECONDS = 24 * 3600.0
"""So old must be what has no name before it is swept: somebody may be about to name it."""
SECOND_LOOK = 1.0
"""Seconds."""


@dataclass(frozen=True)
class Listed:
    """A file of an artifact, as its manifest has it."""

    sha256: str
    bytes: int


class ArtifactStore(Protocol):
    """What stations need of a store.

    if artifact := store.find(keys.adapter(run, item)):
        ...                                     # done before: emit again, do no work
    artifact = store.put(keys.adapter(run, item), folder)
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

        Fetch again before using it after an hour: it may have been removed to make room.
        """

    def files(self, artifact: Artifact) -> dict[str, Listed]:
        """Path within the artifact -> its file; nothing is copied for it. Raises `Invalid` when the store lacks it."""

    def keys(self, prefix: str) -> list[str]:
        """All complete keys of the form `<prefix>/<name>`, sorted."""

    def delete(self, *keys: str) -> int:
        """Forget the keys that are there, and free what no other key names: how many bytes of the store that was."""

    def delete_all(self, prefix: str) -> int:
        """`delete` every key of the form `<prefix>/...`, at any depth."""

    def draft(self) -> AbstractContextManager[Path]:
        """An empty folder to make an artifact in, on the disk of the local copies; gone at the end."""


class FsspecArtifactStore:
    """The store at a `file://` or `s3://` URL, with a local cache; safe to share between threads.

    Raises `Transient` when the store does not answer, `Fatal` when a disk is full or the store refuses us (no bucket,
    no right, no credentials, of another version), `Invalid` when bytes are not what was promised or the URL is of
    another kind. Stops within seconds when `interrupt.check` says so.
    """

    def __init__(self, url: str, cache: Path) -> None:
        if not url.startswith(("file:///", "s3://")):
            raise Invalid(
                f"`{url}` cannot be an artifact store", "UNDERSTUDY_ARTIFACTS is file:///folder or s3://bucket/prefix."
            )
        self.url = url.rstrip("/")
        with self.trouble(cache):
            self.place = _place(self.url)
        self.names = Names(self.place)
        self._version = Version(self.place, self.url)
        self._cache = cache
        self._fetching: dict[str, threading.Lock] = {}

    def check(self) -> None:
        """Raise `Fatal` when this version cannot use the store; every other call looks by itself, once."""
        with self.trouble():
            self._version.check()

    def find(self, key: str) -> Artifact | None:
        path = ref(key)
        with self.trouble():
            self._version.check()
            content = self.place.read_all([path])
        return named_by(path, content[path]) if content else None

    def put(self, key: str, folder: Path, *, linked: bool = False) -> Artifact:
        name = ref(key)
        with self.trouble():
            self._version.mark()
            artifact, parts = self._parts(folder, linked)
            there = self.place.entries(parts)
            for path, part in parts.items():
                check()
                found = there.get(path)
                if found is None or found.bytes != part.bytes or not self._stays(path, found.changed):
                    part.write()
            self.place.create(name, artifact.model_dump_json().encode())
            first = self.find(key)
            if first == artifact:
                self._complete(parts)
        return first or artifact  # None: somebody deleted the key at once

    def fetch(self, artifact: Artifact) -> Path:
        target = self._cache / artifact.sha256
        self.check()
        with held(self._fetching.setdefault(artifact.sha256, threading.Lock())):
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

    def files(self, artifact: Artifact) -> dict[str, Listed]:
        self.check()
        try:
            return self._files(artifact)
        except FileNotFoundError:
            raise Invalid(f"Artifact {artifact.sha256} is not in the store {self.url}") from None

    def keys(self, prefix: str) -> list[str]:
        folder = ref(prefix).removesuffix(".json")
        with self.trouble():
            self._version.check()
            names = self.place.children(folder)
        return sorted(f"{prefix}/{name.removesuffix('.json')}" for name in names if name.endswith(".json"))

    def delete(self, *keys: str) -> int:
        return self._delete(lambda: [ref(key) for key in keys])

    def delete_all(self, prefix: str) -> int:
        folder = ref(prefix).removesuffix(".json")
        return self._delete(lambda: [entry.path for entry in self.names.refs(folder)])

    @contextmanager
    def draft(self) -> Iterator[Path]:
        folder = self._cache / f".draft.{secrets.token_hex(8)}"
        with self.trouble(self._cache):
            folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def free(self, paths: set[str], grace_seconds: float | None = None) -> int:
        """`Names.free`, and the local copies with it; how many bytes of the store that was."""
        with self.trouble():
            freed = self.names.free(paths, grace_seconds)
        for entry in freed:
            if entry.path.startswith("manifests/"):
                discard(self._cache / Path(entry.path).stem)
        return sum(entry.bytes for entry in freed)

    @contextmanager
    def trouble(self, disk: Path | None = None) -> Iterator[None]:
        """Raise what goes wrong inside as what it means; what is absent stays a FileNotFoundError.

        `disk` is the local folder that is written to, when that is not the store.
        """
        try:
            yield
        except UnderstudyError:
            raise
        except Exception as error:
            if known := meaning(error, self.url, disk or self.url):
                raise known from error
            raise

    def _delete(self, refs: Callable[[], list[str]]) -> int:
        with self.trouble():
            self._version.check()
            paths = refs()
            bytes_of_them = self.names.reached(paths)
            self.place.remove(paths)
        return self.free(bytes_of_them)

    def _parts(self, folder: Path, linked: bool) -> tuple[Artifact, dict[str, _Part]]:
        """The artifact that `folder` is, and what must be in the store for it, by path."""
        parts: dict[str, _Part] = {}
        files = {}
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            sha, size = digest(file), file.stat().st_size
            files[file.relative_to(folder).as_posix()] = {"sha256": sha, "bytes": size}
            parts[blob(sha)] = _Part(size, self._uploading(file, blob(sha), linked))
        if not folder.is_dir():  # somebody tidied up under us: an empty artifact would be found for ever
            raise Transient(f"There is nothing to store in {folder}", "Was it removed meanwhile?")
        listed = json.dumps(files, sort_keys=True, indent=1).encode()
        artifact = Artifact(sha256=hashlib.sha256(listed).hexdigest())
        parts[manifest(artifact)] = _Part(len(listed), lambda: self.place.write(manifest(artifact), listed))
        return artifact, parts

    def _uploading(self, file: Path, path: str, linked: bool) -> Callable[[], None]:
        return lambda: self.place.upload(file, path, linked=linked)

    def _stays(self, path: str, changed: float) -> bool:
        """Whether a blob or manifest that was found is not swept for a good while."""
        return self.place.renew(path) or time.time() - changed < GRACE_SECONDS / 2

    def _complete(self, parts: dict[str, _Part]) -> None:
        """Write again what was removed since it was found. `parts` have a name now, so this comes to an end."""
        missing = list(parts)
        while missing:
            self.names.let_removals_end(parts)
            there = self.place.entries(parts)
            missing = [path for path, part in parts.items() if path not in there or there[path].bytes != part.bytes]
            for path in missing:
                check()
                parts[path].write()

    def _files(self, artifact: Artifact) -> dict[str, Listed]:
        """What the manifest says; raises FileNotFoundError when the store lacks it."""
        with self.trouble():
            listed = self.place.read(manifest(artifact))
        if hashlib.sha256(listed).hexdigest() != artifact.sha256:
            raise Invalid(
                f"Artifact {artifact.sha256} in {self.url} does not match its digest", "The store is damaged."
            )
        return {name: Listed(file["sha256"], file["bytes"]) for name, file in json.loads(listed).items()}

    def _download(self, artifact: Artifact, target: Path) -> None:
        """Make `target`; raises FileNotFoundError when the store lacks something."""
        files = self._files(artifact)
        partial = self._cache / f".{artifact.sha256}.{os.getpid()}-{secrets.token_hex(4)}"
        try:
            with self.trouble(self._cache):
                partial.mkdir(parents=True)
                for name, expected in files.items():
                    check()
                    copy = partial / name
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    self.place.download(blob(expected.sha256), copy)
                    if copy.stat().st_size != expected.bytes or digest(copy) != expected.sha256:
                        raise Invalid(
                            f"Blob {expected.sha256} in {self.url} does not match its digest",
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


@dataclass(frozen=True)
class _Part:
    """A blob or manifest of an artifact that is being put."""

    bytes: int
    write: Callable[[], None]


def _place(url: str) -> Place:
    if url.startswith("file:"):
        return Folder(Path(unquote(url.removeprefix("file://"))))
    from understudy.store.s3 import S3  # a store in a folder needs no s3fs

    return S3(url)


def _touch(folder: Path) -> bool:
    """Whether the folder is there; if so it counts as used just now."""
    try:
        os.utime(folder)
    except FileNotFoundError:
        return False
    return True
