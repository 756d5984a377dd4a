"""The recipe: the one YAML file a user writes, validated, with errors that say where and what to do.

Only `datasets` with a source is needed; every other key has a default that works. Strict at the doors: `parse` refuses
unknown keys. The same classes are tolerant where a plan carries them (`plan.py`), so that an older reader accepts what a
newer one added. Does not read the data it names (datagen does), resolve bases (`bases.py`) or upload files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from understudy import document
from understudy.errors import Invalid
from understudy.hints import nearest
from understudy.metrics import METRICS, of_classes, of_one_class

BASE = "base"
"""Name of the item that is the untouched base model; it rides the belt like the others."""

FILE_ID = re.compile(r"file-\w{1,80}")
"""An uploaded file, as a source."""
HUB = "hf:"
"""Before the name of a data set on the Hugging Face hub, as a source."""
OPENAI = "openai"
"""The provider that is always there."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]
Reference = Annotated[str, Field(max_length=64)]
"""A name that is given elsewhere in the recipe, or known."""
ColumnName = Annotated[str, Field(max_length=1000)]
ONE_LINE = r"^[^\x00-\x1f\x7f]*$"
Words = Annotated[str, Field(max_length=1000, pattern=ONE_LINE)]
"""A line of text, as it is shown to people."""
MAX_RECIPE_BYTES = document.MAX_BYTES
MOST_LOOKED_AT, LONGEST_PLACE = 50, 300
"""Mistakes that are looked at, and characters of the place that is named."""
TASKS: dict[str, bool] = {"classify": True, "passthrough": False}
"""What may become of a table: each is a file of this name in `services/datagen/tasks`. -> Whether its answers are classes."""


class Section(BaseModel):
    """Base of all recipe parts: immutable, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Columns(Section):
    """Which columns of the table hold what. Only those a task needs are read."""

    text: ColumnName = "text"
    label: ColumnName = "label"
    instruction: ColumnName = "instruction"
    input: ColumnName = "input"
    output: ColumnName = "output"


Price = Annotated[float, Field(ge=0, le=1e6)]


class Generator(Section):
    """Who writes the instructions of a `classify` dataset."""

    kind: Literal["template", "llm"] = "template"
    model: Words | None = None
    """Model name at the provider; needed when `kind: llm`."""
    provider: Name = OPENAI
    """Name of an endpoint that the operator of the service has set, see `llm/providers.py`."""
    base_url: str | None = None
    """No longer: an address that recipes named. Refused at the doors; a plan that still has one is never carried out with another."""
    budget_usd: float | None = Field(default=None, gt=0, le=1e9)
    """Stop before the estimated cost passes this."""
    usd_per_million_tokens: tuple[Price, Price] = (0.15, 0.60)
    """Price of (prompt, completion) tokens that the budget is kept with."""
    concurrency: int = Field(default=16, ge=1, le=512)

    @model_validator(mode="after")
    def _needs_model(self) -> Generator:
        if self.kind == "llm" and not self.model:
            raise ValueError("`kind: llm` needs a `model`, e.g. `model: gpt-4o-mini`")
        return self


class Rows(Section):
    """How many rows go to each split; taken by a seeded shuffle, disjoint, balanced by label for `classify`."""

    train: int = Field(default=8000, ge=0, le=10_000_000)
    validation: int = Field(default=200, ge=0, le=1_000_000)
    test: int = Field(default=500, ge=0, le=1_000_000)


class Dataset(Section):
    """A source table and how it becomes instruction examples."""

    source: Words
    """`hf:owner/name@revision`, a CSV/JSONL/JSON/Parquet path, or an uploaded `file-...` id."""
    task: Reference = "classify"
    """One of `TASKS`; checked at the doors, so that a plan with a newer one stays readable."""
    columns: Columns = Columns()
    labels: dict[ColumnName, ColumnName] = Field(default_factory=dict, max_length=1000)
    """Value in the label column -> class name, e.g. {0: negative, 1: positive}. Empty: values are the names."""
    generator: Generator = Generator()
    rows: Rows = Rows()

    @field_validator("labels", mode="before")
    @classmethod
    def _label_keys_are_text(cls, value: Any) -> Any:
        return {str(key): name for key, name in value.items()} if isinstance(value, dict) else value

    @property
    def has_classes(self) -> bool:
        """Whether its answers are classes."""
        return TASKS.get(self.task, False)


BaseName = Annotated[Words, Field(min_length=1)]
Weight = Annotated[float, Field(ge=1e-6, le=1e6)]
Mix = Annotated[dict[Reference, Weight], Field(min_length=1, max_length=100)]


class Variant(Section):
    """What one adapter is trained on."""

    train: Reference | Mix | Annotated[tuple[Reference | Mix, ...], Field(min_length=1, max_length=32)]
    """A dataset; a mix {dataset: weight}; or a list of these trained one after another into ONE adapter."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Settings of this variant's training that differ from those of all, e.g. {learning_rate: 0.001}."""

    def stages(self) -> tuple[dict[str, float], ...]:
        """The stages in order, each {dataset: weight}."""
        parts = self.train if isinstance(self.train, tuple) else (self.train,)
        return tuple({part: 1.0} if isinstance(part, str) else part for part in parts)


