"""Starts a training and looks after its process. A child of ours today; a Protocol, because a cluster's job is the second case.

Does not know what the exit codes mean (`handlers.py`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.trainer.job import JobFolder
from understudy.service.child import Child
from understudy.settings import PROJECT


class Running(Protocol):
    """A training under way."""

    def poll(self) -> int | None:
        """Exit code (negative: the signal that ended it), or None while it runs."""

    def stop(self, grace: float) -> None:
        """End it, by force after `grace` seconds and within twice as many; safe to call twice, and after its end."""


class Launcher(Protocol):
    """`running = launcher.launch(folder)` starts `train.py` on a prepared job folder."""

    def launch(self, folder: JobFolder) -> Running:
        """Start, or start again; the program itself resumes from what it finds in the folder."""


@dataclass(frozen=True)
class ChildLauncher:
    """Trains in a child process that dies with this one."""

    threads: int

    def launch(self, folder: JobFolder) -> Running:
        threads = str(self.threads)
        environment = {
            # Read once by the maths libraries when they load, so they cannot be set inside the program.
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OMP_DYNAMIC": "FALSE",  # never fewer threads than asked: the split of a sum decides its last bits
            "MKL_DYNAMIC": "FALSE",
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin at barriers make it ten times slower when anything else runs on these cores
            "PYTHONHASHSEED": "0",
            "TOKENIZERS_PARALLELISM": "false",
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        }
        program = [sys.executable, "-m", "services.trainer.train", str(folder.path.resolve())]
        return Child(program, log=folder.log, env=environment, cwd=Path(PROJECT))
