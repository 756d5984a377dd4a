"""What belongs to a data folder is found by its environment or by its log, and nothing else is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from understudy.testing import processes


def test_processes_of_a_folder_are_told_from_those_of_its_neighbour(tmp_path: Path) -> None:
    mine, neighbour = tmp_path / "data", tmp_path / "data-2"
    sleepers = []
    for folder in (mine, neighbour):
        folder.mkdir()
        with (folder / "log").open("wb") as log:
            sleepers.append(subprocess.Popen(["sleep", "30"], stdout=log))
        sleepers.append(subprocess.Popen(["sleep", "31"], env=os.environ | {"UNDERSTUDY_DATA": str(folder)}))
    try:
        assert processes(mine) == {sleepers[0].pid: "sleep 30", sleepers[1].pid: "sleep 31"}
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
    assert processes(mine) == {}
