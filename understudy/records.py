"""What lies in the JSON and JSONL files inside artifacts, and how to read and write it.

Whole documents say their format; rows have that of the artifact they lie in. Does not know where files live
(`artifacts.py`) or what is in a message (`contracts.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from understudy.errors import Invalid, Unsupported
from understudy.interrupt import check
from understudy.terms import Frozen

SPLITS = ("train", "validation", "test")
"""Every dataset artifact holds `<split>.jsonl` of `Example` for each of these, `rejected.jsonl` and `card.json`."""


class Turn(Frozen):
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    content: str


class Provenance(Frozen):
    """Where an example came from."""

    source: str
    """The source as the recipe names it."""
    row: int
    """Zero-based row in the source."""
    generator: str
    """What wrote the instruction: `template:3`, `llm:gpt-4o-mini`, `passthrough`."""


class Example(Frozen):
    """One instruction with its reference answer."""

    id: str
    """Unique in its dataset and stable across runs."""
    prompt: tuple[Turn, ...]
    """The chat up to the answer; never empty, ends with a user turn."""
    completion: str
    """The reference answer; may be empty only in a prompts-only panel."""
    label: str | None = None
    """The class name where the task is `classify`; then `completion` is this label."""
    provenance: Provenance


class Rejected(Frozen):
    """A source row that did not become an example, and why."""

    row: int
    reason: str
    content: str
    """The row as text, at most 2,000 characters."""


class DatasetCard(Frozen):
    """`card.json` of a dataset artifact."""

    format: Literal["understudy.dataset.v1"] = "understudy.dataset.v1"
    name: str
    source: str
    task: str
    """As in the recipe, or `prompts` for those of a panel."""
    labels: tuple[str, ...] = ()
    """Class names in a fixed order (sorted); empty where answers are none."""
    rows: dict[str, int]
    """Examples per split."""
    rejected: int
    seed: int


class TrainedOn(Frozen):
    """One dataset of a training."""

    sha256: str = ""
    """Of the dataset artifact."""
    examples_available: int = 0
    examples_too_long: int = 0
    examples_seen: int = 0
    tokens_seen: int = 0
    validation_rows: int = 0
    """Watched during the training."""
    validation_loss: float | None = None
    """Nats per token of their answers, under the weights that the adapter has."""


class TrainingRecord(Frozen):
    """`training.json` of an adapter: the configuration as it was, and the loss. Holds no clock, host or path."""

    format: Literal["understudy.training.v1"] = "understudy.training.v1"
    item: str = ""
    base: str = ""
    base_revision: str | None = None
    seed: int = 0
    training: dict[str, Any] = Field(default_factory=dict)
    """The plan's settings of this training."""
    stages: tuple[dict[str, float], ...] = ()
    """{dataset: weight} of each stage, in order."""
    micro_batch: int = 0
    """Examples on the device at once."""
    device: str = ""
    threads: int = 0
    versions: dict[str, str] = Field(default_factory=dict)
    datasets: dict[str, TrainedOn] = Field(default_factory=dict)
    steps: int = 0
    tokens: int = 0
    loss: tuple[tuple[int, float], ...] = ()
    """(optimizer step, nats per token of the answers)."""
    validation: tuple[tuple[int, float], ...] = ()
    """(optimizer step, the same on validation rows, where each dataset weighs as much as the training sees of it); empty where there
    were none."""
    kept_step: int | None = None
    """The step whose weights the adapter has; None: the last one."""


class Prediction(Frozen):
    """What one model answered to one example, and how likely it found the reference."""

    id: str
    """The example's id."""
    text: str
    """The generated answer, verbatim."""
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    reference_logprob: float | None = None
    """Sum of natural-log probabilities of the reference answer's tokens; None when not asked for or no reference."""
    reference_tokens: int | None = None
    label_logprobs: tuple[float, ...] | None = None
    """For every class of the dataset card, in its order: sum of natural-log probabilities of the class name and the end of the
    turn, after the same prompt. None when the panel asks for no class, or for too many, or the endpoint cannot say."""


