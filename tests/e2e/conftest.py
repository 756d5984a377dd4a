"""A finished run of the whole belt, real in every part: bundled base model, real training, real engine. Made once."""

from __future__ import annotations

import subprocess

import pytest
from belt import Belt, small_recipe


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Belt, str]:
    """A finished run that nobody disturbed, and what the command printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    belt = Belt(small_recipe(folder), folder / "data")
    done = subprocess.run(belt.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=420)
    assert done.returncode == 0, done.stdout
    return belt, done.stdout
