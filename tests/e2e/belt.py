"""A small run of the whole belt: its recipe, its command, and what it leaves behind."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from understudy.testing import processes

ROOT = Path(__file__).resolve().parents[2]
UNDERSTUDY = Path(sys.executable).with_name("understudy")


@dataclass
class Belt:
    """One data folder and the command that makes the run in it."""

    recipe: Path
    data: Path
    seconds: float = 0.0
    """That the run took, if it was timed."""

    def command(self) -> list[str]:
        return [str(UNDERSTUDY), "run", str(self.recipe), "--data", str(self.data)]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def artifacts(self) -> dict[str, str]:
        """Key -> digest of every finished artifact of the run, but for the logs of its trainings, which have a clock in them."""
        refs = self.data / "artifacts" / "refs" / "runs"
        found = {
            path.relative_to(refs).as_posix(): json.loads(path.read_text())["sha256"] for path in refs.rglob("*.json")
        }
        return {key: digest for key, digest in found.items() if "/logs/" not in key}

    def processes(self) -> dict[int, str]:
        """Pid -> command line of everything alive that belongs to this data folder."""
        return processes(self.data)


def small_recipe(folder: Path) -> Path:
    """The quickstart with fewer rows, written to `folder`."""
    recipe = yaml.safe_load((ROOT / "recipes/quickstart.yaml").read_text())
    recipe["name"] = "small"
    recipe["datasets"]["remarks"] |= {
        "source": str(ROOT / "examples/remarks.csv"),
        "rows": {"train": 96, "validation": 8, "test": 40},
    }
    recipe["datasets"]["general"] |= {
        "source": str(ROOT / "examples/general.jsonl"),
        "rows": {"train": 64, "validation": 0, "test": 12},
    }
    recipe["training"] |= {"epochs": 2, "checkpoint_every": 3}
    panels = recipe["evaluation"]["panels"]
    panels["out-of-sample"] |= {"prompts": str(ROOT / "examples/out-of-sample.jsonl"), "max_tokens": 16}
    panels["general"]["max_tokens"] = 16
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Belt, str]:
    """A finished run that nobody disturbed, and what the command printed; the processes of one test session share it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "undisturbed"
    folder.mkdir(exist_ok=True)
    belt, said = Belt(folder / "small.yaml", folder / "data"), folder / "said.json"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            small_recipe(folder)
            began = time.monotonic()
            done = subprocess.run(
                belt.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=420
            )
            assert done.returncode == 0, done.stdout
            said.write_text(json.dumps([done.stdout, time.monotonic() - began]))
    words, belt.seconds = json.loads(said.read_text())
    return belt, words
