"""Data sets of the Hugging Face hub: which of their files are wanted, and those files, on this machine.

    name, paths = Hub(max_bytes=...).train_files("hf:owner/name@revision")

Asks the hub alone (HF_ENDPOINT, with HF_TOKEN) for what a repository has at a revision, and fetches data files and the README from
there: nothing that a README says makes us ask anybody else. What was fetched stays in the hub's cache, half a file too. Does not
choose among files (`layout.py`) nor read tables (`sources.py`).
"""

from __future__ import annotations

import itertools
import logging
import re
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from services.datagen.layout import README, train_files
from understudy.errors import Invalid, Transient, disk_full
from understudy.interrupt import Interrupted, awaited
from understudy.recipe import HUB

MOST_LISTED, MOST_FETCHED = 50_000, 2_000
"""Files of a repository, and of a split."""
MOST_README = 256 * 1024
"""Bytes; a longer README is not read."""
TELLING = 5.0
"""Seconds between two lines of the log about a file under way."""
_PINNED = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})@(?P<revision>[A-Za-z0-9][\w./-]{0,127})", re.ASCII
)
T = TypeVar("T")
log = logging.getLogger(__name__)


class Pinned(NamedTuple):
    """A data set at a revision."""

    repository: str
    revision: str


def pinned(source: str) -> Pinned:
    """What `hf:owner/name@revision` names; raises `Invalid` for anything else."""
    found = _PINNED.fullmatch(source.removeprefix(HUB))
    if found and ".." not in source and "//" not in source:
        return Pinned(found["repository"], found["revision"])
    if "@" not in source:
        raise Invalid(
            f"Source `{source}` carries no revision",
            f"Pin it: `{HUB}owner/name@<commit>`, so that the run can be repeated.",
        )
    raise Invalid(f"Source `{source}` is not of the form `{HUB}owner/name@<commit>`", "Folders and addresses are none.")


@dataclass(frozen=True)
class Hub:
    """The hub, within bounds."""

    max_bytes: int
    """Of the files of one source in sum."""

    def train_files(self, source: str, suffixes: Collection[str]) -> list[tuple[str, Path]]:
        """(name in the repository, copy on this machine) of each file of the `train` split, in order.

        Raises `Invalid` when the source cannot be had or is too large, before anything of it is fetched, `Transient` when the hub does
        not answer.
        """
        at = pinned(source)
        sizes = _told(source, lambda: _listed(at))
        if len(sizes) > MOST_LISTED:
            raise Invalid(f"`{source}` has more than {MOST_LISTED:,} files", "Take a smaller data set.")
        readme = ""
        if 0 < sizes.get(README, 0) <= MOST_README:
            readme = _fetched(source, at, README).read_text(encoding="utf-8", errors="replace")
        try:
            chosen = train_files(sizes.keys(), readme, suffixes)
        except Invalid as error:
            raise Invalid(f"`{source}`: {error.what[0].lower()}{error.what[1:]}", error.remedy) from None
        total = sum(sizes[path] for path in chosen)
        if total > self.max_bytes or len(chosen) > MOST_FETCHED:
            raise Invalid(
                f"`{source}` has {total:,} bytes in {len(chosen):,} files, more than the {self.max_bytes:,} (in at most "
                f"{MOST_FETCHED:,} files) allowed",
                "Take a part of it: download that, and upload it as a file.",
            )
        return [(path, _fetched(source, at, path)) for path in chosen]


def _listed(at: Pinned) -> dict[str, int]:
    """Bytes of every file, of one more than `MOST_LISTED` at most."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    tree = HfApi().list_repo_tree(at.repository, recursive=True, revision=at.revision, repo_type="dataset")
    files = (entry for entry in tree if isinstance(entry, RepoFile))
    return {file.path: file.size for file in itertools.islice(files, MOST_LISTED + 1)}


def _fetched(source: str, at: Pinned, path: str) -> Path:
    """A copy of one file, taken up where an earlier one stopped."""
    from huggingface_hub import hf_hub_download
    from tqdm import tqdm  # type: ignore[import-untyped]

    stop = threading.Event()

    class Telling(tqdm):  # type: ignore[misc]
        """What the library tells how far it is: that goes to the log, and ends it when nobody waits any more."""

        def __init__(self, *given: Any, **about: Any) -> None:
            super().__init__(*given, **(about | {"disable": True}))
            self.far, self.said = int(about.get("initial") or 0), time.monotonic()

        def update(self, n: float | None = 1) -> None:
            if stop.is_set():
                raise Interrupted
            self.far += int(n or 0)
            if time.monotonic() - self.said > TELLING:
                self.said = time.monotonic()
                log.info("%s/%s: %d of %s bytes are here", source, path, self.far, self.total)

    def fetch() -> str:
        return str(hf_hub_download(at.repository, path, repo_type="dataset", revision=at.revision, tqdm_class=Telling))

    log.info("fetching %s/%s", source, path)
    try:
        return Path(_told(source, fetch))
    finally:
        stop.set()


def _told(source: str, ask: Callable[[], T]) -> T:
    """What the hub answers; whoever waits can be told to stop. Raises `Invalid` where it refuses, `Transient` where it does not answer."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return awaited(ask)
    except HFValidationError:
        raise Invalid(f"The Hugging Face hub has no data set of a name like `{source}`", "Check the name.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status >= 500 or status in (408, 429):
            raise Transient(f"The Hugging Face hub answered {status} for `{source}`") from error
        raise Invalid(
            f"The Hugging Face hub refuses `{source}` (status {status})",
            "Check name and revision, and HF_TOKEN where datagen runs if it is given only to those who agreed to something.",
        ) from error
    except Exception as error:  # the library raises a dozen unrelated types, with paths of this machine in their words
        if disk_full(error, "the hub's cache"):
            raise
        log.warning("%s: %s", source, error)
        raise Transient(f"The Hugging Face hub did not answer for `{source}` ({type(error).__name__})") from error
