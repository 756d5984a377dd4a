"""Uploaded files in the artifact store: `keys.file` is a folder with the file alone, `keys.file_card` what the API says
about it.

The id follows from name and content, so a file that is uploaded twice is there once. Two artifacts, because stations
take the file's bytes by its digest, and the time of the upload must not be part of that. Does not look into files
(`sources.py`).
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from understudy.errors import Invalid, NotFound, disk_full
from understudy.recipe import FILE_ID
from understudy.store import keys
from understudy.store.artifacts import ArtifactStore

Purpose = Literal["assistants", "batch", "evals", "fine-tune", "user_data", "vision"]
MAX_NAME_BYTES = 200
CARD = "card.json"


class FileCard(BaseModel):
    """OpenAI's file object."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"] = "processed"
    status_details: str | None = None


class _StoredCard(FileCard):
    """A card as it lies in the store. Readers ignore what they do not know, `format` included, and need only the rest."""

    format: str = "understudy.file.v1"


@dataclass(frozen=True)
class Files:
    """The uploaded files. All methods block: call them from a worker thread."""

    store: ArtifactStore
    max_bytes: int
    _known: dict[str, FileCard] = field(default_factory=dict)
    """Cards that were listed before: a list must not read every one again."""

    @contextmanager
    def arriving(self) -> Iterator[Arriving]:
        """Takes up a file piece by piece, where the store may share its bytes; what is not kept inside is gone at the end."""
        with self.store.draft() as draft:
            yield Arriving(self, draft)

    def check_size(self, size: int) -> None:
        """Raises `Invalid` when a file of `size` bytes is too large."""
        if size > self.max_bytes:
            raise Invalid(f"The file has more than the {self.max_bytes:,} bytes that one upload may have", "Split it.")

    def get(self, file_id: str) -> FileCard:
        """What is known about a file; raises `NotFound`."""
        artifact = self.store.find(keys.file_card(file_id)) if FILE_ID.fullmatch(file_id) else None
        if artifact is None:
            raise _not_found(file_id)
        try:
            return FileCard.model_validate_json((self.store.fetch(artifact) / CARD).read_text(encoding="utf-8"))
        except ValidationError as error:
            raise Invalid(
                f"The card of the file `{file_id}` cannot be read: {error.errors()[0]['msg']}",
                "Was it uploaded to a newer version?",
            ) from None

    def path(self, file_id: str) -> Path:
        """A local copy of a file; read-only. Raises `NotFound`."""
        artifact = self.store.find(keys.file(self.get(file_id).id))
        if artifact is None:
            raise _not_found(file_id)
        (path,) = self.store.fetch(artifact).iterdir()
        return path

    def all(self) -> list[FileCard]:
        """Every file, newest first."""
        ids = [key.removeprefix(f"{keys.FILE_CARDS}/") for key in self.store.keys(keys.FILE_CARDS)]
        for gone in self._known.keys() - set(ids):
            self._known.pop(gone, None)
        for file_id in ids:
            if file_id not in self._known:
                try:
                    self._known[file_id] = self.get(file_id)
                except NotFound:  # deleted meanwhile
                    pass
        there = (self._known.get(file_id) for file_id in ids)
        return sorted((card for card in there if card), key=lambda card: (-card.created_at, card.id))

    def delete(self, file_id: str) -> int:
        """Forget a file, and free what nothing else names: how many bytes that was. Raises `NotFound`.

        Runs that made their datasets from it keep them.
        """
        self.get(file_id)
        self._known.pop(file_id, None)
        return self.store.delete(keys.file_card(file_id), keys.file(file_id))


@dataclass
class Arriving:
    """An upload under way: `begin`, `write` and `write`, `keep`. All but `begin` block."""

    files: Files
    draft: Path
    name: str = ""
    size: int = 0
    _digest: Any = None

    def begin(self, name: str) -> None:
        """The name that the file has where it comes from."""
        self.name = safe_name(name)
        self._digest = hashlib.sha256(self.name.encode() + b"\0")

    def write(self, pieces: Iterable[bytes]) -> None:
        """Take up more of the file; raises `Invalid` when it is too large."""
        try:
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("ab") as file:
                for piece in pieces:
                    self._digest.update(piece)
                    self.size += file.write(piece)
        except OSError as error:
            raise disk_full(error, self.draft.parent) or error from error
        self.files.check_size(self.size)

    def keep(self, purpose: str) -> FileCard:
        """Store the file; raises `Invalid` when it is empty."""
        if not self.size:
            raise Invalid(f"{self.name} is empty (0 bytes)", "Was it written to the end?")
        store, file_id = self.files.store, f"file-{self._digest.hexdigest()[:24]}"
        store.put(keys.file(file_id), self._path.parent, linked=True)
        if store.find(keys.file_card(file_id)) is None:
            card = _StoredCard(
                id=file_id, bytes=self.size, created_at=int(time.time()), filename=self.name, purpose=purpose
            )
            about = self.draft / "about"
            about.mkdir()
            (about / CARD).write_text(card.model_dump_json(), encoding="utf-8")
            store.put(keys.file_card(file_id), about, linked=True)
        return self.files.get(file_id)  # of the first upload, if there was one before

    @property
    def _path(self) -> Path:
        return self.draft / "file" / self.name


def _not_found(file_id: str) -> NotFound:
    return NotFound(f"There is no file `{file_id}`", "GET /v1/files lists those that exist.")


def safe_name(name: str) -> str:
    """The last part of a path, without control characters, short enough for any file system; its suffix is kept."""
    name = re.sub(r"[\x00-\x1f\x7f]", "", re.split(r"[/\\]", name)[-1]).encode("utf-8", "replace").decode().strip(". ")
    stem, suffix = Path(name).stem, Path(name).suffix[:20]
    while len((stem + suffix).encode()) > MAX_NAME_BYTES:
        stem = stem[:-1]
    return stem + suffix or "upload"
