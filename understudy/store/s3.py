"""A store's files in S3, or in what speaks its protocol, by s3fs.

An object appears when its upload is complete. What a kill leaves behind are the parts of an unfinished multipart upload,
which a lifecycle rule of the bucket should remove. `create` needs `If-None-Match: *` (Amazon's since 2024, MinIO; a
server that ignores the header cannot hold a store).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import wait
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.callbacks import Callback

from understudy.interrupt import Interrupted, check
from understudy.store.folder import flush
from understudy.store.place import Entry
from understudy.store.trouble import absent, http_status

TRANSFER = {"chunksize": 16 << 20, "max_concurrency": 4}
"""Bytes per part of a large object on its way, and how many parts are in memory at once."""
AT_ONCE = 16
"""Small requests under way at once."""
LOOK_EVERY = 0.5
"""Seconds between two looks at whether a transfer is still wanted."""
PATIENCE = 4.0
"""Seconds in which an interrupted upload may take its parts back."""

T = TypeVar("T")


class _NotWanted(Exception):
    """Ends a transfer from within; an ordinary exception, which s3fs takes as a reason to take back what it sent."""


class _Watch(Callback):  # type: ignore[misc]
    """Ends a transfer after the part that is under way, once it is not wanted any more."""

    wanted = True

    def relative_update(self, inc: int = 1) -> None:
        if not self.wanted:
            raise _NotWanted


class S3:
    """The place at an `s3://` URL. See `Place` for what its methods promise."""

    def __init__(self, url: str) -> None:
        # Listings kept by one client hide what another has written since.
        self._fs, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)

    def read(self, path: str) -> bytes:
        content: bytes = self._wait(self._fs._cat_file(self._at(path)))
        return content

    def read_all(self, paths: Iterable[str]) -> dict[str, bytes]:
        content = self._each(self._read_or_none, paths)
        return {path: found for path, found in content.items() if found is not None}

    def entries(self, paths: Iterable[str]) -> dict[str, Entry]:
        return {path: entry for path, entry in self._each(self._entry_or_none, paths).items() if entry}

    def below(self, folder: str) -> list[Entry]:
        try:
            found = self._wait(self._fs._find(self._at(folder), detail=True))
        except FileNotFoundError as error:
            if absent(error):
                return []
            raise
        return [self._entry(info) for info in found.values() if info["type"] == "file"]

    def children(self, folder: str) -> list[str]:
        try:
            found = self._wait(self._fs._ls(self._at(folder), detail=True))
        except FileNotFoundError as error:
            if absent(error):
                return []
            raise
        return [info["name"].rsplit("/", 1)[-1] for info in found if info["type"] == "file"]

    def write(self, path: str, content: bytes) -> None:
        self._wait(self._fs._pipe_file(self._at(path), content))

    def create(self, path: str, content: bytes) -> None:
        try:
            self._wait(self._fs._pipe_file(self._at(path), content, mode="create"))
        except FileExistsError:
            pass
        except OSError as error:
            if http_status(error) != 412:  # a server that does not say which condition failed
                raise

    def upload(self, file: Path, path: str, *, linked: bool) -> None:
        watch = _Watch()
        self._wait(self._fs._put_file(str(file), self._at(path), callback=watch, **TRANSFER), watch)

    def download(self, path: str, file: Path) -> None:
        watch = _Watch()
        self._wait(self._fs._get_file(self._at(path), str(file), callback=watch, **TRANSFER), watch)
        flush(file)

    def renew(self, path: str) -> bool:
        return False

    def remove(self, paths: Iterable[str]) -> None:
        # One request each: the request for many at once needs a checksum that not every server agrees on.
        self._each(lambda path: self._fs._rm_file(self._at(path)), paths)

    async def _read_or_none(self, path: str) -> bytes | None:
        try:
            content: bytes = await self._fs._cat_file(self._at(path))
        except FileNotFoundError as error:
            if absent(error):
                return None
            raise
        return content

    async def _entry_or_none(self, path: str) -> Entry | None:
        try:
            info = await self._fs._info(self._at(path))
        except FileNotFoundError as error:
            if absent(error):
                return None
            raise
        return self._entry(info) if info["type"] == "file" else None

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _entry(self, info: dict[str, Any]) -> Entry:
        return Entry(info["name"].removeprefix(f"{self._root}/"), info["size"], info["LastModified"].timestamp())

    def _each(self, call: Callable[[str], Coroutine[Any, Any, T]], paths: Iterable[str]) -> dict[str, T]:
        """What `call` returns for every path, several under way at once."""

        async def each() -> dict[str, T]:
            turns = asyncio.Semaphore(AT_ONCE)

            async def one(path: str) -> T:
                async with turns:
                    return await call(path)

            every = list(paths)
            return dict(zip(every, await asyncio.gather(*map(one, every)), strict=True))

        return self._wait(each())

    def _wait(self, coroutine: Coroutine[Any, Any, T], watch: _Watch | None = None) -> T:
        """What `coroutine` returns, run in fsspec's own thread; it is given up when this thread's work shall stop."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._fs.loop)
        try:
            while not future.done():
                check()
                wait([future], LOOK_EVERY)
        except Interrupted:
            if watch:
                watch.wanted = False
                wait([future], PATIENCE)
            future.cancel()
            raise
        return future.result()
