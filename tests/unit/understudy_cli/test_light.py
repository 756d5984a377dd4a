"""What an install without extras can do: everything against a server, and looking at a data folder. The rest says what it lacks.

The modules of all other distributions are hidden from a real process, as if they were not installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import httpx
import pytest

from understudy.service.child import Child
from understudy.service.ports import free_ports
from understudy_cli.extras import extra_of

FAKE = Path(__file__).with_name("fake_gateway.py")
HIDE = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {hidden} else find(name, path, target)
PathFinder.find_spec = find_spec
from understudy_cli import main
main()
"""
RECIPE = """
name: quick
datasets: {remarks: {source: remarks.csv, rows: {train: 10, validation: 0, test: 5}}}
variants: {mine: {train: remarks}}
evaluation: {panels: {in-domain: {dataset: remarks, metrics: [accuracy]}}}
"""
Light = Callable[..., tuple[int, str]]


def needed(distribution: str, found: set[str]) -> set[str]:
    """A distribution and what it needs without any extra, by name."""
    name = re.sub(r"[-_.]+", "-", distribution).lower()
    if name not in found:
        found.add(name)
        for line in metadata.requires(name) or []:
            if "extra ==" not in line:
                try:
                    needed(re.match(r"[\w.-]+", line)[0], found)  # type: ignore[index]
                except metadata.PackageNotFoundError:
                    pass  # for another Python or system
    return found


@pytest.fixture
def light(tmp_path: Path) -> Light:
    """`light("runs")` -> (exit code, what it said), in a folder with a recipe."""
    there = needed("understudy", set())
    hidden = {
        module
        for module, names in metadata.packages_distributions().items()
        if not {re.sub(r"[-_.]+", "-", name).lower() for name in names} & there
    }
    assert {"fastapi", "kafka", "uvicorn", "fsspec", "openai", "numpy"} <= hidden
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "remarks.csv").write_text("text,label\n" + "".join(f"so {n},{n % 2}\n" for n in range(30)))
    env = os.environ | {"UNDERSTUDY_DATA": str(tmp_path / "data"), "COLUMNS": "100"}

    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-c", HIDE.format(hidden=hidden), *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
        )
        return done.returncode, done.stdout

    return run


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {"UNDERSTUDY_PORT": str(port), "UNDERSTUDY_DATA": str(elsewhere)}
    child = Child([sys.executable, str(FAKE)], log=tmp_path / "fake.log", env=env)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                httpx.get(f"{url}/readyz")
                break
            except httpx.TransportError:
                assert child.poll() is None
        yield url
    finally:
        child.stop()


def test_everything_that_a_server_does_needs_no_extra(light: Light, server: str) -> None:
    at = ("--server", server)
    assert light("--help")[0] == 0
    code, said = light("run", "recipe.yaml", *at)
    assert code == 0, said
    run = re.search(r"Run (\S+) started", said)
    assert run
    assert run[1] in light("runs", *at)[1]
    for words in (("watch", run[1]), ("report", run[1]), ("logs", run[1]), ("cancel", run[1])):
        code, said = light(*words, *at)
        assert code == 0, said
    code, said = light("pull", "ft:seedling:quick:mine", "mine", *at)
    assert code == 0, said
    code, said = light("delete", run[1], "--yes", *at)
    assert code == 0, said


def test_what_works_on_a_folder_alone_works(light: Light) -> None:
    for words in (("runs",), ("topics",), ("deadletters", "list"), ("clean",)):
        code, said = light(*words)
        assert code == 0, said


def test_what_needs_more_says_so_in_a_line_and_starts_nothing(light: Light, tmp_path: Path) -> None:
    for words in (("run", "recipe.yaml"), ("up",)):
        code, said = light(*words)
        assert code == 1
        assert re.fullmatch(r"understudy: Only the command line is installed here.* --server.*\n", said)
    assert not (tmp_path / "data").exists()
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("remarks.csv", "remarks.parquet"))
    (tmp_path / "remarks.parquet").write_bytes(b"PAR1PAR1")
    code, said = light("plan", "recipe.yaml")
    assert code == 1
    assert re.fullmatch(r"understudy: This needs \w+.* pip install '\.\[(service|datagen)\]'.*\n", said), said


@pytest.mark.parametrize(
    ("module", "extra"), [("kafka.errors", "service"), ("pyarrow.parquet", "datagen"), ("s3fs", "s3"), ("x", "service")]
)
def test_the_extra_is_found_by_the_module(module: str, extra: str) -> None:
    assert extra_of(module) == extra
