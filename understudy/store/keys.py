"""The names of artifacts: one function for each kind, and no other place spells them.

Everything a run makes lies under `runs/<run>`, so that a run can be forgotten as a whole.
"""

from __future__ import annotations


def run(run: str) -> str:
    """Prefix of all that a run made."""
    return f"runs/{run}"


def plan(run: str) -> str:
    """`plan.json`."""
    return f"runs/{run}/plan"


def dataset(run: str, name: str) -> str:
    """One dataset, see `records.SPLITS`."""
    return f"runs/{run}/datasets/{name}"


def datasets(run: str) -> str:
    """`datasets.json`: which artifact each dataset is."""
    return f"runs/{run}/datasets-made"


def adapter(run: str, item: str) -> str:
    """PEFT folder of an item."""
    return f"runs/{run}/adapters/{item}"


def answers(run: str, item: str) -> str:
    """What an item answered to every panel."""
    return f"runs/{run}/answers/{item}"


def measures(run: str, item: str) -> str:
    """What an item's answers came to."""
    return f"runs/{run}/measures/{item}"


def report(run: str, inputs: str) -> str:
    """The report that follows from `inputs`, a digest of them."""
    return f"runs/{run}/reports/{inputs}"


def training_logs(run: str) -> str:
    """Prefix of what its trainings said; no part of their results."""
    return f"runs/{run}/logs"


def training_log(run: str, item: str, number: int = 1) -> str:
    """What the training of an item said when it ended for the `number`th time; sorts by that."""
    return f"{training_logs(run)}/{item}.{number:04}"


def item_of_log(key: str) -> str:
    """The item of a `training_log`."""
    return key.rpartition("/")[2].rpartition(".")[0]


FILES = "files"
FILE_CARDS = "file-cards"


def file(file_id: str) -> str:
    """The bytes of an uploaded file."""
    return f"{FILES}/{file_id}"


def file_card(file_id: str) -> str:
    """What the API says about an uploaded file."""
    return f"{FILE_CARDS}/{file_id}"
