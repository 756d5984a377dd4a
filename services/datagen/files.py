"""Uploaded files in the artifact store: `files/<id>` is a folder with the one file, `file-cards/<id>` what the API says
about it.

The id follows from name and content, so a file that is uploaded twice is there once. Two keys, because stations take
the file's bytes by its digest, and the time of the upload must not be part of that. Does not look into files
(`sources.py`).
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel

from understudy.errors import Invalid, disk_full
from understudy.service.web import NotFound
from understudy.store.artifacts import ArtifactStore

Purpose = Literal["assistants", "batch", "evals", "fine-tune", "user_data", "vision"]
MAX_NAME_BYTES = 200
CHUNK = 1 << 20


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


@dataclass(frozen=True)
class Files:
    """The uploaded files. All methods block: call them from a worker thread."""

    store: ArtifactStore
    max_bytes: int

    def add(self, name: str, content: BinaryIO, purpose: str) -> FileCard:
        """Store a file; raises `Invalid` when it is empty or too large."""
        name = safe_name(name)
        try:
            with tempfile.TemporaryDirectory(prefix="upload-") as scratch:
                return self._add(Path(scratch), name, content, purpose)
        except OSError as error:
            raise disk_full(error, tempfile.gettempdir()) or error from error

    def _add(self, scratch: Path, name: str, content: BinaryIO, purpose: str) -> FileCard:
        folder, digest, size = scratch / "file", hashlib.sha256(name.encode() + b"\0"), 0
        folder.mkdir()
        with (folder / name).open("wb") as copy:
            while chunk := content.read(CHUNK):
                digest.update(chunk)
                size += copy.write(chunk)
        self.check_size(size)
        if not size:
            raise Invalid(f"{name} is empty (0 bytes)", "Was it written to the end?")
        file_id = f"file-{digest.hexdigest()[:24]}"
        card = FileCard(id=file_id, bytes=size, created_at=int(time.time()), filename=name, purpose=purpose)
        self.store.put(f"files/{file_id}", folder)
        about = scratch / "card"
        about.mkdir()
        (about / "card.json").write_text(card.model_dump_json(), encoding="utf-8")
        shutil.rmtree(folder)
        self.store.put(f"file-cards/{file_id}", about)
        return self.get(file_id)  # of the first upload, if there was one before

    def check_size(self, size: int) -> None:
        """Raises `Invalid` when a file of `size` bytes is too large."""
        if size > self.max_bytes:
            raise Invalid(f"The file has more than the {self.max_bytes:,} bytes that one upload may have", "Split it.")

    def get(self, file_id: str) -> FileCard:
        """What is known about a file; raises `NotFound`."""
        artifact = self.store.find(f"file-cards/{file_id}")
        if artifact is None:
            raise NotFound(f"There is no file `{file_id}`", "GET /v1/files lists those that exist.")
        return FileCard.model_validate_json((self.store.fetch(artifact) / "card.json").read_text(encoding="utf-8"))

    def path(self, file_id: str) -> Path:
        """A local copy of a file; read-only. Raises `NotFound`."""
        artifact = self.store.find(f"files/{self.get(file_id).id}")
        if artifact is None:
            raise NotFound(f"There is no file `{file_id}`", "GET /v1/files lists those that exist.")
        (path,) = self.store.fetch(artifact).iterdir()
        return path

    def all(self) -> list[FileCard]:
        """Every file, newest first."""
        cards = [self.get(key.removeprefix("file-cards/")) for key in self.store.keys("file-cards")]
        return sorted(cards, key=lambda card: (-card.created_at, card.id))

    def delete(self, file_id: str) -> None:
        """Forget a file; runs that made their datasets from it keep them. Raises `NotFound`."""
        self.get(file_id)
        self.store.drop(f"file-cards/{file_id}")
        self.store.drop(f"files/{file_id}")


def safe_name(name: str) -> str:
    """The last part of a path, without control characters, short enough for any file system; its suffix is kept."""
    name = re.sub(r"[\x00-\x1f\x7f]", "", re.split(r"[/\\]", name)[-1]).encode("utf-8", "replace").decode().strip(". ")
    stem, suffix = Path(name).stem, Path(name).suffix[:20]
    while len((stem + suffix).encode()) > MAX_NAME_BYTES:
        stem = stem[:-1]
    return stem + suffix or "upload"
