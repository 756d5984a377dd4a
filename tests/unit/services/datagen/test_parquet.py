"""Parquet: what a file of a few hundred bytes unpacks to is paid for by a process of its own, and by no more than a bound."""

from __future__ import annotations

import datetime
import decimal
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet as parquet
import pytest

from services.datagen import unpack
from services.datagen.parquet import read_parquet
from services.datagen.tables import Values
from understudy.errors import Invalid
from understudy.interrupt import Interrupted, interruptible
from understudy.settings import PROJECT

LINE, ALL = 1024**2, 64 * 1024**2
"""Bounds, as datagen has them by default or less."""
OURS, THEIRS = 60, unpack.MEMORY // 1024**2 + 50
"""MiB that the reading process may grow by, and that the unpacking one may have with its programs' code."""

MEASURE = """
import resource, sys
from pathlib import Path
from services.datagen.parquet import read_parquet
from understudy.errors import Invalid
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
said, rows = "read", 0
try:
    for _ in read_parquet(Path(sys.argv[1]), "t", int(sys.argv[2]), int(sys.argv[3])).rows(["text"]):
        rows += 1
except Invalid as error:
    said = str(error)
peak = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
ours, theirs = (kib // 1024 for kib in peak)
print(ours - before // 1024, theirs, rows, said, sep="|")
"""


def dictionary(path: Path) -> None:
    """A gigabyte of rows that are all the same entry of a dictionary."""
    text = pyarrow.DictionaryArray.from_arrays(numpy.zeros(1024, "int32"), ["x" * 1_000_000]).cast(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": text}), path, compression="zstd")


def long_entry(path: Path) -> None:
    """The same with an entry that is longer than a value may be."""
    text = pyarrow.DictionaryArray.from_arrays(numpy.zeros(4, "int32"), ["x" * 2_000_000]).cast(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": text}), path, compression="zstd")


def one_string(path: Path) -> None:
    """One value of four hundred megabytes."""
    parquet.write_table(pyarrow.table({"text": ["y" * 400_000_000]}), path, compression="zstd", use_dictionary=False)


def nested(path: Path) -> None:
    """One row that is a list of twenty million entries."""
    items = pyarrow.nulls(20_000_000, pyarrow.int8())
    lists = pyarrow.ListArray.from_arrays(pyarrow.array([0, 20_000_000], pyarrow.int32()), items)
    parquet.write_table(pyarrow.table({"text": lists}), path, compression="zstd")


def lying_header(path: Path) -> None:
    """A page whose header says that it unpacks to two gigabytes."""
    parquet.write_table(pyarrow.table({"text": ["y" * 100_000]}), path, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    # After `PAR1` a Thrift struct begins: field 1 (page type, 0), field 2 (size unpacked) as a zigzag varint.
    assert content[4:7] == b"\x15\x00\x15"
    end = next(at for at in range(7, 20) if content[at] < 0x80) + 1
    unpacked = b"\xfe\xff\xff\xff\x0f"
    size = end - 7
    content[7:end] = unpacked[-size:] if size >= 5 else b"\xfe" + b"\xff" * (size - 2) + b"\x7f"
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (dictionary, "unpacks to more than the 67,108,864 bytes allowed"),
        (long_entry, "value of more than 1,048,576 bytes in column `text`"),
        (one_string, "unpacks to 400,0"),
        (nested, "MiB of memory to unpack"),
        (lying_header, "not a readable Parquet file"),
    ],
)
def test_a_hostile_file_takes_no_more_than_a_bound(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    path = tmp_path / "t.parquet"
    # In a process of its own: what this one has had counts for ever.
    writer = (
        f"from pathlib import Path; import {__name__.rpartition('.')[2]} as m; m.{make.__name__}(Path({str(path)!r}))"
    )
    subprocess.run([sys.executable, "-c", writer], check=True, cwd=Path(__file__).parent, env=_environment())
    assert path.stat().st_size < 200_000
    ours, theirs, _, said = _measured(path)
    assert says in said
    assert "\n" not in said
    assert ours < OURS, f"{ours} MiB for a file of {path.stat().st_size:,} bytes"
    assert theirs < THEIRS, f"{theirs} MiB for a file of {path.stat().st_size:,} bytes"


def test_sizes_that_lie_do_not_help(tmp_path: Path) -> None:
    """What the footer says of a column's size is looked at first, but not believed."""
    path = tmp_path / "t.parquet"
    _written(one_string, path)
    ours, theirs, _, said = _measured(path, allowed=1 << 40)
    assert "MiB of memory to unpack" in said
    assert ours < OURS
    assert theirs < THEIRS


def test_damage_anywhere_is_one_sentence(tmp_path: Path) -> None:
    """Whatever the library does with it, a crash included."""
    table = pyarrow.table({"text": [f"remark {number}" for number in range(500)], "label": ["a", "b"] * 250})
    parquet.write_table(table, tmp_path / "good.parquet")
    content = (tmp_path / "good.parquet").read_bytes()
    dice = random.Random(7)
    for number in range(12):
        broken = bytearray(content)
        for _ in range(8):
            broken[dice.randrange(4, len(broken))] = dice.randrange(256)
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(broken)
        said = _said(path)
        assert not said or (said.startswith("t.parquet ") and len(said) < 500)


def test_columns_that_nobody_needs_are_not_read(tmp_path: Path) -> None:
    """Not even when they could not be."""
    path = tmp_path / "t.parquet"
    table = pyarrow.table({"junk": ["z" * 3_000_000], "text": ["good"], "a.b": [1.0]})
    parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    assert _rows(path, "text") == [{"text": "good"}]
    assert _rows(path, "a.b", "text", "missing") == [{"text": "good", "a.b": 1.0}]
    with pytest.raises(
        Invalid, match=r"t\.parquet has a value of more than 1,048,576 bytes in column `junk`, near row 0"
    ):
        _rows(path, "junk")


def test_every_kind_of_value_arrives(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    day = datetime.date(2024, 2, 29)
    row = {
        "text": 'é"\n\u2028',
        "none": None,
        "whole": 2**62,
        "part": 0.5,
        "yes": True,
        "list": ["a", None],
        "dict": {"k": [1]},
        "bytes": b"caf\xe9",
        "day": day,
        "price": decimal.Decimal("1.50"),
    }
    parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    expected = {**row, "bytes": "caf\ufffd", "day": "2024-02-29", "price": "1.50"}
    assert _rows(path, *row) == [expected]


def test_the_order_of_the_rows_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    numbers = list(range(10_000))
    parquet.write_table(pyarrow.table({"n": numbers, "text": ["x"] * 10_000}), path, row_group_size=777)
    assert [row["n"] for row in _rows(path, "n")] == numbers


def test_two_columns_of_a_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array([1])] * 2, names=["a", "a"]), path)
    with pytest.raises(Invalid, match="two columns of the same name"):
        _rows(path, "a")