Target = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,200}$")]


class Lora(Section):
    """Shape of the adapter."""

    r: Literal[1, 8, 16, 32, 64, 128, 256] = 8
    alpha: int = Field(default=32, ge=1, le=65_536)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Annotated[tuple[Target, ...], Field(min_length=1, max_length=64)] | Literal["all-linear"] = "all-linear"


class Training(Section):
    """Settings of every variant's training."""

    lora: Lora = Lora()
    quantize: Literal["none", "nf4"] = "none"
    epochs: float = Field(default=1, gt=0, le=100)
    """Passes, over what `budget` says."""
    budget: Literal["tokens", "epochs"] = "tokens"
    """As many tokens as the first variant's data has, times the variant's own `epochs`; or passes over its own data."""
    batch_size: int = Field(default=16, ge=1, le=4096)
    """Examples per optimizer step."""
    learning_rate: float = Field(default=2e-4, gt=0, lt=1)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps."""
    weight_decay: float = Field(default=0.0, ge=0, le=100)
    max_length: int = Field(default=512, ge=16, le=131_072)
    """Tokens of prompt and answer together; longer examples are left out and counted, never cut."""
    checkpoint_every: int = Field(default=20, ge=1, le=1_000_000)
    """Optimizer steps between checkpoints."""
    keep: Literal["last", "best"] = "last"
    """Whose weights become the adapter: those of the last step, or of the checkpoint with the lowest validation loss."""


class Panel(Section):
    """One set of questions every variant answers, and the metrics on the answers."""

    dataset: Reference | None = None
    """A dataset of this recipe; its test split is asked."""
    prompts: Words | None = None
    """Or a JSONL of {prompt, reference?} (path or file id)."""
    metrics: Annotated[tuple[Reference, ...], Field(max_length=64)]
    positive: ColumnName | None = None
    """Class name that `f1_positive` and its like are of."""
    max_tokens: int = Field(default=64, ge=1, le=4096)

    @model_validator(mode="after")
    def _one_source(self) -> Panel:
        if (self.dataset is None) == (self.prompts is None):
            raise ValueError("give exactly one of `dataset` and `prompts`")
        return self


class Evaluation(Section):
    """How base and variants are compared."""

    panels: dict[Name, Panel] = Field(default_factory=dict, max_length=100)
    bootstrap: int = Field(default=1000, ge=100, le=100_000)
    """Resamples behind every interval."""


class Recipe(Section):
    """One run: data, variants, training, evaluation."""

    name: Name = "run"
    base: BaseName | Annotated[tuple[BaseName, ...], Field(min_length=1, max_length=8)] = "seedling"
    """A folder, a name under the models folder, or a hub id with `@revision`; or several of them."""
    seed: int = Field(default=17, ge=0, lt=2**31)
    seeds: int = Field(default=1, ge=1, le=16)
    """How many times each variant is trained, with `seed`, `seed + 1`, ...: shows what another training would give."""
    datasets: dict[Name, Dataset] = Field(min_length=1, max_length=100)
    variants: dict[Name, Variant] = Field(default_factory=dict, max_length=500)
    """Empty: one variant per dataset that has training rows."""
    training: Training = Training()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _names_exist(self) -> Recipe:
        for name, dataset in self.datasets.items():
            if dataset.task not in TASKS:
                raise ValueError(f"datasets.{name}: there is no task `{dataset.task}`{nearest(dataset.task, TASKS)}")
            if dataset.generator.base_url is not None:
                raise ValueError(
                    f"datasets.{name}.generator.base_url: recipes no longer name addresses; write `provider: NAME`, of a "
                    "provider that the operator has set (UNDERSTUDY_PROVIDERS, or OPENAI_BASE_URL for `openai`)"
                )
        if BASE in self.variants:
            raise ValueError(f"variants: `{BASE}` is the name of the untouched base model; choose another")
        used = [(f"variants.{name}", data) for name, v in self.variants.items() for s in v.stages() for data in s]
        used += [(f"evaluation.panels.{n}", p.dataset) for n, p in self.evaluation.panels.items() if p.dataset]
        for where, data in used:
            if data not in self.datasets:
                raise ValueError(f"{where}: no dataset called `{data}`{nearest(data, self.datasets)}")
        for name, panel in self.evaluation.panels.items():
            if unknown := next((metric for metric in panel.metrics if metric not in METRICS), None):
                raise ValueError(f"evaluation.panels.{name}: there is no metric `{unknown}`{nearest(unknown, METRICS)}")
            classes = of_classes(panel.metrics)
            if classes and (panel.dataset is None or not self.datasets[panel.dataset].has_classes):
                raise ValueError(f"evaluation.panels.{name}: {', '.join(classes)} need a `classify` dataset")
            if (one := of_one_class(panel.metrics)) and panel.positive is None:
                raise ValueError(f"evaluation.panels.{name}: {', '.join(one)} need `positive`, the name of a class")
        return self

    def trained(self) -> dict[str, Variant]:
        """Variants to train, in recipe order; filled in when the recipe names none."""
        return self.variants or {n: Variant(train=n) for n, d in self.datasets.items() if d.rows.train}

    def bases(self) -> tuple[str, ...]:
        """All of them, as written."""
        return (self.base,) if isinstance(self.base, str) else self.base

    def training_of(self, variant: Variant) -> Training:
        """The settings of one variant's training: those of all, with its own on top."""
        own = variant.training
        return Training.model_validate(_merged(self.training.model_dump(), own)) if own else self.training

    def written(self) -> dict[str, Any]:
        """What the user wrote, without the defaults."""
        return self.model_dump(mode="json", exclude_unset=True)

    def run_id(self, fresh: str = "") -> str:
        """Follows from what the user wrote and the files named there: the command that made a run finds it again, also
        after keys with defaults were added to recipes.

        The order of variants counts, because the first sets the budget. `fresh` sets apart a run that shall start anew.
        """
        canonical = json.dumps([self.written(), list(self.variants), list(self.datasets)], sort_keys=True) + fresh
        return f"{self.name}-{hashlib.sha256(canonical.encode()).hexdigest()[:10]}"


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {name: _merged(below[name], above[name]) for name in below.keys() & above.keys() if _two(below, above, name)}
    return below | above | both


