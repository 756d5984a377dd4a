"""What `understudy plan` looks at: the first rows of the sources, the base's files, this machine.

Starts nothing, asks nobody, loads no torch. Does not compute what follows from it (`estimate.py`).
"""

from __future__ import annotations

import itertools
import json
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.datagen import filters, prompts
from services.datagen.filters import Candidate, Sieve
from services.datagen.pools import Pools, Wanted
from services.datagen.settings import DatagenSettings
from services.datagen.sources import FILE_ID, HUB, Row, Source, Sources
from services.datagen.splits import shares
from services.datagen.tables import Table
from services.datagen.templates import instruct
from services.trainer.settings import TrainerSettings
from understudy.bases import Base
from understudy.errors import Invalid
from understudy.service.machine import cores, memory
from understudy.store.artifacts import ArtifactStore
from understudy_cli.estimate import Device, Linear, Shape
from understudy_cli.software import cuda_build

LOOKED_AT = 2000
"""Rows of a source."""
TOKENISED = 400
"""Of these rows."""
CHARACTERS_PER_TOKEN = 4
"""Judgement, for want of a tokenizer."""
TEMPLATE_TOKENS = 8
"""Judgement: what a chat template adds to an example, for want of one that can be rendered."""
INSTRUCTION_CHARACTERS = 160
"""Judgement: of an instruction that a language model writes."""
MOST_HEADER = 100 << 20
RATE_SECONDS = 0.25
EMBEDDINGS = ("embed", "wte", "wpe", "lm_head")


