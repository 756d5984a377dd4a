"""Unfinished work passes to the next replica as a copy, and goes everywhere once it is finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from understudy.belt.scratch import forget, take_up
from understudy.settings import Settings


@pytest.fixture
def replicas(tmp_path: Path) -> list[Path]:
    return [Settings(data=tmp_path, member=member).work("trainer") for member in ("a", "b", "c")]


def leave(work: Path, text: str) -> Path:
    path = work / "run" / "variant" / "checkpoints" / "1"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def test_work_of_another_replica_is_copied_and_stays_untouched(replicas: list[Path]) -> None:
    left = leave(replicas[0], "half")
    folder = take_up(replicas[1], "run", "variant")
    assert folder == replicas[1] / "run" / "variant"
    assert (folder / "checkpoints" / "1").read_text() == "half"
    (folder / "checkpoints" / "1").write_text("more")
    assert left.read_text() == "half"


def test_our_own_work_comes_first(replicas: list[Path]) -> None:
    leave(replicas[0], "theirs")
    leave(replicas[1], "ours")
    assert (take_up(replicas[1], "run", "variant") / "checkpoints" / "1").read_text() == "ours"


def test_without_anything_left_there_is_nothing_yet(replicas: list[Path]) -> None:
    leave(replicas[0], "of another unit")
    assert not take_up(replicas[1], "run", "other").exists()


def test_a_copy_that_fails_leaves_no_half(replicas: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    leave(replicas[0], "half")
    monkeypatch.setattr("shutil.copytree", lambda *_: (_ for _ in ()).throw(OSError("gone")))
    assert not take_up(replicas[1], "run", "variant").exists()


def test_what_is_finished_goes_everywhere(replicas: list[Path]) -> None:
    for work in replicas[:2]:
        leave(work, "half")
    forget(replicas[2], "run", "variant")
    assert not any((work / "run" / "variant").exists() for work in replicas)


def test_with_the_last_unit_of_a_run_the_folder_of_the_run_goes(replicas: list[Path]) -> None:
    leave(replicas[0], "half")
    (replicas[0] / "run" / "other").mkdir()
    forget(replicas[0], "run", "variant")
    assert (replicas[0] / "run" / "other").is_dir(), "what is unfinished stays"
    forget(replicas[0], "run", "other")
    assert list(replicas[0].iterdir()) == [], "the replica's own folder stays"
    forget(replicas[0], "run")
    assert replicas[0].is_dir()
