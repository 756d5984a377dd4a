"""Sources on the hub, against a server that speaks its routes: real rows come through, and no README makes us ask anybody else."""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from services.datagen import hub as module
from services.datagen.sources import Bounds, Sources
from tests.unit.services.datagen.hub_server import COMMIT, HubServer, running
from understudy.errors import Invalid, Transient
from understudy.interrupt import Interrupted, interruptible
from understudy.testing import local_store

SOURCE = f"hf:owner/name@{COMMIT}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running(monkeypatch, str(tmp_path / "hub")) as server:
        yield server


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(local_store(tmp_path), Bounds(max_bytes=5_000_000))


@pytest.fixture
def tweets(real_data: Path) -> list[dict[str, str]]:
    with (real_data / "tweets" / "tweets.csv").open(encoding="utf-8", newline="") as file:
        return list(itertools.islice(csv.DictReader(file), 600))


def as_csv(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["text", "feeling"], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    content = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), content)
    return content.getvalue().to_pybytes()


def as_jsonl(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read(sources: Sources, source: str = SOURCE) -> list[dict[str, str]]:
    return [row.values for row in sources.open(source).rows(["text", "feeling"])]


@pytest.mark.parametrize(("kind", "written"), [("csv", as_csv), ("parquet", as_parquet), ("jsonl", as_jsonl)])
def test_real_rows_of_every_format_are_read_in_order(
    hub: HubServer, sources: Sources, tweets: list[dict[str, str]], kind: str, written: object
) -> None:
    assert callable(written)
    halves = {f"data/train-{n:05}-of-00002.{kind}": written(tweets[n * 300 : (n + 1) * 300]) for n in (0, 1)}
    hub.repositories["owner/name"] = halves | {f"data/test-00000-of-00001.{kind}": written(tweets[:9]), "x.py": b"boom"}
    assert read(sources) == [{"text": row["text"], "feeling": row["feeling"]} for row in tweets]
    assert set(hub.fetched()) == set(halves), "what is not wanted is not fetched"
    hub.asked.clear()
    assert len(read(sources)) == 600
    assert hub.fetched() == [], "it is in the cache"


README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: {}
---
"""


@pytest.mark.parametrize(
    "path", ["http://127.0.0.1:{}/secret", "file://{}", "../../../../{}", "hf://datasets/other/private/x.csv"]
)
def test_a_hostile_readme_makes_us_ask_nobody_and_read_nothing_else(
    hub: HubServer, sources: Sources, tweets: list[dict[str, str]], tmp_path: Path, path: str
) -> None:
    hub.repositories["owner/name"] = {
        "README.md": README.format(path.format(tmp_path / "secret.csv")).encode(),
        "train.csv": as_csv(tweets),
    }
    hub.repositories["other/private"] = {"x.csv": b"text,feeling\nsecret,1\n"}
    (tmp_path / "secret.csv").write_text("text,feeling\nsecret,1\n")
    rows = read(sources)
    assert len(rows) == 600
    assert "secret" not in {row["text"] for row in rows}
    assert {unquoted.split("/resolve/")[0] for _, unquoted, _ in hub.asked if "/resolve/" in unquoted} == {
        "/datasets/owner/name"
    }
    assert set(hub.fetched()) == {"README.md", "train.csv"}


def test_a_readme_chooses_among_the_files_that_are_there(
    hub: HubServer, sources: Sources, tweets: list[dict[str, str]]
) -> None:
    hub.repositories["owner/name"] = {
        "README.md": README.format("parts/*.csv").encode(),
        "train.csv": as_csv(tweets),
        "parts/a.csv": as_csv(tweets[:5]),
        "parts/b.csv": as_csv(tweets[5:7]),
    }
    assert len(read(sources)) == 7


def test_a_source_that_is_too_large_in_sum_is_refused_before_it_is_fetched(hub: HubServer, sources: Sources) -> None:
    hub.repositories["owner/name"] = {f"train/{n}.csv": b"text,feeling\n" + b"x" * 2_000_000 for n in range(3)}
    with pytest.raises(Invalid, match=r"has 6,000,039 bytes in 3 files, more than the 5,000,000"):
        sources.open(SOURCE)
    assert hub.fetched() == []
    hub.repositories["owner/name"] = {"README.md": b"x" * 300_000, "train.csv": b"text,feeling\na,1\n"}
    assert len(read(sources)) == 1
    assert hub.fetched() == ["train.csv"], "nor is a README of that size"


def test_what_was_fetched_before_a_cut_is_not_fetched_again(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library keeps what came in pieces of 10 MiB; how far it is goes to the log."""
    monkeypatch.setattr(module, "TELLING", 0.0)
    hub.repositories["owner/name"] = {"train.csv": b"text,feeling\n" + (b"x" * 9_997 + b",1\n") * 3_000}
    hub.cuts = True
    with caplog.at_level(logging.INFO, logger=module.__name__):
        assert len(read(Sources(local_store(tmp_path), Bounds(max_bytes=40_000_000)))) == 3_000
    ranges = [part for method, path, part in hub.asked if method == "GET" and "/resolve/" in path]
    assert [*ranges] == [None, "bytes=10485760-"]
    assert f"{SOURCE}/train.csv: 10485760 of 30000013 bytes are here" in caplog.text


def test_who_waits_for_the_hub_can_be_told_to_stop(
    hub: HubServer, sources: Sources, tweets: list[dict[str, str]]
) -> None:
    hub.repositories["owner/name"], hub.holds = {"train.csv": as_csv(tweets)}, threading.Event()
    stop = threading.Event()
    threading.Timer(0.7, stop.set).start()
    began = time.monotonic()
    with interruptible(stop), pytest.raises(Interrupted):
        sources.open(SOURCE)
    assert time.monotonic() - began < 2
    assert hub.fetched() == ["train.csv"]


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (404, Invalid, "refuses `hf:owner/name@.*status 404.*Check name and revision"),
        (401, Invalid, "status 401.*HF_TOKEN"),
        (403, Invalid, "status 403.*HF_TOKEN"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses_is_said(
    hub: HubServer, sources: Sources, status: int, kind: type[Exception], said: str
) -> None:
    hub.repositories["owner/name"] = {"train.csv": b"text,feeling\na,1\n"}
    hub.says["owner/name"] = status
    with pytest.raises(kind, match=said):
        sources.open(SOURCE)


def test_a_hub_that_does_not_answer_is_tried_again_and_no_path_of_ours_is_told(
    hub: HubServer, sources: Sources, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # it tries five times by itself
    with pytest.raises(Transient, match="did not answer for") as caught:
        sources.open(SOURCE)
    assert str(tmp_path) not in str(caught.value)


BAD = [
    "owner/name",
    "name@abc",
    "/etc@abc",
    "../x/y@abc",
    "owner/../x@abc",
    "owner/name@a..b",
    "owner/name@",
    "a/b/c@abc",
    "o/n@a b",
]


@pytest.mark.parametrize(
    "name", [*BAD, "http://evil.example/x@abc", "owner/name@abc?x=1", "owner/name@abc#x", "", "./o/n@abc"]
)
def test_only_a_pinned_name_is_looked_up(hub: HubServer, sources: Sources, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    folder.mkdir()
    (folder / "train.csv").write_text("text,feeling\na,1\n")
    for each in (name, str(folder), f"{folder}@abc"):
        with pytest.raises(Invalid, match=r"carries no revision|is not of the form"):
            sources.open(f"hf:{each}")
    assert hub.asked == []
