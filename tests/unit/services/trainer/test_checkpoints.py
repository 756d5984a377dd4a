"""A checkpoint counts only when it is whole; a diverged loss ends the training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from services.trainer.checkpoints import last_checkpoint, reporter, seal
from services.trainer.job import JobFolder
from understudy.errors import Invalid


def checkpoint(folder: Path, step: int, *, sealed: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "optimizer.pt").write_bytes(b"x" * 100)
    (path / "trainer_state.json").write_text("{}")
    if sealed:
        seal(path)
    return path


def test_the_newest_by_number_is_taken(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        checkpoint(tmp_path, step)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_without_any_the_training_begins(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None


def test_a_half_written_one_is_ignored_and_removed(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, 5)
    unsealed = checkpoint(tmp_path, 10, sealed=False)
    assert last_checkpoint(tmp_path) == whole
    assert not unsealed.exists()


def test_one_with_a_cut_file_is_ignored(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, 5)
    (checkpoint(tmp_path, 10) / "optimizer.pt").write_bytes(b"x" * 99)
    assert last_checkpoint(tmp_path) == whole


def test_each_step_is_a_line_and_rates_count_real_tokens(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    callback = reporter(folder.progress, [100, 300])
    state = SimpleNamespace(global_step=0, max_steps=2, log_history=[])
    callback.on_train_begin(None, state, None)
    callback.began -= 1.0
    state.global_step = 1
    callback.on_log(None, state, None, logs={"loss": 0.25})
    callback.on_log(None, state, None, logs={"train_runtime": 1.0})
    (step,), _ = folder.steps(0)
    assert (step.step, step.total, step.loss, step.validation_loss) == (1, 2, 0.25, None)
    assert step.tokens_per_second == pytest.approx(100, rel=0.05)
    assert step.eta_seconds == pytest.approx(3, rel=0.05)


def test_steps_carry_the_latest_validation_loss_also_after_a_second_start(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    history: list[dict[str, float]] = []
    state = SimpleNamespace(global_step=0, max_steps=4, log_history=history)
    callback = reporter(folder.progress, [10] * 4)
    callback.on_train_begin(None, state, None)
    for validation in (0.5, None, 0.0):
        state.global_step += 1
        if validation is not None:
            history.append({"step": state.global_step, "validation_loss": validation})
        history.append({"step": state.global_step, "loss": 1.0})
        callback.on_log(None, state, None, logs=history[-1])
    again = reporter(folder.progress, [10] * 4)
    again.on_train_begin(None, state, None)
    state.global_step += 1
    again.on_log(None, state, None, logs={"loss": 1.0})
    assert [step.validation_loss for step in folder.steps(0)[0]] == [0.5, 0.5, 0.0, 0.0]


def test_a_loss_that_is_no_number_is_invalid(tmp_path: Path) -> None:
    callback = reporter(tmp_path / "progress.jsonl", [10])
    state = SimpleNamespace(global_step=0, max_steps=1, log_history=[])
    callback.on_train_begin(None, state, None)
    with pytest.raises(Invalid, match="learning_rate"):
        callback.on_log(None, state, None, logs={"loss": float("nan")})
