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
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel, ValidationError

from understudy.errors import Invalid, NotFound, disk_full
from understudy.store import keys
from understudy.store.artifacts import ArtifactStore

Purpose = Literal["assistants", "batch", "evals", "fine-tune", "user_data", "vision"]
MAX_NAME_BYTES = 200
CHUNK = 1 << 20
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

    def add(self, name: str, content: BinaryIO, purpose: str) -> FileCard:
        """Store a file; raises `Invalid` when it is empty or too large."""
        name = safe_name(name)
        # A draft lies where the store may share its bytes, so that they are on the disk once.
        with self.store.draft() as draft:
            try:
                file_id, size = _copy(content, draft / "file", name)
            except OSError as error:
                raise disk_full(error, draft.parent) or error from error
            self.check_size(size)
            if not size:
                raise Invalid(f"{name} is empty (0 bytes)", "Was it written to the end?")
            self.store.put(keys.file(file_id), draft / "file", linked=True)
            if self.store.find(keys.file_card(file_id)) is None:
                card = _StoredCard(id=file_id, bytes=size, created_at=int(time.time()), filename=name, purpose=purpose)
                (draft / "about").mkdir()
                (draft / "about" / CARD).write_text(card.model_dump_json(), encoding="utf-8")
                self.store.put(keys.file_card(file_id), draft / "about", linked=True)
        return self.get(file_id)  # of the first upload, if there was one before

    def check_size(self, size: int) -> None:
        """Raises `Invalid` when a file of `size` bytes is too large."""
        if size > self.max_bytes:
            raise Invalid(f"The file has more than the {self.max_bytes:,} bytes that one upload may have", "Split it.")

    def get(self, file_id: str) -> FileCard:
        """What is known about a file; raises `NotFound`."""
        artifact = self.store.find(keys.file_card(file_id))
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
        cards = []
        for key in self.store.keys(keys.FILE_CARDS):
            try:
                cards.append(self.get(key.removeprefix(f"{keys.FILE_CARDS}/")))
            except NotFound:  # deleted meanwhile
                pass
        return sorted(cards, key=lambda card: (-card.created_at, card.id))

    def delete(self, file_id: str) -> int:
        """Forget a file, and free what nothing else names: how many bytes that was. Raises `NotFound`.

        Runs that made their datasets from it keep them.
        """
        self.get(file_id)
        return self.store.delete(keys.file_card(file_id), keys.file(file_id))


def _copy(content: BinaryIO, folder: Path, name: str) -> tuple[str, int]:
    """Write `content` as `name` into a new folder; the id of the file, and its size."""
    digest, size = hashlib.sha256(name.encode() + b"\0"), 0
    folder.mkdir()
    with (folder / name).open("wb") as copy:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
            size += copy.write(chunk)
    return f"file-{digest.hexdigest()[:24]}", size


def _not_found(file_id: str) -> NotFound:
    return NotFound(f"There is no file `{file_id}`", "GET /v1/files lists those that exist.")


def safe_name(name: str) -> str:
    """The last part of a path, without control characters, short enough for any file system; its suffix is kept."""
    name = re.sub(r"[\x00-\x1f\x7f]", "", re.split(r"[/\\]", name)[-1]).encode("utf-8", "replace").decode().strip(". ")
    stem, suffix = Path(name).stem, Path(name).suffix[:20]
    while len((stem + suffix).encode()) > MAX_NAME_BYTES:
        stem = stem[:-1]
    return stem + suffix or "upload"
