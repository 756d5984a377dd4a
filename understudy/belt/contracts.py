"""Every message on the bus: frozen, small, versioned in its `type`, decoded from a tagged union.

Requests are imperative or `...Requested`, facts are past tense. A message carries what the next station needs, in less
than 4 KB; bytes of any size travel as `Artifact`. Additive changes keep the version, anything else is a new type, and a
reader meets both: unknown fields are ignored, a newer version of a known message is `Unsupported` and waits for a
replica that reads it. Does not know topics (`topics.py`)."""

from __future__ import annotations

import json
import re
import zlib
from typing import Annotated, Any, Literal, Self, Union

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from understudy.errors import Invalid, Unsupported
from understudy.terms import Artifact, Frozen, Gate, Scope, Station

_HEADER = {"run", "generation", "attempt", "item"}
LONGEST_REASON = 1000
"""Characters."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def cut(text: str, characters: int = LONGEST_REASON) -> str:
    """The beginning of `text`, with a sign where something is missing; at most three times as many bytes of JSON."""
    text = _CONTROL.sub(" ", text.encode(errors="replace").decode())  # a lone surrogate has no place in UTF-8
    short = text[:characters]
    while len(json.dumps(short, ensure_ascii=False).encode()) > 3 * characters:
        short = short[: len(short) * 9 // 10]
    return text if short == text else f"{short[:-1]}…"


def _cut_at(characters: int) -> BeforeValidator:
    return BeforeValidator(lambda value: cut(value, characters) if isinstance(value, str) else value)


Reason = Annotated[str, _cut_at(LONGEST_REASON)]
"""Cut, so that no reason makes a message too large."""
Phrase = Annotated[str, _cut_at(200)]
"""A few words."""


class Message(Frozen):
    """What all messages have."""

    type: str
    run: str
    generation: int = Field(default=1, ge=1)
    """How many times the run was asked for: a run that was cancelled or failed is taken up again as the next one."""
    attempt: int = Field(default=1, ge=1)
    """How many times an operator had this tried: a dead letter is replayed as the next one."""

    @property
    def key(self) -> str:
        """Messages with the same key keep their order."""
        return self.run

    def place(self, partitions: int) -> int:
        """The partition of its topic, of so many."""
        return zlib.crc32(self.key.encode()) % partitions

    @classmethod
    def answering(cls, before: Message, **more: object) -> Self:
        """About the same run, generation and attempt as `before`, and the same item where both are about one; plus `more`."""
        shared = cls.model_fields.keys() & type(before).model_fields.keys() & _HEADER
        return cls.model_validate({name: getattr(before, name) for name in shared} | more)

    def again(self) -> Self:
        """The same message, to be tried once more."""
        return self.model_copy(update={"attempt": self.attempt + 1})


class OfItem(Message):
    """About one item of a run."""

    item: str

    @property
    def key(self) -> str:
        return f"{self.run}/{self.item}"


# --- what a run is asked to do


class RunRequested(Message):
    """Make the datasets of a run; its items follow."""

    type: Literal["run.requested.v2"] = "run.requested.v2"
    plan: Artifact
    """`plan.json`, see `understudy/plan.py`."""
    name: str
    bases: tuple[Phrase, ...] = ()
    """Names of the base models, at most 8 of them."""
    items: int
    """How many there are."""
    owner: str = ""
    """Who asked."""


class ItemPlanned(OfItem):
    """One item of a run, as lists show it."""

    type: Literal["item.planned.v1"] = "item.planned.v1"
    index: int
    """Its place in the plan."""
    base: Phrase
    """Name of its base model."""
    what: Phrase = ""
    """What it is trained on; empty when on nothing."""
    ends_at: Literal["served", "scored"] = "scored"


class CancelRequested(Message):
    """A wish: what is of this generation or an earlier one, and has not ended, shall end."""

    type: Literal["cancel.requested.v1"] = "cancel.requested.v1"
    item: str | None = None
    """None: the whole run."""
    owner: str = ""


class RunDeleted(Message):
    """The run is forgotten up to this generation, whatever of it still waits or works."""

    type: Literal["run.deleted.v1"] = "run.deleted.v1"
    owner: str = ""


# --- what rides the belt


class OnBelt(OfItem):
    """An item that a station shall take."""

    index: int
    """Its place in the plan: items of a run go to partitions in turn."""
    base: int = 0
    """Which of the plan's bases."""
    plan: Artifact
    datasets: Artifact | None = None
    """`datasets.json`: {dataset name: Artifact}; prompts of panel P under `plan.prompts_dataset(P)`."""
    needs: tuple[str, ...] = ()
    """Features without which a replica must not touch it."""

    def place(self, partitions: int) -> int:
        return (zlib.crc32(self.run.encode()) + self.index) % partitions

    @classmethod
    def following(cls, before: OnBelt, **more: object) -> Self:
        """The next station's message: what rides along from `before`, plus `more`."""
        along = {name: getattr(before, name) for name in OnBelt.model_fields if name not in ("type", "needs")}
        return cls.model_validate(along | more)


