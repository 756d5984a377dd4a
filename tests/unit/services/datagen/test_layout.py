"""Which files of a data set are its `train` split: as the README says, as names say, and never what a README cannot mean."""

from __future__ import annotations

import contextlib
import time

import pytest
import yaml

from services.datagen.layout import train_files
from services.datagen.sources import READERS
from understudy.errors import Invalid


def chosen(paths: list[str], readme: str = "") -> list[str]:
    return train_files(paths, readme, READERS)


def told(*configs: object) -> str:
    return f"---\nlicense: mit\n{yaml.safe_dump({'configs': list(configs)})}---\n# A data set\n"


def of(data_files: object, **more: object) -> str:
    return told({"config_name": "default", "data_files": data_files} | more)


@pytest.mark.parametrize(
    ("paths", "train"),
    [
        (["data.csv"], ["data.csv"]),
        (["train.csv", "test.csv", "README.md", ".gitattributes"], ["train.csv"]),
        (["b/my_train_2.jsonl", "b/my_train_1.jsonl", "b/my_dev.jsonl"], ["b/my_train_1.jsonl", "b/my_train_2.jsonl"]),
        (["training/a.csv", "evaluation/a.csv", "notes.csv"], ["training/a.csv"]),
        (["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"], None),
        (["data/en-00000-of-00001-abc.parquet"], ["data/en-00000-of-00001-abc.parquet"]),
        (["test.csv"], ["test.csv"]),
        (["trainers.csv", "latest.csv"], ["latest.csv", "trainers.csv"]),
        (["a.csv", "b.csv", "about.json"], ["a.csv", "b.csv"]),
        (["a.csv", "dataset_infos.json", "__pycache__/x.csv", ".hidden/y.csv"], ["a.csv"]),
    ],
)  # fmt: skip
def test_names_say_which_files_are_for_training(paths: list[str], train: list[str] | None) -> None:
    expected = train or ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    assert chosen(paths) == chosen([*reversed(paths)]) == expected


FILES = ["a/one.csv", "a/two.csv", "a/b/three.csv", "test.csv", "train.csv"]


@pytest.mark.parametrize(
    ("data_files", "train"),
    [
        ("a/one.csv", ["a/one.csv"]),
        ("./a/one.csv", ["a/one.csv"]),
        ("a/*.csv", ["a/one.csv", "a/two.csv"]),
        ("a/**", ["a/b/three.csv", "a/one.csv", "a/two.csv"]),
        ("**/t*.csv", ["a/b/three.csv", "a/two.csv", "test.csv", "train.csv"]),
        (["a/two.csv", "a/[o]ne.csv", "a/*.csv"], ["a/two.csv", "a/one.csv"]),
        ([{"split": "test", "path": "train.csv"}, {"split": "train", "path": ["test.csv"]}], ["test.csv"]),
        ([{"split": "only", "path": "a/one.csv"}], ["a/one.csv"]),
    ],
)
def test_a_readme_says_which_files_are_for_training(data_files: object, train: list[str]) -> None:
    assert chosen(FILES, of(data_files)) == train


def test_the_default_configuration_counts() -> None:
    one, two = ({"config_name": name, "data_files": f"a/{name}.csv"} for name in ("one", "two"))
    assert chosen(FILES, told(one, two | {"default": True})) == ["a/two.csv"]
    assert chosen(FILES, told(one, two | {"config_name": "default"})) == ["a/two.csv"]
    with pytest.raises(Invalid, match="configurations one, two and no default"):
        chosen(FILES, told(one, two))
    assert chosen(FILES, told({"config_name": "x", "data_dir": "a"})) == ["a/b/three.csv", "a/one.csv", "a/two.csv"]
    assert chosen(FILES, of("one.csv", data_dir="a")) == ["a/one.csv"]


HOSTILE = [
    "http://169.254.169.254/latest/meta-data",
    "https://evil.example/train.csv",
    "file:///etc/passwd",
    "hf://datasets/other/private/train.csv",
    "s3://bucket/x.csv",
    "zip://*::http://evil.example/x.zip",
    "/etc/passwd",
    "../../../etc/passwd",
    "a/../../x.csv",
    "~/x.csv",
    "C:\\x.csv",
    "x" * 1000,
    "",
    7,
    None,
    {"split": "train"},
    {"split": 3, "path": "train.csv"},
    {"split": "train", "path": {"a": "b"}},
    [["train.csv"]],
    ["a/one.csv", "http://evil.example/x.csv"],
]


@pytest.mark.parametrize("data_files", HOSTILE, ids=str)
def test_what_a_readme_cannot_mean_counts_for_nothing(data_files: object) -> None:
    assert chosen(FILES, of(data_files)) == chosen(FILES, of([data_files])) == ["train.csv"]


def test_a_readme_that_is_none_counts_for_nothing() -> None:
    for readme in (
        "",
        "# Hello",
        "---\n[\n---\n",
        "---\nconfigs: 1\n---\n",
        "---\nconfigs: [1]\n---",
        "---\n" + "[" * 5000 + "\n---",
    ):
        assert chosen(FILES, readme) == ["train.csv"]


def test_odd_patterns_and_nested_aliases_take_no_time() -> None:
    began = time.monotonic()
    deep = ["/".join(["a" * 50] * 60) + ".csv"]
    for pattern in ("/".join(["**"] * 90), "*a" * 140, "[" * 250, "?" * 290):
        with pytest.raises(Invalid, match="not there"):
            chosen(deep, of(f"{pattern}/nothing"[:300]))
    bomb = "a: &a [1]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghijklm", "bcdefghijklmn", strict=True)
    )
    assert chosen(FILES, f"---\n{bomb}configs: *n\n---\n") == ["train.csv"]
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("paths", "readme", "said"),
    [
        ([], "", "no data in a known table format. Known are .csv"),
        (["README.md", "config.json"], "", "no data in a known table format"),
        (["train.csv.gz", "train.zip"], "", "no data in a known table format. It has .gz, .zip. Known are"),
        (["data/en-00000-of-00001.csv", "data/de-00000-of-00001.csv"], "", "splits de, en but no `train`"),
        (["test.csv", "dev.csv"], "", "splits test, validation but no `train`"),
        (["a.csv"], of("b.csv"), "names files of `train` that are not there"),
        (["../train.csv", "/train.csv", "a\\..\\train.csv", "a//train.csv"], "", "no data"),
    ],
)
def test_what_cannot_be_told_is_said(paths: list[str], readme: str, said: str) -> None:
    with pytest.raises(Invalid) as caught:
        chosen(paths, readme)
    assert said in str(caught.value)


def test_a_readme_that_names_itself_again_and_again_takes_no_memory() -> None:
    """Written out, its folder would be a thousand million words."""
    lines = ["---", "a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    readme = "\n".join([*lines, "configs: [{config_name: *a8, data_dir: *a8}]", "---", ""])
    began = time.process_time()
    assert train_files(["train.csv", "test.csv"], readme, (".csv",)) == ["train.csv"]
    assert time.process_time() - began < 1


def test_deep_paths_and_many_stars_take_no_time() -> None:
    deep = "/".join(["a"] * 300) + ".csv"
    readme = (
        f"---\nconfigs: [{{config_name: c, data_files: [{', '.join(['/'.join(['**'] * 100)] * 100)}]}}]\n---\n".replace(
            "**", '"**"'
        )
    )
    paths = [f"{'/'.join(['b'] * 15)}/{n}.csv" for n in range(200)]
    began = time.process_time()
    with contextlib.suppress(Invalid):
        train_files([*paths, deep], readme, (".csv",))
    assert time.process_time() - began < 3
