"""Apache Parquet as a table. The file is unpacked by a process of its own (`unpack.py`), because its size says nothing
about what it takes; here only lines of text arrive, each of a bounded length and no more than a bounded number of bytes.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from services.datagen import unpack
from services.datagen.tables import Table, Values
from understudy.errors import Invalid
from understudy.interrupt import check

SIDE_BY_SIDE = 4
"""Files unpacked at once."""
ENVIRONMENT = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
"""An allocator that takes no more than it gives."""
INHERITED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
"""No keys: whoever made the file may have found a hole in the library."""
PIECE = 1 << 16
REMEDY = "Is the file complete? If so, write it as JSONL."
_turns = threading.BoundedSemaphore(SIDE_BY_SIDE)


def read_parquet(path: Path, name: str, max_line: int, max_bytes: int) -> Table:
    """Nested columns arrive as lists and dicts. A row has `max_line` bytes at most, all of them `max_bytes`."""
    (columns,) = _unpacked(path, name, max_line, max_bytes, [])
    names = [str(column) for column in columns]
    if len(set(names)) != len(names):
        raise Invalid(f"{name} has two columns of the same name: {', '.join(names)}", "Rename one of them.")

    def rows(wanted: Collection[str]) -> Iterator[Values]:
        there = [column for column in names if column in wanted]
        for values in _unpacked(path, name, max_line, max_bytes, [names.index(column) for column in there]):
            yield dict(zip(there, values, strict=True))

    return Table(tuple(names), rows)


def _unpacked(path: Path, name: str, max_line: int, max_bytes: int, numbers: Sequence[int]) -> Iterator[list[object]]:
    """What `unpack.py` writes; it ends with whoever reads here."""
    while not _turns.acquire(timeout=0.2):
        check()
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", unpack.__file__, str(path), str(max_line), str(max_bytes), *map(str, numbers)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT | {key: os.environ[key] for key in INHERITED if key in os.environ},
        )
        try:
            for line in _lines(process, name, max_line, max_bytes):
                values = json.loads(line)
                if isinstance(values, dict):
                    raise Invalid(f"{name} {values['error']}", REMEDY)
                yield values
            if process.wait():
                raise Invalid(f"{name} is not a readable Parquet file: reading it ends in a crash", REMEDY)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    finally:
        _turns.release()


def _lines(process: subprocess.Popen[bytes], name: str, max_line: int, max_bytes: int) -> Iterator[bytes]:
    """Whole lines as they come; an interruption is heard while waiting for them."""
    assert process.stdout is not None
    descriptor, rest, size = process.stdout.fileno(), b"", 0
    signs = select.poll()
    signs.register(descriptor, select.POLLIN)
    while True:
        check()
        while not signs.poll(200):
            check()
        piece = os.read(descriptor, PIECE)
        size += len(piece)
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
        if not piece:
            return
        if len(rest) > max_line:
            raise Invalid(f"{name} has a row of more than {max_line:,} bytes", REMEDY)
        if size > max_bytes:
            raise Invalid(f"{name} unpacks to more than the {max_bytes:,} bytes allowed", "Split it.")
