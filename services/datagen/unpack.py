"""Unpacks a Parquet file, as a process of its own with little memory; knows only pyarrow and the standard library.

    python -P unpack.py FILE MAX_VALUE MAX_BYTES [COLUMN NUMBER ...]

Without numbers it writes the names of the columns, a JSON list, else a JSON list of these columns' values for every row:
a line each. What is wrong with the file is one last line, {"error": "..."}.

A Parquet file of a few hundred bytes may promise gigabytes, in its page headers, its dictionaries, its compression, its
nesting; what it takes is known only once it is taken. So the system sets the bound (RLIMIT_DATA), and whatever the
library does with a hostile file, it does to nobody else.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from typing import Any

MEMORY = 384 * 1024**2
"""Bytes that this process may have, the library's 120 MB among them."""
CPU_SECONDS = 600
BATCH_ROWS = 16
"""Rows decoded at once: each may have values of the largest length."""


class Wrong(Exception):
    """This file cannot be read; the message says why."""


def unpack(path: str, max_value: int, max_bytes: int, numbers: Sequence[int]) -> Iterator[Any]:
    """What is to be written, line by line."""
    import pyarrow
    import pyarrow.parquet as parquet

    pyarrow.set_cpu_count(1)
    # Not mapped and not buffered ahead: only the pages at hand are in memory.
    file = parquet.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=1 << 20)
    names = file.schema_arrow.names
    if not numbers:
        yield names
        return
    wanted = [names[number] for number in numbers]
    groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    inside = tuple(f"{name}." for name in wanted)
    # What it says of itself: dictionaries and lies are counted below, and by whoever reads.
    size = sum(chunk.total_uncompressed_size for chunk in chunks if f"{chunk.path_in_schema}.".startswith(inside))
    if size > max_bytes:
        raise Wrong(f"unpacks to {size:,} bytes, more than the {max_bytes:,} allowed")
    row = 0
    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=wanted, use_threads=False):
        columns = [batch.column(name) for name in wanted]
        for name, column in zip(wanted, columns, strict=True):
            if longest(column) > max_value:
                raise Wrong(f"has a value of more than {max_value:,} bytes in column `{name}`, near row {row}")
        yield from map(list, zip(*(column.to_pylist() for column in columns), strict=True))
        row += batch.num_rows


def longest(column: Any) -> int:
    """Bytes of the longest text in a column; 0 where its values are no text."""
    import pyarrow
    import pyarrow.compute

    types = pyarrow.types
    values = column.dictionary if types.is_dictionary(column.type) else column
    kinds = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    if not any(kind(values.type) for kind in kinds):
        return 0
    return pyarrow.compute.max(pyarrow.compute.binary_length(values)).as_py() or 0


def written(value: object) -> object:
    """What JSON has no words for, as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def main(path: str, max_value: str, max_bytes: str, *numbers: str) -> None:
    """Write the lines. A reader that has enough goes, and so do we."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = sys.stdout.buffer
    try:
        for line in unpack(path, int(max_value), int(max_bytes), [int(number) for number in numbers]):
            out.write(json.dumps(line, ensure_ascii=False, default=written).encode(errors="replace") + b"\n")
        out.flush()
        return
    except BrokenPipeError:
        os._exit(1)
    except Wrong as error:
        said = str(error)
    except MemoryError:
        said = f"takes more than {MEMORY // 1024**2} MiB of memory to unpack"
    except Exception as error:  # the library raises a dozen unrelated types for a damaged file
        said = f"is not a readable Parquet file: {' '.join(str(error).split())[:300]}"
    out.write(json.dumps({"error": said}).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