def test_who_reads_no_further_leaves_no_process(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"text": ["x" * 1000] * 100_000}), path)
    rows = iter(read_parquet(path, "t.parquet", LINE, ALL).rows(["text"]))
    next(rows)
    assert _children()
    rows.close()  # type: ignore[attr-defined]
    assert not _children()
    stop = threading.Event()
    rows = iter(read_parquet(path, "t.parquet", LINE, ALL).rows(["text"]))
    began = time.monotonic()
    with interruptible(stop):
        next(rows)
        stop.set()
        with pytest.raises(Interrupted):
            list(rows)
    assert time.monotonic() - began < 2
    assert not _children()


def _written(make: Callable[[Path], None], path: Path) -> None:
    """Make the file in a process of its own, with memory of its own."""
    program = f"from test_parquet import *; {make.__name__}(Path({str(path)!r}))"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent, env=_environment())


def _said(path: Path) -> str:
    """What is wrong with it; empty when it can be read."""
    try:
        assert len(_rows(path, "text")) <= 500
    except Invalid as error:
        return str(error)
    return ""


def _rows(path: Path, *columns: str) -> list[Values]:
    return list(read_parquet(path, "t.parquet", LINE, ALL).rows(columns))


def _measured(path: Path, allowed: int = ALL) -> tuple[int, int, int, str]:
    command = [sys.executable, "-c", MEASURE, str(path), str(LINE), str(allowed)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=_environment(), timeout=100)
    ours, theirs, rows, said = done.stdout.strip().split("|", 3)
    return int(ours), int(theirs), int(rows), said


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PROJECT)}


def _children() -> list[str]:
    """Processes that unpack for this one."""
    me = Path("/proc/self")
    found = [pid for task in (me / "task").iterdir() for pid in (task / "children").read_text().split()]
    return [pid for pid in found if b"unpack.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
