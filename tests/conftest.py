"""Fixtures of all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
for shared in (
    "contract",
    "e2e",
    "chaos",
    "compose",
    "unit/understudy/belt/folds",
):  # suites that several test modules inherit, and helpers beside them
    sys.path.insert(0, str(ROOT / "tests" / shared))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder with real public data sets; tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("UNDERSTUDY_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set UNDERSTUDY_TEST_DATA")
    return folder
