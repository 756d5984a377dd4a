"""The artifact store: finished folders, immutable, content-addressed, in a folder (file://) or in S3 (s3://).

    <root>/blobs/<sha256>            one file's bytes
    <root>/manifests/<sha256>.json   {path: {sha256, bytes}} of a folder; its own digest is the artifact's
    <root>/refs/<key>.json           the artifact that a key names, written last: present = complete, never changed

So an interrupted `put` leaves only blobs that the next one finds, two writers of the same folder write the same
bytes, and of two writers of one key with different bytes the first wins and both get the winner.

Nothing is ever seen half written. An object of S3 appears when its upload is complete; a file is written under another
name in the same folder and then renamed. A ref is created only where there is none, in one step: by a hard link in a
folder, by `If-None-Match: *` in S3 (Amazon's since 2024, MinIO; a server that ignores the header cannot hold a store).
What a kill leaves behind takes room and is never read: `*.partial` files in a folder; in S3 the parts of an unfinished
multipart upload, which a lifecycle rule should remove.

Region, endpoint and credentials of S3 come from where AWS's own tools take them: the `AWS_*` variables, `~/.aws`, the
machine's role. Does not delete bytes: `drop` forgets a name."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import fsspec

from understudy.belt.contracts import Artifact
from understudy.errors import Invalid
from understudy.store.trouble import http_status, meaning

TRANSFER = {"chunksize": 16 << 20, "max_concurrency": 4}
"""Bytes per part of a large blob on its way to or from S3, and how many parts are in memory at once."""


class ArtifactStore(Protocol):
    """What stations need of a store.

    if artifact := store.find(f"runs/{run}/adapters/{variant}"):
        ...                                     # done before: emit again, do no work
    artifact = store.put(f"runs/{run}/adapters/{variant}", folder)
    folder = store.fetch(artifact)              # a local, read-only folder
    """

    def find(self, key: str) -> Artifact | None:
        """The artifact that `key` names, or None when it is not complete."""

    def put(self, key: str, folder: Path) -> Artifact:
        """Store `folder` under `key` and return the artifact; the first complete one under a key stays for ever."""

    def fetch(self, artifact: Artifact) -> Path:
        """A local folder with the artifact's files, verified. Treat it as read-only: it is shared."""

    def keys(self, prefix: str) -> list[str]:
        """All complete keys of the form `<prefix>/<name>`, sorted."""

    def drop(self, key: str) -> None:
        """Forget the key, if it is there; the bytes stay, because another key may name them too."""


