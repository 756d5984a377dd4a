"""Sources: every format gives the same rows, and everything that can be wrong is one clear paragraph."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from services.datagen.files import Files
from services.datagen.sources import Row, Sources
from understudy.errors import Invalid, Transient
from understudy.interrupt import Interrupted, interruptible
from understudy.testing import local_store

ROWS = [{"text": 'Größe: "gut", €5', "label": 1}, {"text": "line one\nline two", "label": 0}]
EXPECTED = [{"text": 'Größe: "gut", €5', "label": "1"}, {"text": "line one\nline two", "label": "0"}]


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(local_store(tmp_path), max_bytes=1_000_000, max_line=10_000)


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(sources: Sources, source: str, *columns: str) -> list[Row]:
    return list(sources.open(source).rows(columns or ("text", "label")))


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
    small = Sources(local_store(tmp_path), max_bytes=10)
    with pytest.raises(Invalid, match=r"11 bytes, more than the 10 allowed"):
        small.open(write(tmp_path / "t.csv", "text\nabcdef"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a" * 5000]}), tmp_path / "t.parquet", compression="zstd")
    packed = (tmp_path / "t.parquet").stat().st_size
    source = Sources(local_store(tmp_path), max_bytes=packed + 1).open(str(tmp_path / "t.parquet"))
    with pytest.raises(Invalid, match="unpacks to"):
        list(source.rows(["text"]))


def test_a_missing_file_is_named_and_nothing_that_lies_beside_it(tmp_path: Path, sources: Sources) -> None:
    """Who asks may be far away: neither files nor folders of this machine are told."""
    write(tmp_path / "tweets.csv", "text\na\n")
    said = []
    for folder in ("", "nowhere/"):
        with pytest.raises(Invalid) as caught:
            sources.open(f"{tmp_path}/{folder}twets.csv")
        said.append(str(caught.value).replace(folder, ""))
    assert said[0].startswith(f"There is no file {tmp_path}/twets.csv. Upload it")
    assert said[0] == said[1]
    assert "tweets" not in said[0]


def test_an_uploaded_file_is_called_by_its_own_name(tmp_path: Path) -> None:
    store = local_store(tmp_path)
    card = Files(store, max_bytes=1000).add("my tweets.csv", io.BytesIO(b"text,label\nhello,1\n"), "fine-tune")
    source = Sources(store, max_bytes=1000).open(card.id)
    assert [row.values for row in source.rows(["text"])] == [{"text": "hello"}]
    with pytest.raises(Invalid, match=r"^my tweets\.csv has no column `body`"):
        source.rows(["body"])
    with pytest.raises(Invalid, match="no uploaded file file-0000"):
        Sources(store, max_bytes=1000).open("file-000000000000000000000000")


def test_a_hub_dataset_is_read_and_must_be_pinned(
    tmp_path: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local folder in the hub's layout goes through the same `datasets.load_dataset` as a hub id."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "reviews"
    folder.mkdir()
    write(folder / "train.csv", "text,label\ngood,1\nbad,0\n")
    write(folder / "test.csv", "text,label\nso,1\n")
    assert [row.values for row in read(sources, f"hf:{folder}")] == [
        {"text": "good", "label": "1"},
        {"text": "bad", "label": "0"},
    ]
    with pytest.raises(Invalid, match=r"carries no revision.*hf:owner/name@<commit>"):
        sources.open("hf:owner/name")


def test_who_waits_for_the_hub_can_be_told_to_stop(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    stop, asked, over = threading.Event(), threading.Event(), threading.Event()

    def load(*_: object, **__: object) -> None:
        asked.set()
        over.wait(30)
        raise ConnectionError("gone")

    monkeypatch.setattr(datasets, "load_dataset", load)
    threading.Timer(0.5, stop.set).start()
    began = time.monotonic()
    with interruptible(stop), pytest.raises(Interrupted):
        sources.open("hf:owner/name@abc")
    assert asked.is_set()
    assert time.monotonic() - began < 1.5
    over.set()
    with pytest.raises(Transient, match="did not answer for `owner/name`: gone"):
        sources.open("hf:owner/name@abc")


def test_what_no_file_can_be_called_is_told_like_a_missing_one(sources: Sources) -> None:
    for source in ("x" * 300 + ".csv", "~nobody-of-that-name/t.csv", "a\0b.csv"):
        with pytest.raises(Invalid, match="There is no file"):
            sources.open(source)


def test_real_files_are_read_whole(real_data: Path, tmp_path: Path) -> None:
    sources = Sources(local_store(tmp_path), max_bytes=1 << 30)
    assert len(read(sources, str(real_data / "tweets" / "tweets.csv"), "text", "feeling")) == 24_000
    assert len(read(sources, str(real_data / "alpaca" / "alpaca_random_9k.json"), "instruction", "output")) == 9_229
    assert len(read(sources, str(real_data / "imdb" / "reviews.csv"), "text", "label")) == 6_000