def _two(below: dict[str, Any], above: dict[str, Any], name: str) -> bool:
    return isinstance(below[name], dict) and isinstance(above[name], dict)


def load(path: Path) -> Recipe:
    """Read and validate a recipe file; raises `Invalid` naming the file, the key and the remedy."""
    return parse(document.read(path), str(path))


def parse(written: object, where: str) -> Recipe:
    """Validate a recipe given as plain data; `where` names it in errors."""
    if not isinstance(written, dict):
        raise Invalid(f"{where} is not a recipe: expected keys such as `datasets:` at the top level")
    document.check(written, where)
    below, looked_at = "", written
    try:
        recipe = Recipe.model_validate(written, extra="forbid")
        for name, variant in recipe.variants.items():
            below = f"variants.{name}.training"  # as strict as the settings of all
            looked_at = _merged(recipe.training.model_dump(), variant.training)
            Training.model_validate(looked_at, extra="forbid")
        _check_validation(recipe, where)
        return recipe
    except ValidationError as error:
        mistakes = "; ".join(_mistakes(error, looked_at, below)[:3])
        raise Invalid(f"{where}: {mistakes}", "See docs/recipes.md for every key.") from None


def _check_validation(recipe: Recipe, where: str) -> None:
    """Raises `Invalid` when a variant keeps its best checkpoint and has no validation rows to find it with."""
    for name, variant in recipe.trained().items():
        data = {dataset for stage in variant.stages() for dataset in stage}
        if recipe.training_of(variant).keep == "best" and not any(recipe.datasets[d].rows.validation for d in data):
            raise Invalid(
                f"{where}: `{name}` shall keep its best checkpoint, and no dataset that it trains on has validation rows",
                f"Raise `datasets.{min(data)}.rows.validation`, or use `training.keep: last`.",
            )


