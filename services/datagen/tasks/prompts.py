"""The prompts of a panel: questions to be asked, with a reference answer or without. No task of a recipe's datasets."""

from __future__ import annotations

from collections.abc import Mapping

from services.datagen.tasks.task import Task, Verbatim


def _read(values: Mapping[str, str]) -> tuple[str, str, None]:
    return values["prompt"].strip(), values["reference"].strip(), None


TASK: Task = Verbatim((["prompt"], ["reference"]), _read, "prompts")
