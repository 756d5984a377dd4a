"""Sources: every format gives the same rows, and everything that can be wrong is one clear paragraph."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from services.datagen.sources import Bounds, Row, Source, Sources
from understudy.errors import Invalid
from understudy.testing import local_store, uploaded

ROWS = [{"text": 'Größe: "gut", €5', "label": 1}, {"text": "line one\nline two", "label": 0}]
EXPECTED = [{"text": 'Größe: "gut", €5', "label": "1"}, {"text": "line one\nline two", "label": "0"}]


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(local_store(tmp_path), Bounds(max_bytes=1_000_000, max_line=10_000))


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def opened(sources: Sources, path: str) -> Source:
    return sources.open(uploaded(sources.store, Path(path).name, Path(path).read_bytes()))


def read(sources: Sources, path: str, *columns: str) -> list[Row]:
    return list(opened(sources, path).rows(columns or ("text", "label")))


CSV = 'text,label,extra\n"Größe: ""gut"", €5",1,x\n"line one\nline two",0,y\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", CSV),
        ("bom.csv", b"\xef\xbb\xbf" + CSV.encode()),
        ("crlf.csv", CSV.replace("\n", "\r\n").replace("one\r\n", "one\n")),
        ("semicolon.csv", 'text;label\n"Größe: ""gut"", €5";1\n"line one\nline two";0\n'),
        ("t.TSV", 'text\tlabel\n"Größe: ""gut"", €5"\t1\n\n"line one\nline two"\t0\n'),
        ("t.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n\n"),
        ("t.json", json.dumps(ROWS, indent=2)),
        ("lines.json", "\n".join(map(json.dumps, ROWS))),
    ],
)
def test_every_text_format_gives_the_same_rows(
    tmp_path: Path, sources: Sources, name: str, content: str | bytes
) -> None:
    rows = read(sources, write(tmp_path / name, content))
    assert [row.values for row in rows] == EXPECTED
    assert [row.number for row in rows] == [0, 1]


def test_parquet_gives_the_same_rows(tmp_path: Path, sources: Sources) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    assert [row.values for row in read(sources, str(tmp_path / "t.parquet"))] == EXPECTED


def test_cells_that_are_no_text_become_text(tmp_path: Path, sources: Sources) -> None:
    row = {"float": 1.0, "half": 0.5, "none": None, "bool": True, "list": ["é", 1]}
    source = write(tmp_path / "t.jsonl", json.dumps(row) + '\n{"float": "\\ud800"}')
    rows = read(sources, source, *row)
    assert rows[0].values == {"float": "1", "half": "0.5", "none": "", "bool": "True", "list": '["é", 1]'}
    assert rows[1].values["float"] == "?", "a lone surrogate cannot be written as UTF-8"


BAD = [
    ("empty.csv", b"", ["empty.csv is empty (0 bytes)"]),
    ("header.csv", b"text,label\n", ["header.csv has no rows"]),
    ("blank.jsonl", b"\n\n", ["blank.jsonl"]),
    ("latin.csv", "text,label\nok,1\ncaf\xe9,0\n".encode("latin-1"), ["latin.csv:3", "byte 19", "UTF-8"]),
    ("utf16.csv", "text,label\nok,1\n".encode("utf-16"), ["utf16.csv:1", "byte 0", "UTF-8"]),
    ("latin.jsonl", b'{"text": "a", "label": 1}\n{"text": "\xff"}', ["latin.jsonl:2", "byte 36"]),
    ("latin.json", b'[{"text": "\xff"}]', ["latin.json", "byte 11"]),
    ("cut.jsonl", b'{"text": "a", "label": 1}\n{"text": "b", "la', ["cut.jsonl:2", "complete?"]),
    ("cut.json", b'[{"text": "a", "label": 1},\n{"text": ', ["cut.json:2", "complete?"]),
    ("list.jsonl", b'{"text": "a", "label": 1}\n[1]\n', ["list.jsonl:2", "not a JSON object"]),
    ("item.json", b'[{"text": "a", "label": 1}, 2]', ["item 1", "not an object"]),
    ("deep.jsonl", b"[" * 5000, ["deep.jsonl:1"]),
    ("ragged.csv", b"text,label\nok,1\none, two,0\n", ["ragged.csv:3", "3 fields", "header has 2", "double quotes"]),
    ("quote.csv", b'text,label\nok,1\n"never closed,0\n', ["quote.csv:3", "not valid CSV"]),
    ("twice.csv", b"text,text\na,b\n", ["two columns of the same name"]),
    ("long.csv", b"text,label\n" + b"x" * 20_000 + b",1\n", ["long.csv:2", "longer than 10,000 bytes"]),
    ("bad.parquet", b"PAR1 no", ["bad.parquet is not a readable Parquet file"]),
    ("table.xlsx", b"PK", [".xlsx is not a known table format", ".csv"]),
    ("noname", b"x", ["no suffix"]),
    ("columns.csv", b"txt,Label\na,1\n", ["`text` or `label`", "`txt`, `Label`", "did you mean `txt`", "columns:"]),
]


@pytest.mark.parametrize(("name", "content", "said"), BAD, ids=[bad[0] for bad in BAD])
def test_a_bad_file_is_told_in_one_paragraph(
    tmp_path: Path, sources: Sources, name: str, content: bytes, said: list[str]
) -> None:
    with pytest.raises(Invalid) as error:
        read(sources, write(tmp_path / name, content))
    message = str(error.value)
    assert all(part in message for part in said), message
    assert "\n" not in message


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    small = Sources(local_store(tmp_path), Bounds(max_bytes=10))
    with pytest.raises(Invalid, match=r"11 bytes, more than the 10 allowed"):
        opened(small, write(tmp_path / "t.csv", "text\nabcdef"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a" * 5000]}), tmp_path / "t.parquet", compression="zstd")
    packed = (tmp_path / "t.parquet").stat().st_size
    source = opened(Sources(local_store(tmp_path), Bounds(max_bytes=packed + 1)), str(tmp_path / "t.parquet"))
    with pytest.raises(Invalid, match="unpacks to"):
        list(source.rows(["text"]))


PATHS = ["t.csv", "/etc/passwd", "~/t.csv", "../t.csv", "file:///etc/passwd", "file-../../x", "x" * 300, "a\0b.csv", ""]


@pytest.mark.parametrize("there", [True, False])
def test_no_path_is_opened_and_nothing_is_told_of_what_lies_there(
    tmp_path: Path, sources: Sources, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks may be far away, and a message may come from anybody: whether a file is there makes no difference."""
    monkeypatch.chdir(tmp_path)
    if there:
        write(tmp_path / "t.csv", "text,label\na,1\n")
        write(tmp_path / "tweets.csv", "text,label\na,1\n")
    for path in [*PATHS, str(tmp_path / "t.csv"), str(tmp_path / "twets.csv"), str(tmp_path)]:
        with pytest.raises(Invalid) as caught:
            sources.open(path)
        assert str(caught.value).startswith(
            f"`{path}` is neither an uploaded file nor a data set of the hub. Upload the"
        )
        assert "tweets" not in str(caught.value)


def test_an_uploaded_file_is_called_by_its_own_name(sources: Sources) -> None:
    source = sources.open(uploaded(sources.store, "my tweets.csv", b"text,label\nhello,1\n"))
    assert [row.values for row in source.rows(["text"])] == [{"text": "hello"}]
    with pytest.raises(Invalid, match=r"^my tweets\.csv has no column `body`"):
        source.rows(["body"])
    with pytest.raises(Invalid, match="no uploaded file file-0000"):
        sources.open("file-000000000000000000000000")


def test_real_files_are_read_whole(real_data: Path, tmp_path: Path) -> None:
    sources = Sources(local_store(tmp_path), Bounds(max_bytes=1 << 30))
    assert len(read(sources, str(real_data / "tweets" / "tweets.csv"), "text", "feeling")) == 24_000
    assert len(read(sources, str(real_data / "alpaca" / "alpaca_random_9k.json"), "instruction", "output")) == 9_229
    assert len(read(sources, str(real_data / "imdb" / "reviews.csv"), "text", "label")) == 6_000