def _mistakes(error: ValidationError, written: object, below: str) -> list[str]:
    """A sentence for each place. Where a value may be of several kinds, about the kind that it comes nearest to."""
    found: dict[tuple[str, ...], list[Any]] = {}
    for each in error.errors()[:MOST_LOOKED_AT]:
        found.setdefault(_place(each, written), []).append(each)
    inner = {place[:end] for place in found for end in range(len(place))}
    return [_explain(".".join((*filter(None, [below]), *place)), found[place]) for place in found if place not in inner]


def _place(error: Any, written: object) -> tuple[str, ...]:
    """The keys that lead to a mistake, without the names of the Python types that were tried on the way."""
    place: list[str] = []
    for number, part in enumerate(error["loc"], start=1):
        inside = {str(key): value for key, value in _entries(written)}
        missing = number == len(error["loc"]) and error["type"] == "missing"
        if str(part) in inside or missing:
            place.append(str(part))
            written = inside.get(str(part))
    return tuple(place)


def _entries(written: object) -> Iterable[tuple[Any, Any]]:
    if isinstance(written, dict):
        return written.items()
    return enumerate(written) if isinstance(written, list | tuple) else ()


def _explain(place: str, errors: list[Any]) -> str:
    if len(place) > LONGEST_PLACE:
        place = f"{place[:LONGEST_PLACE]}..."
    if errors[0]["type"] == "extra_forbidden":
        return f"unknown key `{place}`{nearest(str(errors[0]['loc'][-1]), _known_keys())}"
    nearer = [each for each in errors if not each["type"].endswith(("_type", "literal_error"))] or errors
    message = ", or: ".join(dict.fromkeys(_in_yaml(each) for each in nearer))
    return f"`{place}`: {message}" if place else message


def _in_yaml(error: Any) -> str:
    """The message in the words of whoever writes YAML."""
    if error["type"] in ("model_type", "dict_type"):
        return "Input should be keys with values"
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] == ONE_LINE:
        return "Input should be one line of text without control characters"
    message = str(error["msg"]).removeprefix("Value error, ")
    return message.replace("Tuple", "List").replace("valid tuple", "valid list").replace(" after validation", "")


def _known_keys() -> list[str]:
    sections = (Recipe, Dataset, Columns, Generator, Rows, Variant, Lora, Training, Panel, Evaluation)
    return sorted({key for section in sections for key in section.model_fields})
