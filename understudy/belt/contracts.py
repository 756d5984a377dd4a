"""Every message on the bus: frozen, versioned in its `type`, decoded from a tagged union.

Requests are imperative or `...Requested`, facts are past tense. A message carries what the next station needs; bytes
of any size travel as `Artifact`. Additive changes keep the version; anything else is a new type. Does not know topics
(`topics.py`)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from understudy.errors import Invalid
from understudy.recipe import Recipe

Station = Literal["datagen", "trainer", "inference", "evaluator"]
STATIONS: tuple[Station, ...] = ("datagen", "trainer", "inference", "evaluator")


class Frozen(BaseModel):
    """Base of everything here. Unknown keys are ignored, so that an older reader accepts an additive change."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Artifact(Frozen):
    """A finished folder in the artifact store."""

    uri: str
    """Of its manifest."""
    sha256: str
    """Of the manifest's bytes, and so of every file."""


class Message(Frozen):
    """What all messages have."""

    type: str
    run: str

    @property
    def key(self) -> str:
        """Messages with the same key keep their order."""
        return self.run


class RunRequested(Message):
    """Make the datasets of a run, then ask for every variant."""

    type: Literal["run.requested.v1"] = "run.requested.v1"
    recipe: Recipe


class OnBelt(Message):
    """A variant riding the belt."""

    variant: str
    recipe: Recipe
    datasets: dict[str, Artifact]
    """Dataset name -> artifact, see `records.SPLITS`; prompts of panel P under `recipe.prompts_dataset(P)`."""

    @property
    def key(self) -> str:
        return f"{self.run}/{self.variant}"

    @classmethod
    def following(cls, before: OnBelt, **more: object) -> Self:
        """The next station's message: what rides along from `before`, plus `more`."""
        return cls(run=before.run, variant=before.variant, recipe=before.recipe, datasets=before.datasets, **more)


class TrainingRequested(OnBelt):
    """Train one variant; the base passes through with nothing to train."""

    type: Literal["training.requested.v1"] = "training.requested.v1"


class ModelTrained(OnBelt):
    """A variant's weights are ready to serve."""

    type: Literal["model.trained.v1"] = "model.trained.v1"
    adapter: Artifact | None
    """PEFT folder plus `training.json`, `probe.json`, README.md; None for the base."""


class ModelServed(OnBelt):
    """A variant answers on the endpoint, and passed the gate."""

    type: Literal["model.served.v1"] = "model.served.v1"
    model: str
    """Name to ask for on the endpoint."""
    adapter: Artifact | None


class VariantScored(Message):
    """A variant answered every panel and was scored."""

    type: Literal["variant.scored.v1"] = "variant.scored.v1"
    variant: str
    recipe: Recipe
    datasets: dict[str, Artifact]
    scores: Artifact


class VariantFailed(Message):
    """A variant left the belt before its end; the run goes on without it."""

    type: Literal["variant.failed.v1"] = "variant.failed.v1"
    variant: str
    recipe: Recipe
    datasets: dict[str, Artifact]
    station: Station
    reason: str


class ReportPublished(Message):
    """The run is over; its report is ready."""

    type: Literal["report.published.v1"] = "report.published.v1"
    report: Artifact
    """Folder with `report.html` and `report.json`."""
    failed: dict[str, str] = Field(default_factory=dict)
    """Variant -> reason."""


class RunFailed(Message):
    """The run ended without a report."""

    type: Literal["run.failed.v1"] = "run.failed.v1"
    station: Station
    reason: str
    failed: dict[str, str] = Field(default_factory=dict)
    """Variant -> reason, when the run failed because no variant came through."""


class Progress(Message):
    """What a station is doing right now; informs people, moves nothing."""

    type: Literal["progress.v1"] = "progress.v1"
    station: Station
    variant: str | None = None
    step: str
    """Short phrase: `training`, `remarks: writing instructions`, `in-domain`."""
    done: int = 0
    total: int = 0
    """Zero when unknown."""
    figures: dict[str, float] = Field(default_factory=dict)
    """E.g. loss, tokens_per_second, eta_seconds."""

    @property
    def key(self) -> str:
        return f"{self.run}/{self.variant or self.station}"


class DeadLetter(Message):
    """A message that could not be handled, kept whole with the reason."""

    type: Literal["dead.letter.v1"] = "dead.letter.v1"
    topic: str
    station: Station
    reason: str
    attempts: int
    value: str
    """The message as it was, text; bytes that are none are replaced."""
    partition: int | None = None
    offset: int | None = None
    """Where on `topic` it lies, to the byte."""


AnyMessage = Annotated[
    RunRequested
    | TrainingRequested
    | ModelTrained
    | ModelServed
    | VariantScored
    | VariantFailed
    | ReportPublished
    | RunFailed
    | Progress
    | DeadLetter,
    Field(discriminator="type"),
]
_ADAPTER: TypeAdapter[AnyMessage] = TypeAdapter(AnyMessage)


def encode(message: Message) -> bytes:
    """JSON as it travels."""
    return message.model_dump_json().encode()


def decode(value: bytes) -> AnyMessage:
    """The message in `value`; raises `Invalid` when it is none."""
    try:
        return _ADAPTER.validate_json(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise Invalid(f"Not a message of the belt: {'.'.join(map(str, first['loc']))} {first['msg']}") from error


def failure(message: Message, station: Station, reason: str) -> VariantFailed | RunFailed:
    """The fact to publish when `message` could not be handled at `station`."""
    if isinstance(message, OnBelt):
        return VariantFailed.model_validate(
            message.model_dump(exclude={"type"}) | {"station": station, "reason": reason}
        )
    return RunFailed(run=message.run, station=station, reason=reason)
