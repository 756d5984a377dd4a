"""Progress lines and sealed checkpoints: what a training leaves on disk for its service and for its own second life.

    reporter           writes a `Step` per optimizer step, and a seal into every checkpoint once all its files are there
    last_checkpoint    the newest sealed checkpoint; anything half-written is removed

Does not write the checkpoints themselves (transformers does).
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from services.trainer.job import Step
from understudy.errors import Invalid

SEAL = "complete.json"
"""{file: bytes} of a checkpoint, written last. Without it, or with other sizes, a checkpoint does not count."""


def reporter(progress: Path, step_tokens: Sequence[int]) -> Any:
    """A TrainerCallback; `step_tokens` are the real tokens of each optimizer step, which makes tokens/s free of padding."""
    from transformers import TrainerCallback

    tokens = list(accumulate(step_tokens, initial=0))

    class Reporter(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began, self.first = time.monotonic(), state.global_step
            self.validation_loss = _latest_validation(state.log_history, None)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if not logs or "loss" not in logs:
                return
            if not math.isfinite(logs["loss"]):
                raise Invalid(
                    f"The loss became {logs['loss']} at step {state.global_step}", "Lower `training.learning_rate`."
                )
            self.validation_loss = _latest_validation(state.log_history[-2:], self.validation_loss)
            rate = (tokens[state.global_step] - tokens[self.first]) / max(time.monotonic() - self.began, 1e-9)
            line = Step(
                step=state.global_step,
                total=state.max_steps,
                loss=round(logs["loss"], 6),
                tokens_per_second=round(rate, 1),
                eta_seconds=round((tokens[-1] - tokens[state.global_step]) / rate, 1),
                validation_loss=self.validation_loss,
            )
            with progress.open("a", encoding="utf-8") as file:
                file.write(line.model_dump_json() + "\n")

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Reporter()


def _latest_validation(history: Sequence[Mapping[str, float]], before: float | None) -> float | None:
    return next((entry["validation_loss"] for entry in reversed(history) if "validation_loss" in entry), before)


def seal(checkpoint: Path) -> None:
    """Mark `checkpoint` complete, in one step."""
    partial = checkpoint.with_suffix(".seal")
    partial.write_text(json.dumps(_sizes(checkpoint)), encoding="utf-8")
    partial.rename(checkpoint / SEAL)


def last_checkpoint(folder: Path) -> Path | None:
    """The sealed checkpoint with most steps, or None; removes the others, which a kill left half-written."""
    found = sorted(folder.glob("checkpoint-*/"), key=lambda path: int(path.name.partition("-")[2]))
    for path in reversed(found):
        try:
            if json.loads((path / SEAL).read_text(encoding="utf-8")) == _sizes(path):
                return path
        except (OSError, ValueError):
            pass
        shutil.rmtree(path)
    return None


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != SEAL}
