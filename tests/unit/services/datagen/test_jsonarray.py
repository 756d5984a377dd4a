"""JSON arrays: read element by element they give what the standard library gives whole, in the memory of one element."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from services.datagen import jsonarray
from services.datagen.jsonarray import read_json
from services.datagen.tables import Values
from understudy.errors import Invalid
from understudy.settings import PROJECT

LINE = 10_000
VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text(),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
ROWS = some.lists(some.dictionaries(some.text(max_size=5), VALUES, max_size=3), max_size=8)


def rows(path: Path) -> list[Values]:
    return list(read_json(path, "t.json", LINE, 1 << 30).rows([]))


@given(ROWS, some.booleans(), some.sampled_from([None, 0, 3]), some.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_the_same_as_whole(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[Values], plain: bool, indent: int | None, piece: int
) -> None:
    """Wherever a piece of the file ends."""
    path = tmp_path_factory.mktemp("array") / "t.json"
    path.write_text(json.dumps(wanted, ensure_ascii=plain, indent=indent), encoding="utf-8", errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jsonarray, "PIECE", piece)
        assert rows(path) == wanted


@pytest.mark.parametrize("piece", [1, 7, 1 << 16])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[{"a": 1},\n {"a": }]', "t.json:2 is not valid JSON: Expecting value (column 8)"),
        ('[{"a": 1}\n {"a": 2}]', "t.json:2 is not valid JSON: Expecting ',' delimiter (column 2)"),
        ('[{"a": 1},\n\n]', "t.json:3 is not valid JSON: Expecting value (column 1)"),
        ('[{"a": 1}] {', "t.json:1 is not valid JSON: Extra data (column 12)"),
        ('[{"a": 1},\n{"a": "b', "t.json:2 is not valid JSON: Unterminated string starting at (column 7)"),
        ('[{"a": 1},\n{"a": tru', "t.json:2 is not valid JSON: Expecting value (column 7)"),
        ('[{"a": 1},\n', "t.json:2 is not valid JSON: Expecting value (column 1)"),
        ('[{"a": "x\ny"}]', "t.json:1 is not valid JSON: Invalid control character at (column 10)"),
        ('[\n{"a": 1}, 2]', "t.json: item 1 of the array is not an object"),
        ('[{"a": ' + "[" * 5000, "t.json is not JSON that can be read"),
        ('[{"a": ' + "1" * 5000 + "}]", "t.json is not JSON that can be read"),
        ('[{"a": 1},{"a": "' + "x" * 20_000 + '"}]', "item 1 of the array is longer than 10,000 characters"),
        ('[{"a": "' + "x" * 20_000, "item 0 of the array is longer than 10,000 characters"),
        ("[" + ",".join(f'{{"k{n}": 1, "l{n + 200}": 1}}' for n in range(2)), "Expecting ',' delimiter"),
    ],
)
def test_what_is_wrong_has_its_line_wherever_a_piece_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, says: str, piece: int
) -> None:
    monkeypatch.setattr(jsonarray, "PIECE", piece)
    path = tmp_path / "t.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(Invalid) as error:
        rows(path)
    assert says in str(error.value)


@pytest.mark.parametrize("piece", [1, 5, 1 << 16])
def test_a_byte_that_is_not_utf8_has_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(jsonarray, "PIECE", piece)
    path = tmp_path / "t.json"
    path.write_bytes(b'\xef\xbb\xbf[{"a": "\xc3\xa9"}, {"a": "\xff"}]')
    with pytest.raises(Invalid, match=r"not UTF-8 text \(byte 24 of the file\)"):
        rows(path)


def test_memory_is_that_of_a_row(tmp_path: Path) -> None:
    """Of the small objects that take most: a whole array of them is some twenty times its file."""
    path = tmp_path / "t.json"
    path.write_text("[" + ",".join(['{"a": []}'] * 2_000_000) + "]")
    program = """
import resource, sys
from pathlib import Path
from services.datagen.jsonarray import read_json
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = sum(1 for _ in read_json(Path(sys.argv[1]), "t", 1 << 20, 1 << 30).rows([]))
print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], check=True, capture_output=True, text=True, cwd=PROJECT
    )
    read, mib = map(int, done.stdout.split())
    assert read == 2_000_000
    assert mib < 10


def test_a_table_has_a_number_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps([{f"{row}.{column}": 1 for column in range(500)} for row in range(50)]))
    with pytest.raises(Invalid, match="more than 10,000 columns"):
        rows(path)
