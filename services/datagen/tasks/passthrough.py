"""`passthrough`: rows that are instructions with answers already (Alpaca's form) stay as they are."""

from __future__ import annotations

from collections.abc import Mapping

from services.datagen.filters import Read, Reject
from services.datagen.tasks.task import Task, Verbatim
from understudy.recipe import Columns, Dataset


def task(dataset: Dataset) -> Task:
    """The task, with the dataset's columns."""
    columns = dataset.columns
    return Verbatim(([columns.instruction, columns.output], [columns.input]), _read(columns), "passthrough")


def _read(columns: Columns) -> Read:
    """Instruction with its input below, and the output."""

    def read(values: Mapping[str, str]) -> tuple[str, str, None]:
        instruction, given, output = (
            values[name].strip() for name in (columns.instruction, columns.input, columns.output)
        )
        if not instruction:
            raise Reject("empty instruction")
        if not output:
            raise Reject("empty output")
        return f"{instruction}\n\n{given}" if given else instruction, output, None

    return read