class FsspecArtifactStore:
    """The store at a `file://` or `s3://` URL, with a local cache; safe to share between threads.

    Raises `Transient` when the store does not answer, `Fatal` when a disk is full or the store refuses us (no bucket,
    no right, no credentials), `Invalid` when bytes are not what was promised or the URL is of another kind.
    """

    def __init__(self, url: str, cache: Path) -> None:
        if not url.startswith(("file:///", "s3://")):
            raise Invalid(
                f"`{url}` cannot be an artifact store", "UNDERSTUDY_ARTIFACTS is file:///folder or s3://bucket/prefix."
            )
        self._url = url.rstrip("/")
        self._is_folder = url.startswith("file:")
        with self._trouble(cache):
            # Listings kept by one client hide what another has written since.
            self._fs, self._root = fsspec.core.url_to_fs(self._url, use_listings_cache=False, skip_instance_cache=True)
        self._cache = cache
        self._fetching: dict[str, threading.Lock] = {}

    def find(self, key: str) -> Artifact | None:
        try:
            with self._trouble():
                content = self._fs.cat_file(self._path("refs", key))
        except FileNotFoundError:
            return None
        return Artifact.model_validate_json(content)

    def put(self, key: str, folder: Path) -> Artifact:
        with self._trouble():
            files = {
                path.relative_to(folder).as_posix(): {"sha256": self._put_blob(path), "bytes": path.stat().st_size}
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            manifest = json.dumps(files, sort_keys=True, indent=1).encode()
            digest = hashlib.sha256(manifest).hexdigest()
            self._write(self._path("manifests", digest), lambda to: self._fs.pipe_file(to, manifest))
            artifact = Artifact(uri=f"{self._url}/manifests/{digest}.json", sha256=digest)
            self._create(self._path("refs", key), artifact.model_dump_json().encode())
        return self.find(key) or artifact  # None: somebody dropped the key at once

    def fetch(self, artifact: Artifact) -> Path:
        target = self._cache / artifact.sha256
        with self._fetching.setdefault(artifact.sha256, threading.Lock()):
            if not target.is_dir():
                try:
                    with self._trouble(self._cache):
                        self._download(artifact, target)
                except FileNotFoundError:
                    raise Invalid(
                        f"Artifact {artifact.uri} is not in the store {self._url}, or not all of it",
                        "Was the store moved or emptied?",
                    ) from None
        return target

    def keys(self, prefix: str) -> list[str]:
        try:
            with self._trouble():
                names = self._fs.ls(self._path("refs", prefix).removesuffix(".json"), detail=False)
        except FileNotFoundError:
            return []
        return sorted(
            f"{prefix}/{name.rsplit('/', 1)[-1].removesuffix('.json')}" for name in names if name.endswith(".json")
        )

    def drop(self, key: str) -> None:
        try:
            with self._trouble():
                self._fs.rm_file(self._path("refs", key))
        except FileNotFoundError:
            pass

    def _put_blob(self, path: Path) -> str:
        digest = _digest(path)
        blob = f"{self._root}/blobs/{digest}"
        if not self._fs.exists(blob):
            self._write(blob, lambda to: self._fs.put_file(str(path), to, **TRANSFER))
        return digest

    def _download(self, artifact: Artifact, target: Path) -> None:
        manifest = self._fs.cat_file(self._path("manifests", artifact.sha256))
        if hashlib.sha256(manifest).hexdigest() != artifact.sha256:
            raise Invalid(f"Artifact {artifact.uri} does not match its digest", "The store is damaged.")
        partial = self._cache / f".{artifact.sha256}.{os.getpid()}-{secrets.token_hex(4)}"
        try:
            partial.mkdir(parents=True)
            for name, entry in json.loads(manifest).items():
                copy = partial / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(f"{self._root}/blobs/{entry['sha256']}", str(copy), **TRANSFER)
                if _digest(copy) != entry["sha256"]:
                    raise Invalid(
                        f"Blob {entry['sha256']} in {self._url} does not match its digest", "The store is damaged."
                    )
            try:
                partial.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was first, with the same bytes
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _write(self, path: str, write: Callable[[str], object]) -> None:
        """Let `write` make the file at `path`, whose bytes follow from its name: who writes it again changes nothing."""
        if self._is_folder:
            with _beside(Path(path)) as partial:
                write(str(partial))
                partial.replace(path)
        else:
            write(path)

    def _create(self, path: str, content: bytes) -> None:
        """Write `content` at `path` unless something is there; of several writers one succeeds, in one step."""
        try:
            if self._is_folder:
                with _beside(Path(path)) as partial:
                    partial.write_bytes(content)
                    Path(path).hardlink_to(partial)
            else:
                self._fs.pipe_file(path, content, mode="create")
        except FileExistsError:
            pass
        except OSError as error:
            if http_status(error) != 412:  # a server that does not say which condition failed
                raise

    def _path(self, kind: str, name: str) -> str:
        if ".." in name.split("/"):
            raise Invalid(f"`{name}` cannot name an artifact")
        return f"{self._root}/{kind}/{name}.json"

    @contextmanager
    def _trouble(self, disk: Path | None = None) -> Iterator[None]:
        """Raise what goes wrong inside as what it means; what is absent stays a FileNotFoundError.

        `disk` is the local folder that is written to, when that is not the store.
        """
        try:
            yield
        except Exception as error:
            if known := meaning(error, self._url, disk or self._url):
                raise known from error
            raise


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Another name in the folder of `path`, gone at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)
