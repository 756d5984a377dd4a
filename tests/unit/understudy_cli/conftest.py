"""The command line as a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from understudy_cli import main

Outcome = tuple[int, str, str]


@pytest.fixture
def alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """`alone("runs")` -> (exit code, stdout, stderr), in an empty folder, on its `data` folder; nothing is started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_DATA", str(tmp_path / "data"))

    def run(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return run