class TrainingRequested(OnBelt):
    """Train one adapter."""

    type: Literal["training.requested.v2"] = "training.requested.v2"


class ServingRequested(OnBelt):
    """Bring a base, or an adapter on it, to the endpoint."""

    type: Literal["serving.requested.v1"] = "serving.requested.v1"
    adapter: Artifact | None = None
    """PEFT folder plus `training.json`, `probe.json`, README.md; None for the base itself."""

    def place(self, partitions: int) -> int:
        """By base: what waits for one engine waits behind nothing else of its run."""
        return (zlib.crc32(self.run.encode()) + self.base) % partitions


class ScoringRequested(OnBelt):
    """Ask a model that answers on the endpoint, and score its answers."""

    type: Literal["scoring.requested.v1"] = "scoring.requested.v1"
    model: str
    """Name to ask for on the endpoint."""
    adapter: Artifact | None = None
    gate: Gate | None = None
    """What the gate measured; None for a base, and for a model that was served before anybody told."""


# --- what has happened


class DatasetsMade(Message):
    """All datasets of a run are there: its items may begin."""

    type: Literal["datasets.made.v1"] = "datasets.made.v1"
    plan: Artifact
    datasets: Artifact


class ModelServed(OfItem):
    """A model answers on the endpoint, and passed the gate."""

    type: Literal["model.served.v2"] = "model.served.v2"
    model: str
    """Name to ask for on the endpoint."""
    base: str
    """Its base as the plan names it, to be resolved again after a restart."""
    parent: str | None = None
    """Name of the base on the endpoint; None when the model is a base itself."""
    rank: int = 1
    """Of the adapter."""
    adapter: Artifact | None = None
    gate: Gate | None = None
    """As in `ScoringRequested`."""

    @property
    def key(self) -> str:
        return self.run


class Ended(OfItem):
    """An item left the belt."""

    @property
    def key(self) -> str:
        """All ends of a run, and the wishes about it, are in one order."""
        return self.run


class ItemServed(Ended):
    """An item whose ride ends there answers on the endpoint."""

    type: Literal["item.served.v1"] = "item.served.v1"
    model: str


class ItemScored(Ended):
    """An item answered every panel and was scored."""

    type: Literal["item.scored.v2"] = "item.scored.v2"
    answers: Artifact
    measures: Artifact


class ItemFailed(Ended):
    """An item left the belt before its end; the run goes on without it."""

    type: Literal["item.failed.v1"] = "item.failed.v1"
    station: Station
    reason: Reason


class ReportRequested(Message):
    """Nothing of the run is on the belt any more: say what it came to."""

    type: Literal["report.requested.v1"] = "report.requested.v1"
    outcome: str
    """Of which ends and wishes it shall speak: `turns.outcome`."""
    until: int | None = None
    """Offset of the last of them on `run-control`, in the run's partition: who has not read so far cannot know them."""
    status: Literal["finished", "failed", "cancelled"]
    reason: Reason | None = None
    """Why it failed."""
    plan: Artifact | None = None
    """None when the run was cancelled before its datasets were made."""
    datasets: Artifact | None = None


class RunClosed(Message):
    """The run is over, and its report is ready."""

    type: Literal["run.closed.v1"] = "run.closed.v1"
    status: Literal["finished", "failed", "cancelled"]
    outcome: str | None = None
    """Of which ends and wishes this speaks: `turns.outcome`. None: the run never came so far."""
    report: Artifact | None = None
    """Folder with `report.json`; None when nothing was scored."""
    station: Station = "evaluator"
    reason: Reason | None = None
    """Why it failed."""