class Answered(Frozen):
    """`answers.json` of an answers artifact; `answers-<panel>.jsonl` beside it has a `Prediction` per question."""

    format: Literal["understudy.answers.v1"] = "understudy.answers.v1"
    item: str
    model: str
    """Name on the endpoint."""
    decoding: dict[str, float | int | str]


class PanelMeasures(Frozen):
    """What one item's answers to one panel came to; `measures-<panel>.npz` beside it has what each metric sums."""

    n: int
    """Questions."""
    references: int
    """Those with a reference answer."""
    signatures: dict[str, dict[str, str]]
    """Family of metrics -> metric -> what exactly it computes from the family's table in the npz file: (n, k) numbers, one row per
    question, the last one 1 where the question counts."""
    refused: int
    """Questions that the endpoint would not take."""
    cut: int
    """Answers that ran into the limit of tokens."""
    unavailable: dict[str, str] = Field(default_factory=dict)
    """Metric -> why it could not be computed where this was measured."""


class Measured(Frozen):
    """`measures.json` of a measures artifact: what one item's answers came to. Made once; a report only adds up."""

    format: Literal["understudy.measures.v1"] = "understudy.measures.v1"
    item: str
    model: str
    decoding: dict[str, float | int | str]
    panels: dict[str, PanelMeasures]
    versions: dict[str, str]
    """Of the packages that computed."""


class Probe(Frozen):
    """One prompt and what the trainer measured on it: natural-log probabilities of its tokens 1..n-1, each given those before it."""

    token_ids: tuple[int, ...] = Field(min_length=2)
    base_logprobs: tuple[float, ...]
    adapter_logprobs: tuple[float, ...]

    @model_validator(mode="after")
    def _one_per_token(self) -> Probe:
        if not len(self.base_logprobs) == len(self.adapter_logprobs) == len(self.token_ids) - 1:
            raise ValueError("a probe needs one log-probability for each token but the first")
        return self


class Probes(Frozen):
    """`probe.json` of an adapter artifact: what any engine that serves the adapter must compute, too."""

    format: Literal["understudy.probes.v1"] = "understudy.probes.v1"
    probes: tuple[Probe, ...] = Field(min_length=1, max_length=64)


R = TypeVar("R", bound=Frozen)


def write_jsonl(path: Path, rows: Iterable[Frozen]) -> int:
    """Write `rows` as UTF-8 JSON lines; returns how many. Stops when `interrupt.check` says so."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            check()
            file.write(row.model_dump_json(exclude_none=True) + "\n")
            count += 1
    return count


def write_json(path: Path, record: Frozen) -> None:
    """Write one document."""
    path.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_json(path: Path, kind: type[R]) -> R:
    """Read one document; raises `Unsupported` when it is of another format than `kind`."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Unsupported(
            f"{path.name} cannot be read here: {place}: {first['msg']}", "Upgrade this replica."
        ) from None


def read_jsonl(path: Path, kind: type[R]) -> Iterator[R]:
    """Read rows of `kind`; raises `Invalid` with file and line at the first bad one."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield kind.model_validate_json(line)
            except ValidationError as error:
                raise Invalid(f"{path}:{number} is not a valid {kind.__name__}: {error.errors()[0]['msg']}") from error


def pick_jsonl(path: Path, kind: type[R], numbers: Collection[int]) -> dict[int, R]:
    """The rows with these numbers, counted from 0."""
    with path.open("rb") as file:
        return {number: kind.model_validate_json(line) for number, line in enumerate(file) if number in numbers}


def resume_jsonl(path: Path, kind: type[R]) -> list[R]:
    """The rows of a file that is appended to row by row, which a killed process may have left with a torn last line.

    What is torn is cut off, so that the next row begins on a line of its own; a missing file has no rows.
    """
    content = path.read_bytes() if path.exists() else b""
    rows: list[R] = []
    whole = 0
    for line in content.splitlines(keepends=True):
        try:
            row = kind.model_validate_json(line)
        except ValidationError:
            break
        if not line.endswith(b"\n"):
            break
        rows.append(row)
        whole += len(line)
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    return rows