@dataclass(frozen=True)
class Looked:
    """What the first rows of a source say about a dataset."""

    wanted: Wanted
    unknown: str | None = None
    """Why nothing can be said."""
    rows: int = 0
    """Of the source; an estimate unless `whole`."""
    whole: bool = False
    """Every row was looked at."""
    rejected: float = 0.0
    """Share of the rows that were looked at."""
    labels: tuple[str, ...] = ()
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def usable(self) -> int:
        """Rows that can become an example."""
        return len(self.candidates) if self.whole else round(self.rows * (1 - self.rejected))

    @property
    def splits(self) -> dict[str, int]:
        """Rows per split, were there no rows in common with another dataset's test."""
        counts = self.wanted.counts()
        return shares(counts, self.usable) if counts else {"test": self.usable}

    @property
    def sure(self) -> bool:
        """Whether the splits are as said even if the source had half as many rows."""
        return self.whole or 0 < 2 * sum(self.wanted.counts().values()) <= self.usable

    def examples(self, seed: int) -> Iterator[tuple[str, str]]:
        """(what the user says, the answer) of some of the rows."""
        for candidate in self.candidates[:TOKENISED]:
            if not self.wanted.classifies():
                yield candidate.text, candidate.answer
            elif self.generator and self.generator.kind == "llm":
                yield candidate.text + " " * 2 + "instruction " * (INSTRUCTION_CHARACTERS // 12), candidate.answer
            else:
                yield instruct(candidate.text, self.labels, candidate.id(self.wanted.name), seed)[0], candidate.answer

    @property
    def generator(self) -> Any:
        """Who writes the instructions; None for prompts."""
        return self.wanted.dataset.generator if self.wanted.dataset else None

    def asking(self, seed: int) -> float:
        """Tokens, about, of what a language model is asked for one row."""
        some = self.candidates[:TOKENISED]
        schema = len(json.dumps(prompts.schema(self.labels)))
        asked = [prompts.ask(candidate, self.labels, candidate.id(self.wanted.name), seed) for candidate in some]
        characters = sum(len(turn.content) for turns in asked for turn in turns)
        return (characters / max(1, len(some)) + schema) / CHARACTERS_PER_TOKEN


def look(wanted: Wanted, store: ArtifactStore) -> Looked:
    """Read the first rows of a source as datagen does; raises `Invalid` when it can be seen that datagen would refuse it."""
    if wanted.source.startswith(HUB):
        return Looked(wanted, unknown="its source is on the hub, where nothing is asked now")
    if FILE_ID.fullmatch(wanted.source):
        return Looked(wanted, unknown="its source is an uploaded file, which is not looked into")
    settings = DatagenSettings()
    sources = Sources(store, settings.max_source_bytes, settings.max_field_bytes)
    source = sources.open(wanted.source)
    seen = list(itertools.islice(source.table.rows, LOOKED_AT + 1))
    whole, first = len(seen) <= LOOKED_AT, seen[:LOOKED_AT]
    rows, sieve = _sifting(wanted, Source(source.name, Table(source.table.columns, iter(first))))
    for row in rows:
        sieve.take(row)
    candidates = sieve.candidates()
    labels = tuple(sorted({str(candidate.label) for candidate in candidates})) if wanted.classifies() else ()
    if whole or not candidates:
        Pools(sources, settings.max_text_chars, settings.max_labels).check(wanted)
    total = len(first) if whole else _rows_in(Path(wanted.source).expanduser(), first)
    return Looked(wanted, None, total, whole, len(sieve.rejected) / len(first), labels, candidates)


def _sifting(wanted: Wanted, source: Source) -> tuple[Iterator[Row], Sieve]:
    most = DatagenSettings().max_text_chars
    if wanted.dataset is None:
        return source.rows(["prompt"], ["reference"]), Sieve(filters.prompts, most)
    columns = wanted.dataset.columns
    if wanted.classifies():
        read = filters.classify(columns, wanted.dataset.labels)
        return source.rows([columns.text, columns.label]), Sieve(read, most)
    return source.rows([columns.instruction, columns.output], [columns.input]), Sieve(
        filters.passthrough(columns), most
    )


def _rows_in(path: Path, first: Sequence[Any]) -> int:
    """About how many rows a file has, by the size of the first ones; Parquet says it, more or less spaced JSON is worst."""
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet

        return int(pyarrow.parquet.ParquetFile(path).metadata.num_rows)
    if path.suffix.lower() in (".csv", ".tsv"):
        size = sum(len(str(value).encode()) + 1 for row in first for value in row.values())
    else:
        size = sum(len(json.dumps(row, ensure_ascii=False).encode()) + 1 for row in first)
    return max(len(first), round(path.stat().st_size * len(first) / size))


class Tokens:
    """Counts tokens as the base does, as far as that can be done here."""

    def __init__(self, base: Base) -> None:
        folder = None if base.revision else Path(base.path)
        self._encode = _encoder(folder)
        self._render = _renderer(base, folder)
        self.how = "the base's tokenizer" if self._encode else f"{CHARACTERS_PER_TOKEN} characters each"

    def lengths(self, examples: Sequence[tuple[str, str]]) -> list[int]:
        """Tokens of each example, prompt and answer together."""
        texts = [self._render(said, answer) if self._render else said + answer for said, answer in examples]
        extra = 0 if self._render else TEMPLATE_TOKENS
        if self._encode:
            return [count + extra for count in self._encode(texts)]
        return [len(text) // CHARACTERS_PER_TOKEN + 1 + extra for text in texts]


def _encoder(folder: Path | None) -> Callable[[Sequence[str]], list[int]] | None:
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda texts: [len(each.ids) for each in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _renderer(base: Base, folder: Path | None) -> Callable[[str, str], str] | None:
    """Renders one example with the base's chat template; None where that cannot be done."""
    source = _template(base, folder)
    if source is None:
        return None
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        return None

    def render(said: str, answer: str) -> str:
        turns = [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
        text = template.render(messages=turns, add_generation_prompt=False, bos_token="", eos_token="")
        return str(text).rstrip()  # what follows the end of the answer is not trained on

    try:
        template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)
        render("a", "b")
    except (TemplateError, TypeError):  # it wants more than we have
        return None
    return render


def _template(base: Base, folder: Path | None) -> str | None:
    path = base.template or (folder and folder / "chat_template.jinja")
    if path and path.is_file():
        return path.read_text(encoding="utf-8")
    config = folder and folder / "tokenizer_config.json"
    found = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config and config.is_file() else None
    return found if isinstance(found, str) else None


def shape(base: Base) -> Shape | None:
    """Of a base in a folder, from its config and the headers of its weights; None for one on the hub.

    Raises `Invalid` when they cannot be read.
    """
    if base.revision:
        return None
    folder = Path(base.path)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config", config)
        weights = {name: size for file in sorted(folder.glob("*.safetensors")) for name, size in _header(file).items()}
        hidden, layers, vocabulary = (int(config[key]) for key in ("hidden_size", "num_hidden_layers", "vocab_size"))
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise Invalid(
            f"Base model `{base.name}`: config.json or the weights in {folder} cannot be read ({error!r})",
            "Is it a complete causal language model, with weights as safetensors?",
        ) from error
    if not weights:
        raise Invalid(f"Base model `{base.name}`: there is no .safetensors file in {folder}", "Convert its weights.")
    parameters = sum(_product(size) for size in weights.values())
    matrices = {name: size for name, size in weights.items() if len(size) == 2 and name.endswith(".weight")}
    linear = tuple(
        Linear(name.split(".")[-2], *size)
        for name, size in matrices.items()
        if not any(word in name for word in EMBEDDINGS)
    )
    looked_up = vocabulary * hidden if any("lm_head" in name for name in matrices) else 0
    inner = int(config.get("intermediate_size") or 4 * hidden)
    return Shape(parameters, parameters - looked_up, linear, layers, hidden, inner, vocabulary)


def _header(path: Path) -> dict[str, list[int]]:
    """Tensor -> its shape, from the beginning of a safetensors file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MOST_HEADER:
            raise ValueError(f"{path.name} is no safetensors file")
        header = json.loads(file.read(length))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def _product(size: Sequence[int]) -> int:
    count = 1
    for each in size:
        count *= each
    return count


@dataclass(frozen=True)
class Machine:
    """What will train, if it is this machine."""

    device: Device
    memory: int
    """Bytes of the first GPU, else of the machine."""
    flops: float | None
    """Operations a second of a matrix multiplication with as many threads as a training has; None where unknown."""
    why: str = ""
    """Why it is unknown."""


def machine() -> Machine:
    """Look at this machine; takes a quarter of a second."""
    if (gpu := _gpu_memory()) and cuda_build("torch"):
        return Machine("gpu", gpu, None, "nothing here measures a GPU")
    flops = _rate()
    return Machine("cpu", memory(), flops, "" if flops else "numpy, with which it would be measured, is not installed")


def _gpu_memory() -> int | None:
    program = shutil.which("nvidia-smi")
    if not program:
        return None
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=2, check=True).stdout
        return int(answer.split()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _rate() -> float | None:
    try:
        import numpy
    except ImportError:
        return None
    size = 1024
    left = numpy.full((size, size), 0.5, dtype=numpy.float32)
    right = left @ left
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < RATE_SECONDS:
        left @ right
        count += 1
    rate = 2 * size**3 * count / (time.perf_counter() - started)
    return rate * min(1.0, TrainerSettings().threads / cores())  # numpy takes every core