class Progress(Message):
    """What a station is doing right now; informs people, moves nothing."""

    type: Literal["progress.v1"] = "progress.v1"
    station: Station
    item: str | None = None
    step: Phrase
    """Short phrase: `training`, `remarks: writing instructions`, `in-domain`."""
    done: int = 0
    total: int = 0
    """Zero when unknown."""
    figures: dict[str, float] = Field(default_factory=dict)
    """E.g. loss, tokens_per_second, eta_seconds."""
    mark: int | None = None
    """How far the message's work is in all, in units of its own that only grow: what tells slow work from poison."""
    at: float = 0.0
    """Seconds since the epoch; of two about the same the later one counts. The loop sets it."""

    @property
    def key(self) -> str:
        return f"{self.run}/{self.item or self.station}"


# --- who may come in


class OfKey(Message):
    """About an API key, and so about no run."""

    run: str = ""
    key_id: str
    """Public: it is the first part of the key, and what lists and logs call it by."""
    by: Phrase = ""
    """Who did it: the name of a key, or nobody's where whoever has the machine did."""

    @property
    def key(self) -> str:
        return self.key_id


class KeyMade(OfKey):
    """Somebody was given a key."""

    type: Literal["key.made.v1"] = "key.made.v1"
    name: Phrase
    """Whose it is, or what for; runs carry it as their owner."""
    secret_sha256: str
    """Of the key's secret part, which is nowhere but in its owner's hands; 256 random bits need no salt."""
    scopes: tuple[Scope, ...]
    expires: float | None = None
    """Seconds since the epoch."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    at_once: int | None = Field(default=None, ge=1)
    """Requests under way."""


class KeyEnded(OfKey):
    """A key lets nobody in any more from that moment on: it was revoked, or another one took its place."""

    type: Literal["key.ended.v1"] = "key.ended.v1"
    at: float
    """Seconds since the epoch; of several the earliest counts."""


class DeadLetter(Message):
    """A message that could not be handled, kept whole with the reason."""

    type: Literal["dead.letter.v1"] = "dead.letter.v1"
    topic: str
    station: Station
    reason: Reason
    attempts: int
    value: str
    """The message as it was, text; bytes that are none are replaced."""
    partition: int | None = None
    offset: int | None = None
    """Where on `topic` it lies, to the byte."""


def kinds(of: type[Message] = Message) -> tuple[type[Message], ...]:
    """Every kind of message that is defined above, in that order."""
    below = tuple(kind for child in of.__subclasses__() for kind in kinds(child))
    return (of, *below) if isinstance(of.model_fields["type"].default, str) else below


_KINDS: Any = Annotated[Union[kinds()], Field(discriminator="type")]  # noqa: UP007  # no `|` of a tuple
_ADAPTER: TypeAdapter[Message] = TypeAdapter(_KINDS)
_STEMS = {
    kind.model_fields["type"].default.rpartition(".v")[0]: int(kind.model_fields["type"].default.rpartition(".v")[2])
    for kind in kinds()
}
"""What a message is called -> the version that is read here."""


def encode(message: Message) -> bytes:
    """JSON as it travels."""
    return message.model_dump_json(exclude_none=True).encode()


def decode(value: bytes) -> Message:
    """The message in `value`; raises `Unsupported` when it is of a newer version, `Invalid` when it is none."""
    try:
        return _ADAPTER.validate_json(value)
    except ValidationError as error:
        if newer := _newer(value):
            raise Unsupported(f"A message of type {newer} is newer than this replica", "Upgrade it.") from error
        first = error.errors()[0]
        raise Invalid(f"Not a message of the belt: {'.'.join(map(str, first['loc']))} {first['msg']}") from error


def _newer(value: bytes) -> str | None:
    try:
        kind = str(json.loads(value)["type"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    stem, _, version = kind.rpartition(".v")
    return kind if stem in _STEMS and re.fullmatch(r"\d{1,4}", version) and int(version) > _STEMS[stem] else None


def failure(message: Message, station: Station, reason: str) -> ItemFailed | RunClosed:
    """The fact to publish when `message` could not be handled at `station`."""
    if isinstance(message, OnBelt):
        return ItemFailed.answering(message, station=station, reason=reason)
    outcome = message.outcome if isinstance(message, ReportRequested) else None
    return RunClosed.answering(message, status="failed", outcome=outcome, station=station, reason=reason)
