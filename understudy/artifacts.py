"""The artifact store: finished folders, immutable, content-addressed, on any fsspec file system.

    <root>/blobs/<sha256>            one file's bytes
    <root>/manifests/<sha256>.json   {path: {sha256, bytes}} of a folder; its own digest is the artifact's
    <root>/refs/<key>.json           the artifact that a key names, written last: present = complete, never changed

So an interrupted `put` leaves only blobs that the next one finds, two writers of the same folder write the same
bytes, and two writers of one key with different bytes are told apart: the first wins and both get the winner. Does
not delete bytes: `drop` forgets a name."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import fsspec

from understudy.contracts import Artifact
from understudy.errors import Invalid, Transient, disk_full

CHUNK = 1 << 20


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
    """The store on an fsspec URL, with a local cache.

    Raises `Fatal` when a disk is full, `Transient` when the store does not answer, `Invalid` when bytes are not what was promised.
    """

    def __init__(self, url: str, cache: Path, **options: Any) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url, **options)
        self._url = url.rstrip("/")
        self._cache = cache

    def find(self, key: str) -> Artifact | None:
        try:
            with _trouble(self._url):
                return Artifact.model_validate_json(self._fs.cat_file(self._path("refs", key)))
        except FileNotFoundError:
            return None

    def put(self, key: str, folder: Path) -> Artifact:
        with _trouble(self._url):
            files = {
                path.relative_to(folder).as_posix(): {"sha256": self._put_blob(path), "bytes": path.stat().st_size}
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            manifest = json.dumps(files, sort_keys=True, indent=1).encode()
            digest = hashlib.sha256(manifest).hexdigest()
            self._write(self._path("manifests", digest), manifest)
            artifact = Artifact(uri=f"{self._url}/manifests/{digest}.json", sha256=digest)
            if winner := self.find(key):
                return winner
            self._write(self._path("refs", key), artifact.model_dump_json().encode())
        return self.find(key) or artifact

    def fetch(self, artifact: Artifact) -> Path:
        target = self._cache / artifact.sha256
        if target.is_dir():
            return target
        with _trouble(self._url):
            try:
                manifest = self._fs.cat_file(self._path("manifests", artifact.sha256))
            except FileNotFoundError:
                raise Invalid(
                    f"Artifact {artifact.uri} is not in the store {self._url}", "Was the store moved or emptied?"
                ) from None
            if hashlib.sha256(manifest).hexdigest() != artifact.sha256:
                raise Invalid(f"Artifact {artifact.uri} does not match its digest", "The store is damaged.")
            partial = self._cache / f".{artifact.sha256}.{os.getpid()}-{secrets.token_hex(4)}"
            try:
                for name, entry in json.loads(manifest).items():
                    self._fetch_blob(entry["sha256"], partial / name)
                partial.mkdir(parents=True, exist_ok=True)  # an empty artifact
                partial.rename(target)
            except OSError:
                shutil.rmtree(partial, ignore_errors=True)
                if not target.is_dir():  # else another process was first, with the same bytes
                    raise
        return target

    def keys(self, prefix: str) -> list[str]:
        with _trouble(self._url):
            folder = self._path("refs", prefix).removesuffix(".json")
            self._fs.invalidate_cache(folder)
            try:
                names = [str(path).rsplit("/", 1)[-1] for path in self._fs.ls(folder, detail=False)]
            except FileNotFoundError:
                return []
        return sorted(f"{prefix}/{name.removesuffix('.json')}" for name in names if name.endswith(".json"))

    def drop(self, key: str) -> None:
        with _trouble(self._url):
            try:
                self._fs.rm_file(self._path("refs", key))
            except FileNotFoundError:
                pass

    def _put_blob(self, path: Path) -> str:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        blob = f"{self._root}/blobs/{digest}"
        if not self._fs.exists(blob):
            partial = f"{blob}.{secrets.token_hex(8)}.partial"
            self._fs.makedirs(f"{self._root}/blobs", exist_ok=True)
            self._fs.put_file(str(path), partial)
            self._fs.mv(partial, blob)
        return digest

    def _fetch_blob(self, digest: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        seen = hashlib.sha256()
        with self._fs.open(f"{self._root}/blobs/{digest}", "rb") as source, target.open("wb") as copy:
            while chunk := source.read(CHUNK):
                seen.update(chunk)
                copy.write(chunk)
        if seen.hexdigest() != digest:
            raise Invalid(f"Blob {digest} in {self._url} does not match its digest", "The store is damaged.")

    def _write(self, path: str, content: bytes) -> None:
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        partial = f"{path}.{secrets.token_hex(8)}.partial"
        self._fs.pipe_file(partial, content)
        self._fs.mv(partial, path)

    def _path(self, kind: str, name: str) -> str:
        if ".." in name.split("/"):
            raise Invalid(f"`{name}` cannot name an artifact")
        return f"{self._root}/{kind}/{name}.json"


@contextmanager
def _trouble(where: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if full := disk_full(error, where):
            raise full from error
        raise Transient(f"The artifact store {where} did not answer: {error}") from error
