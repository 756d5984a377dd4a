"""Where the files of a store lie: what `artifacts.py` and `sweep.py` ask of a folder (`folder.py`) or of S3 (`s3.py`).

Paths are relative to the store's root, like `blobs/<sha256>`. A place knows nothing of artifacts, and raises what its
library raises; `trouble.py` says what that means.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Entry:
    """A file that is there."""

    path: str
    bytes: int
    changed: float
    """Seconds since the epoch, by the place's own clock."""


class Place(Protocol):
    """All that is written appears whole, at once, and is safe from a loss of power when the call returns."""

    def read(self, path: str) -> bytes:
        """A small file; raises FileNotFoundError."""

    def read_all(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Many small files; those that are not there are left out."""

    def entries(self, paths: Iterable[str]) -> dict[str, Entry]:
        """What is known about these files; those that are not there are left out."""

    def below(self, folder: str) -> list[Entry]:
        """Every file under `folder`, at any depth."""

    def children(self, folder: str) -> list[str]:
        """Names of the files directly in `folder`."""

    def write(self, path: str, content: bytes) -> None:
        """Write a small file, or write it again."""

    def create(self, path: str, content: bytes) -> None:
        """Write a small file unless one is there, in one step: of several writers one succeeds, and none is told."""

    def upload(self, file: Path, path: str, *, linked: bool) -> None:
        """Copy `file` to `path`, in pieces; where it may be `linked`, perhaps without a second copy on the disk."""

    def download(self, path: str, file: Path) -> None:
        """Copy `path` to `file`, in pieces; raises FileNotFoundError. A failure may leave `file` half written."""

    def renew(self, path: str) -> bool:
        """Give a file the present as its time of change, without its bytes; False where that cannot be done."""

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files, if they are there."""
