"""What tests of several services need. Imported by tests only."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from understudy.belt.contracts import Message, Progress
from understudy.store.artifacts import FsspecArtifactStore


def local_store(folder: Path) -> FsspecArtifactStore:
    """A real artifact store in `folder`."""
    return FsspecArtifactStore((folder / "artifacts").resolve().as_uri(), folder / "cache")


def drain(outputs: Iterable[Message]) -> list[Message]:
    """Run a handler to its end; what it yielded apart from progress."""
    return [message for message in outputs if not isinstance(message, Progress)]
